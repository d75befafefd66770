"""Callers, samplers and parts of one's own that go wrong: an error says so, nothing is lost and nobody waits."""

import asyncio
import signal
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from fakes import LetterTokenizer, TableRunner, cycle

from nvg import LLM, AsyncLLM, EngineConfig, SamplingParams
from nvg.errors import EngineError, ParameterError, cause

GREEDY = SamplingParams(temperature=0, max_tokens=4)
ONE = SamplingParams(temperature=0, max_tokens=1)
ENDLESS = SamplingParams(temperature=0, max_tokens=10**6, on_full="slide")
WAIT_S = 60


class Faulty:
    """A sampler that calls something of its user's."""

    def __init__(self, call):
        self.call = call

    def apply(self, logits, token_ids, state):
        self.call()


class Changing:
    """A sampler that changes more than the logits' values."""

    def __init__(self, change):
        self.change = change

    def apply(self, logits, token_ids, state):
        self.change(logits, token_ids)


class UnspeakableError(Exception):
    def __str__(self):
        raise ValueError("no words")


class FaultyStart:
    @property
    def start(self):
        raise RuntimeError("no start")

    def apply(self, logits, token_ids, state):
        pass


@pytest.fixture
def llm():
    llm = LLM.from_components(EngineConfig(max_num_seqs=4), TableRunner(cycle(7)), LetterTokenizer(7))
    yield llm
    llm.close()


def raising(error):
    def call(*_):
        raise error

    return call


def in_time(call):
    """The call's result; a failure instead of a hang."""
    results = []
    thread = threading.Thread(target=lambda: results.append(call()), daemon=True)
    thread.start()
    thread.join(WAIT_S)
    assert results, "it hangs, or raised"
    return results[0]


def test_a_stop_string_that_is_no_text_is_refused():
    with pytest.raises(ParameterError, match="lone surrogate"):
        SamplingParams(stop=["\udc80"])
    assert SamplingParams(stop=["\ud83d\ude00"]).stop, "a pair stands for a character"


def test_a_faulty_tokenizer_raises_where_the_request_is_made(llm):
    class Broken(LetterTokenizer):
        eos_token_ids = property(raising(ZeroDivisionError("no ids")), lambda self, ids: None)

    good = llm.tokenizer
    llm._engine.tokenizer = Broken(7)
    with pytest.raises(ZeroDivisionError):
        llm.generate("a", GREEDY)
    llm._engine.tokenizer = good
    assert in_time(lambda: llm.generate("a", GREEDY)[0].text) == "bcde"


def test_a_request_that_cannot_be_added_ends_alone(llm, monkeypatch):
    monkeypatch.setattr(llm._engine, "add", raising(ZeroDivisionError("no room")))
    output = in_time(lambda: llm.generate("a", SamplingParams(n=2)))[0]
    assert [(one.finish_reason, one.error) for one in output.outputs] == [("error", "ZeroDivisionError: no room")] * 2
    monkeypatch.undo()
    assert in_time(lambda: llm.generate("a", GREEDY)[0].text) == "bcde"


def test_a_command_that_fails_leaves_nobody_waiting(llm):
    stream = llm.stream("a", ENDLESS)
    next(stream)
    llm._thread._send(raising(ZeroDivisionError("no")))
    assert in_time(lambda: list(stream))[-1].error == "the engine stopped: ZeroDivisionError: no"
    with pytest.raises(EngineError, match="stopped earlier"):
        llm.generate("a")


@pytest.mark.parametrize("error", [UnspeakableError(), GeneratorExit(), KeyboardInterrupt(), SystemExit(2)])
def test_whatever_a_sampler_raises_ends_its_request_alone(llm, error):
    params = [SamplingParams(sampler=Faulty(raising(error))), GREEDY]
    bad, good = in_time(lambda: llm.generate(["a", "a"], params))
    assert f"raised {type(error).__name__}" in bad.error
    assert good.text == "bcde"


def test_a_property_that_raises_ends_its_request_alone(llm):
    bad, good = in_time(lambda: llm.generate(["a", "a"], [SamplingParams(sampler=FaultyStart()), GREEDY]))
    assert "raised in start RuntimeError: no start" in bad.error
    assert good.text == "bcde"


def through_the_base(logits, token_ids):
    np.asarray(logits.base)[...] = -1


def errors_raise(logits, token_ids):
    np.seterr(all="raise")


def changed(name, value, of_ids=False):
    def change(logits, token_ids):
        setattr(token_ids if of_ids else logits, name, value)

    return change


