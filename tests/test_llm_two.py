"""Two LLMs in one process: their steps take turns on the same threads, and neither notices the other."""

import gc
import threading
from dataclasses import replace

import numpy as np
import pytest

from nvg import LLM, SamplingParams

PROMPTS = ["Once upon a time", "The king", "There was once a poor woodcutter who lived"]
PARAMS = SamplingParams(temperature=1.2, seed=5, max_tokens=40, ignore_eos=True)


@pytest.fixture(scope="module")
def llm():
    with LLM("tales", threads=2) as llm:
        yield llm


def other_llm():
    return LLM("tales", threads=2, dtype="int8")


@pytest.fixture
def other():
    with other_llm() as other:
        yield other


@pytest.fixture(scope="module")
def alone(llm):
    """What it gives when nobody disturbs it."""
    return results(llm)


def results(llm):
    tokens = [output.token_ids for output in llm.generate(PROMPTS, PARAMS)]
    return tokens, llm.logits(list(range(100)))


def same(one, two):
    return one[0] == two[0] and np.array_equal(one[1], two[1])


class Meanwhile:
    """`with Meanwhile(work):` work() again and again in another thread."""

    def __init__(self, work):
        self._work, self._ending, self.results = work, threading.Event(), []
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        while not (self._ending.is_set() and self.results):
            self.results.append(self._work())

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exception):
        self._ending.set()
        self._thread.join(300)
        assert not self._thread.is_alive()


def test_both_at_once_give_the_bits_that_each_gives_alone(llm, other, alone):
    assert other._engine.runner._team._threads is llm._engine.runner._team._threads
    others = results(other)
    with Meanwhile(lambda: same(results(other), others)) as meanwhile:
        for _ in range(3):
            assert same(results(llm), alone)
    assert all(meanwhile.results)


def test_closing_one_leaves_the_other(llm, alone):
    def open_and_close():
        with other_llm() as other:
            stream = other.stream("The", replace(PARAMS, max_tokens=480))
            next(stream)  # and it is closed while it runs
        return list(stream)[-1].finish_reason

    with Meanwhile(open_and_close) as meanwhile:
        for _ in range(3):
            assert same(results(llm), alone)
    assert set(meanwhile.results) == {"aborted"}
    assert same(results(llm), alone)


def test_ending_requests_of_one_does_not_end_those_of_the_other(llm, other, alone):
    def abort():
        stream = other.stream("The", PARAMS)
        next(stream)
        stream.close()

    with Meanwhile(abort):
        for _ in range(3):
            assert same(results(llm), alone)
    assert other.generate("The", PARAMS)[0].finish_reason == "length"


def test_one_that_is_dropped_holds_nobody_up(llm, alone):
    """Garbage is found in any thread at any moment: here in one that has the threads."""
    dropped = other_llm()
    dropped.itself = dropped  # so that only the garbage collector finds it
    stream = dropped.stream("The", SamplingParams(max_tokens=400, ignore_eos=True))
    next(stream)
    thread, found = dropped._thread, threading.Event()
    del dropped

    def find():
        with llm._engine.runner._team._threads.turns:
            gc.collect()
            found.set()

    threading.Thread(target=find, daemon=True).start()
    assert found.wait(60)
    while not thread._closed:
        pass
    assert list(stream)[-1].finish_reason == "aborted"
    assert same(results(llm), alone)
