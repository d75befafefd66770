"""Draws in compiled code against the chain's, and several steps in one go."""

import threading
import time

import numpy as np
import pytest
from checkpoints import write_checkpoint
from hypothesis import example, given
from hypothesis import strategies as st

from nvg import LLM, SamplingParams
from nvg.engine import engine
from nvg.engine.drawing import MOST_STEPS
from nvg.errors import AbortedError, EngineError, SamplerError
from nvg.sampling.chain import Chain
from nvg.sampling.compiled import draw_row, passes_of
from nvg.sampling.compose import resolve
from nvg.sampling.contract import SamplerRequest
from nvg.sampling.random import signed
from nvg.sampling.select import padded

NOTHING = np.array([], np.int32)
STAGES = st.one_of(
    st.just(("greedy", {})),
    st.tuples(st.just("temperature"), st.fixed_dictionaries({"t": st.sampled_from([0, 1e-40, 0.3, 1, 1.7])})),
    st.tuples(st.just("topk"), st.fixed_dictionaries({"k": st.sampled_from([0, 1, 3, 40, 9000])})),
    st.tuples(st.just("topp"), st.fixed_dictionaries({"p": st.sampled_from([1e-6, 0.3, 0.9, 0.9999, 1])})),
    st.tuples(st.just("minp"), st.fixed_dictionaries({"p": st.sampled_from([0, 1e-3, 0.2, 1])})),
)


class Numbers:
    eos_token_ids = (0,)

    def __init__(self, vocab_size):
        self.vocab_size = vocab_size


def by_chain(row, stages, seed, choice, position):
    request = SamplerRequest(Numbers(row.size), row.size, (0,), NOTHING, SamplingParams())
    try:
        return Chain(stages, request, seed, choice).sample(row.copy(), NOTHING, np.zeros(position, np.int32))[0]
    except (EngineError, SamplerError):
        return None


def compiled(row, stages, seed, choice, position):
    passes = passes_of(stages)
    room, room_ids = np.empty((2, padded(row.size)), np.float32), np.empty((2, row.size), np.int32)
    spent = np.zeros(len(passes), np.int64)
    kinds, values = np.array([one.kind for one in passes]), np.array([one.value for one in passes], np.float64)
    given, ids = row.copy(), np.arange(row.size, dtype=np.int32)
    token_id = draw_row(
        given, ids, kinds.astype(np.int64), values, spent, signed(seed), choice, position, room, room_ids
    )
    assert (spent >= 0).all()
    if token_id >= 0:
        return token_id
    np.testing.assert_array_equal(given, row)
    return None