@pytest.mark.parametrize(
    "change",
    [
        changed("shape", (1, -1)), changed("dtype", np.int32), changed("shape", (1, -1), of_ids=True),
        lambda logits, token_ids: setattr(logits.flags, "writeable", False), through_the_base, errors_raise,
    ],
)  # fmt: skip
def test_a_sampler_that_changes_its_arrays_themselves_changes_nobody_elses(llm, change):
    underflows = Changing(lambda logits, token_ids: np.exp(np.float32(-1e4)))
    others = [replace(GREEDY, sampler=[underflows, "greedy"], temperature=None), GREEDY]
    for chain in ([Changing(change)], [Changing(change), "topp"], ["topk", Changing(change), "topp"]):
        params = SamplingParams(sampler=chain, max_tokens=4, ignore_eos=True)
        one, *rest = in_time(lambda params=params: llm.generate(["a"] * 3, [params, *others]))
        assert one.finish_reason == "length", one.error
        assert [output.text for output in rest] == ["bcde", "bcde"]


def test_ctrl_c_in_a_loop_of_ones_own_comes_when_the_step_is_done(llm):
    interrupt = Faulty(lambda: signal.raise_signal(signal.SIGINT))
    ids = [
        llm.engine.add_request("a", SamplingParams(sampler=interrupt, max_tokens=2)),
        llm.engine.add_request("a", GREEDY),
    ]
    outputs = {}
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            llm.engine.step()
    while not llm.engine.is_finished():
        outputs.update(llm.engine.step())
    assert [len(outputs[request_id].token_ids) for request_id in ids] == [2, 4]
    assert outputs[ids[1]].text == "bcde"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def twice():
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
    pytest.fail("the second one was held, too")


@pytest.mark.parametrize("fault", [raising(KeyboardInterrupt()), twice])
def test_an_interrupt_in_the_middle_of_a_step_ends_the_requests(llm, fault):
    ids = [llm.engine.add_request("a", SamplingParams(sampler=Faulty(fault))), llm.engine.add_request("a", GREEDY)]
    with pytest.raises(KeyboardInterrupt):
        llm.engine.step()
    outputs = dict(llm.engine.step())
    assert [outputs[request_id].error for request_id in ids] == ["the step failed: KeyboardInterrupt"] * 2
    assert llm.engine.is_finished()
    again = llm.engine.add_request("a", GREEDY)
    while not llm.engine.is_finished():
        outputs.update(llm.engine.step())
    assert outputs[again].text == "bcde"


def test_an_on_piece_that_raises_when_its_request_is_aborted(llm):
    request_id = llm.engine.add_request("a", ENDLESS, raising(ValueError("mine")))
    with pytest.raises(ValueError, match="mine"):
        llm.engine.abort(request_id)
    assert [request_id] == [ended for ended, _ in llm.engine.step()]


def test_an_error_without_words_has_a_name():
    assert cause(UnspeakableError()) == "UnspeakableError"


@pytest.mark.parametrize("method", ["generate", "stream", "logits"])
def test_a_sampler_cannot_wait_for_its_own_engine(llm, method):
    params = SamplingParams(sampler=Faulty(lambda: getattr(llm, method)([1])))
    assert "called inside of a step of the same LLM" in in_time(lambda: llm.generate("a", params)[0].error)


def test_a_sampler_cannot_read_a_stream_of_its_own_engine(llm):
    stream = llm.stream("a", ENDLESS)
    bad = in_time(lambda: llm.generate("a", SamplingParams(sampler=Faulty(lambda: next(stream))))[0])
    assert "or a stream of it read there, which would wait for itself: use another LLM" in bad.error
    assert next(stream).text == "b", "for others it goes on"


def test_a_sampler_cannot_read_an_asynchronous_one_either(llm):
    async def main():
        stream = AsyncLLM.from_llm(llm).stream("a", ENDLESS)
        sampler = Faulty(lambda: asyncio.run(anext(stream)))
        bad = (await asyncio.to_thread(llm.generate, "a", SamplingParams(sampler=sampler)))[0]
        return bad.error, (await anext(stream)).text

    error, text = in_time(lambda: asyncio.run(main()))
    assert "or a stream of it read there, which would wait for itself: use another LLM" in error
    assert text == "b"


def test_an_on_piece_that_raises_costs_no_output(llm):
    errors = [ValueError("first"), ValueError("second")]
    ids = [llm.engine.add_request("a", SamplingParams(max_tokens=1), raising(error)) for error in errors]
    seen = []
    ids.append(llm.engine.add_request("b", SamplingParams(max_tokens=1, temperature=0), seen.append))
    with pytest.raises(ValueError, match="first"):
        llm.engine.step()
    assert [piece.text for piece in seen] == ["c"]
    assert llm.stats.steps == 1
    assert not llm.engine.is_finished()
    assert [request_id for request_id, _ in llm.engine.step()] == ids
    assert llm.engine.is_finished()


def test_a_step_inside_of_a_step_is_refused(llm):
    request_id = llm.engine.add_request("a", SamplingParams(max_tokens=1), lambda piece: llm.engine.step())
    with pytest.raises(EngineError, match="inside of a step"):
        llm.engine.step()
    assert [request_id] == [ended for ended, _ in llm.engine.step()]


@pytest.mark.parametrize("close", [False, True])
def test_two_threads_that_share_a_stream_both_end(llm, close):
    hold = llm._engine.runner.hold
    hold.clear()
    stream = llm.stream("a", ENDLESS if close else ONE)
    taken = [[], []]
    threads = [threading.Thread(target=lambda one=one: one.extend(stream), daemon=True) for one in taken]
    for thread in threads:
        thread.start()
    time.sleep(0.05)  # both wait, for what one of them gets
    if close:
        stream.close()
    hold.set()
    for thread in threads:
        thread.join(WAIT_S)
        assert not thread.is_alive()
    if not close:
        assert len(taken[0]) + len(taken[1]) == 1
    assert list(stream) == []


def test_two_tasks_that_share_a_stream_both_end(llm):
    async def main():
        hold = llm._engine.runner.hold
        hold.clear()
        stream = AsyncLLM.from_llm(llm).stream("a", ONE)

        async def take():
            return [piece async for piece in stream]

        tasks = [asyncio.create_task(take()) for _ in range(2)]
        await asyncio.sleep(0)  # both wait, for what one of them gets
        hold.set()
        return await asyncio.wait_for(asyncio.gather(*tasks), WAIT_S)

    assert sum(map(len, asyncio.run(main()))) == 1


def test_a_stream_in_a_with_ends_with_it(llm):
    with llm.stream("a", ENDLESS) as stream:
        next(stream)
    assert list(stream) == []

    async def main():
        async with AsyncLLM.from_llm(llm).stream("a", ENDLESS) as stream:
            await anext(stream)
        return [piece async for piece in stream]

    assert asyncio.run(main()) == []
    assert in_time(lambda: llm.generate("a", GREEDY)[0].text) == "bcde"
    assert not llm._engine.has_work


def test_the_asynchronous_side_tells_what_the_other_does(llm):
    side = AsyncLLM.from_llm(llm)
    assert (side.tokenizer, side.max_model_len, side.stats) == (llm.tokenizer, llm.max_model_len, llm.stats)
    llm.generate("a", GREEDY)
    assert repr(llm.stats.stages).count("StageTime(seconds=0.") == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda llm: llm.stream("a", "b"), "params is 'b'; it must be SamplingParams"),
        (lambda llm: llm.stream("a", ""), "params is ''; it must be SamplingParams"),
        (lambda llm: llm.engine.add_request("a", "b"), "params is 'b'; it must be SamplingParams"),
        (lambda llm: llm.engine.add_request("a", GREEDY, 5), "on_piece is 5; it must be a function"),
        (lambda llm: llm.engine.abort([1]), r"request_id is \[1\]; it must be one that add_request returned"),
        (lambda llm: LLM(tokenizer=5), "tokenizer is 5; it must be a tokenizer's name"),
        (lambda llm: LLM(tokenizer=""), "tokenizer is ''; it must be a tokenizer's name"),
        (lambda llm: EngineConfig(max_num_batched_tokens=10**12), "an integer from 1 to 65536"),
        (lambda llm: EngineConfig(block_size=2**40), "an integer from 32 to 65536"),
        (lambda llm: LLM.from_components(EngineConfig(), None, llm.tokenizer), "runner is None; it must be"),
        (lambda llm: LLM.from_components(EngineConfig(), llm._engine.runner, None), "tokenizer is None; it must be"),
        (lambda llm: LLM.from_components(None, llm._engine.runner, llm.tokenizer), "config is None; it must be"),
        (lambda llm: SamplingParams(ignore_eos=2), "ignore_eos is 2; it must be True or False"),
    ],
)
def test_what_is_no_parameter_is_refused(llm, call, message):
    with pytest.raises(ParameterError, match=message):
        call(llm)


def test_params_of_an_asynchronous_stream_are_checked(llm):
    async def main():
        AsyncLLM.from_llm(llm).stream("a", "b")

    with pytest.raises(ParameterError, match="params is 'b'"):
        asyncio.run(main())