@given(
    st.lists(STAGES, max_size=4),
    st.sampled_from([1, 2, 15, 16, 17, 33, 300, 5000, 13000]),
    st.integers(0, 2**63),
    st.sampled_from([0, 1, 3]),
    st.sampled_from(["", "", "ties", "removed", "nan", "inf", "nothing"]),
)
@example([("topk", {"k": 3}), ("topp", {"p": 0.9})], 13000, 2**63, 0, "ties")
def test_a_row_gives_the_token_of_the_chain(stages, size, seed, choice, kind):
    rng = np.random.default_rng(seed)
    row = (rng.normal(size=size) * rng.choice([0.1, 3])).astype(np.float32)
    if kind == "ties":
        row = row.round(0)
    elif kind == "removed":
        row[rng.integers(0, size, size // 2)] = -np.inf
    elif kind:
        row[rng.integers(size)] = {"nan": np.nan, "inf": np.inf, "nothing": 0}[kind]
        if kind == "nothing":
            row[:] = -np.inf
    chain = resolve(SamplingParams(sampler=stages))
    for position in range(3):
        args = row, chain, seed, choice, position
        assert compiled(*args) == by_chain(*args)


def test_a_chain_with_a_stage_that_only_python_knows_is_not_compiled():
    assert passes_of(resolve(SamplingParams(sampler=["topk", "typical"]))) is None


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    directory = write_checkpoint(tmp_path_factory.mktemp("model"), n_layer=2, n_head=2, n_embd=32, n_positions=400)
    with LLM(str(directory), threads=2) as llm:
        yield llm


def counted(llm, monkeypatch):
    """How many steps each go of the engine made, from now on."""
    made = []
    drawing = llm._engine._drawing
    run = drawing.run

    def counting(*args):
        result = run(*args)
        made.append(len(result[1]))
        return result

    monkeypatch.setattr(drawing, "run", counting)
    return made


PARAMS = SamplingParams(max_tokens=100, ignore_eos=True, seed=5, temperature=0.8, top_p=0.9)


def test_steps_that_nobody_waits_for_are_made_in_one_go(llm, monkeypatch):
    made = counted(llm, monkeypatch)
    prefilled = llm.stats.prefill_tokens
    outputs = llm.generate(["a", "bc"], PARAMS)
    assert llm.stats.prefill_tokens - prefilled == 3  # all keys and values stay
    assert max(made) == MOST_STEPS
    assert sum(made) <= 100
    singly = made.copy()
    made.clear()
    monkeypatch.setattr(engine, "_UNNOTICED_S", 0)
    streamed = [[token for piece in llm.stream(text, PARAMS) for token in piece.token_ids] for text in ("a", "bc")]
    assert set(made) == {1}
    assert len(singly) < 20
    assert [output.outputs[0].token_ids for output in outputs] == streamed


def test_short_steps_are_made_in_one_go_for_those_who_wait_for_tokens_too(llm, monkeypatch):
    made = counted(llm, monkeypatch)
    expected = llm.generate("a", PARAMS)[0].outputs[0]
    made.clear()
    monkeypatch.setattr(engine, "_UNNOTICED_S", 1e3)
    pieces = list(llm.stream("a", PARAMS))
    assert max(made) == MOST_STEPS
    assert [piece.token_ids for piece in pieces] == [[token_id] for token_id in expected.token_ids]
    assert "".join(piece.text for piece in pieces) == expected.text
    assert [piece.finish_reason for piece in pieces] == [None] * 99 + ["length"]


def test_a_token_that_ends_a_sequence_ends_the_go(llm, monkeypatch):
    [output] = llm.generate("a", PARAMS)
    ids = output.outputs[0].token_ids
    last = next(i for i in range(40, 100) if ids[i] not in ids[:i])
    made = counted(llm, monkeypatch)
    [output] = llm.generate("a", SamplingParams(**{**vars(PARAMS), "stop_token_ids": [ids[last]]}))
    assert output.outputs[0].token_ids == ids[: last + 1]
    assert output.outputs[0].finish_reason == "stop"
    assert sum(made) == last  # and the first one by the chain


def test_a_stop_string_is_looked_for_after_each_step(llm, monkeypatch):
    made = counted(llm, monkeypatch)
    llm.generate("a", SamplingParams(max_tokens=20, ignore_eos=True, stop=["\n\n\n\n\n"]))
    assert set(made) == {1}


def test_whoever_hurries_waits_for_one_step_only(llm, monkeypatch):
    made = counted(llm, monkeypatch)
    step = llm._engine.step
    monkeypatch.setattr(llm._engine, "step", lambda most: (llm._engine.hurry(), step(most)))
    llm.generate("a", PARAMS)
    assert set(made) == {1}


def test_a_draw_that_the_engine_never_saw_is_made_again(llm, monkeypatch):
    expected = llm.generate("abc", PARAMS)[0].outputs[0].token_ids
    runner, steps = llm._engine.runner, []
    execute = runner.execute_through

    def interrupted(batch, job, context):
        logits = execute(batch, job, context)
        steps.append(len(batch.token_ids))
        if steps == [3, 1, 1]:
            raise AbortedError("as Ctrl-C may come in")
        return logits

    drawing = llm._engine._drawing
    run = drawing.run
    monkeypatch.setattr(runner, "execute_through", interrupted)

    def losing(*args):
        result = run(*args)
        if steps == [3, 1, 1, 1]:
            steps.append(0)
            raise AbortedError("as Ctrl-C may come in")
        return result

    monkeypatch.setattr(drawing, "run", losing)
    assert llm.generate("abc", PARAMS)[0].outputs[0].token_ids == expected
    assert 0 in steps


def test_abort_in_the_middle_of_a_go_keeps_what_was_drawn(llm):
    expected = llm.generate("abc", PARAMS)[0].outputs[0].token_ids
    done = threading.Event()

    def disturb():
        while not done.is_set():
            llm._engine.runner.abort()
            time.sleep(0.001)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        [output] = llm.generate("abc", PARAMS)
    finally:
        done.set()
        thread.join()
    assert output.outputs[0].token_ids == expected


def test_what_drawing_takes_is_counted(llm):
    stages = llm.stats.stages
    before = {title: time.seconds for title, time in stages.items()}
    model_s, seconds = llm.stats.model_s, llm.stats.decode_s + llm.stats.prefill_s
    llm.generate("abc", PARAMS)
    assert all(stages[title].seconds > seconds for title, seconds in before.items() if "topp" in title)
    assert 0 < llm.stats.model_s - model_s < llm.stats.decode_s + llm.stats.prefill_s - seconds


def test_logits_that_are_nan_end_their_request_with_the_chains_words(llm, monkeypatch):
    runner = llm._engine.runner
    weights = runner._buffers["logits"]
    execute = runner.execute_through
    calls = []

    def breaking(batch, job, context):
        calls.append(job)
        if len(calls) == 3:
            at = runner._weights.offsets["ln_f.bias"]
            runner._weights.arena[at : at + 4] = 255
        return execute(batch, job, context)

    at = runner._weights.offsets["ln_f.bias"]
    saved = runner._weights.arena[at : at + 4].copy()
    monkeypatch.setattr(runner, "execute_through", breaking)
    try:
        [output] = llm.generate("abc", PARAMS)
    finally:
        runner._weights.arena[at : at + 4] = saved
    assert "NaN" in output.outputs[0].error
    assert output.outputs[0].finish_reason == "error"
    assert weights.size
