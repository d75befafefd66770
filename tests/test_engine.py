"""The step loop with a runner of one's own: what is scheduled, when requests end, what they leave behind."""

import numpy as np
import pytest
from fakes import LetterTokenizer, TableRunner, cycle

from nvg.engine.engine import Engine
from nvg.engine.sequence import Request
from nvg.errors import ParameterError
from nvg.params import EngineConfig, SamplingParams
from nvg.sampling.compose import resolve
from nvg.sampling.logprobs import token_logprobs


def make_engine(table=None, kv_memory=None, max_num_seqs=4, **runner_options):
    runner = TableRunner(cycle(7) if table is None else table, **runner_options)
    config = EngineConfig(max_num_seqs=max_num_seqs, kv_memory=kv_memory)
    return Engine(config, runner, LetterTokenizer(runner.vocab_size))


def add(engine, prompt, **params):
    pieces = []
    params = SamplingParams(**params)
    token_ids = engine.tokenizer.encode(prompt)
    request = Request(prompt, token_ids, params, params.seed or 0, resolve(params), pieces.append)
    engine.check(request)
    engine.add(request)
    return request, pieces


def run(engine):
    while engine.has_work:
        engine.step()


def texts(request):
    return [sequence.choice().text for sequence in request.sequences]


def test_a_request_is_continued_until_max_tokens_and_leaves_nothing():
    engine = make_engine()
    request, pieces = add(engine, "a", max_tokens=8, temperature=0)
    free = engine.pool.num_free
    run(engine)
    assert texts(request) == ["bcdefabc"]
    assert [piece.token_ids for piece in pieces] == [[2], [3], [4], [5], [6], [1], [2], [3]]
    assert [piece.finish_reason for piece in pieces] == [None] * 7 + ["length"]
    assert engine.pool.num_free == free == engine.pool.num_blocks
    assert request.sequences[0].chain is None, "its memory is worth a few hundred kB"


def test_long_prompts_are_prefilled_in_pieces_beside_decodes():
    engine = make_engine(max_batched_tokens=8)
    short, _ = add(engine, "a", max_tokens=12, temperature=0)
    long, _ = add(engine, "abcdef" * 4, max_tokens=3, temperature=0)
    run(engine)
    assert texts(short) == ["bcdefabcdefa"]
    assert texts(long) == ["abc"]
    batches = engine.runner.batches
    assert [np.diff(batch.query_offsets).tolist() for batch in batches[:4]] == [[1, 7], [1, 7], [1, 7], [1, 3]]
    assert [len(batch.logits_rows) for batch in batches[:4]] == [1, 1, 1, 2]
    assert (engine.stats.prefill_tokens, engine.stats.decode_tokens) == (25, 11 + 2)
    assert engine.stats.steps == len(batches)


def test_sequences_beyond_max_num_seqs_wait_and_all_are_served():
    engine = make_engine(max_num_seqs=3)
    requests = [add(engine, letter, max_tokens=5, temperature=0)[0] for letter in "abcdefab"]
    run(engine)
    assert max(len(batch.context_lens) for batch in engine.runner.batches) == 3
    assert [texts(request)[0][:2] for request in requests] == ["bc", "cd", "de", "ef", "fa", "ab", "bc", "cd"]


def test_a_full_pool_makes_requests_wait():
    engine = make_engine(kv_memory=2 * 32 * 4)  # two blocks
    requests = [add(engine, "a", max_tokens=40, temperature=0)[0] for _ in range(3)]  # two blocks each
    run(engine)
    assert max(len(batch.context_lens) for batch in engine.runner.batches) == 1
    assert len({texts(request)[0] for request in requests}) == 1


def test_what_can_never_fit_is_refused_at_once():
    engine = make_engine(kv_memory=32 * 4)
    with pytest.raises(ParameterError, match=r"needs 2 blocks of 32 KV entries, the pool has 1: .* max_tokens$"):
        add(engine, "a", max_tokens=40)
    with pytest.raises(ParameterError, match="has 65 tokens, the context holds 64: shorten it by 1"):
        add(make_engine(), "a" * 65)
    with pytest.raises(ParameterError, match="kv_memory is 100; it must be at least a block's bytes, 128"):
        make_engine(kv_memory=100)


def test_the_context_ends_a_request():
    engine = make_engine()
    request, _ = add(engine, "a" * 62, max_tokens=10, temperature=0)
    full, _ = add(engine, "a" * 64, max_tokens=10, temperature=0)
    run(engine)
    assert (texts(request), request.sequences[0].finish_reason) == (["bc"], "length")
    assert (texts(full), full.sequences[0].finish_reason) == ([""], "length")


def test_max_tokens_0_is_prefill_only():
    engine = make_engine()
    request, pieces = add(engine, "abc", max_tokens=0)
    run(engine)
    assert texts(request) == [""]
    assert [piece.finish_reason for piece in pieces] == ["length"]
    assert [len(batch.logits_rows) for batch in engine.runner.batches] == [0]


def eos_after_c():
    table = cycle(7)
    table[3, 0] = 100
    return table


def test_end_of_text_counts_as_token_and_not_as_text():
    engine = make_engine(eos_after_c())
    request, pieces = add(engine, "a", temperature=0)
    ignoring, _ = add(engine, "a", temperature=0, ignore_eos=True, max_tokens=5)
    run(engine)
    choice = request.sequences[0].choice()
    assert (choice.text, choice.token_ids, choice.finish_reason) == ("bc", [2, 3, 0], "stop")
    assert pieces[-1].text == ""
    assert ignoring.sequences[0].choice().token_ids == [2, 3, 0, 1, 2]


def test_min_tokens_keeps_end_of_text_and_stop_ids_away():
    engine = make_engine(eos_after_c())
    request, _ = add(engine, "a", temperature=0, min_tokens=5, stop_token_ids=[5])
    run(engine)
    assert request.sequences[0].choice().token_ids[:2] == [2, 3]
    assert not {0, 5} & set(request.sequences[0].choice().token_ids[:5])
    assert len(request.sequences[0].choice().token_ids) >= 5


def test_stop_ids_end_like_end_of_text():
    engine = make_engine()
    request, _ = add(engine, "a", temperature=0, stop_token_ids=[4])
    run(engine)
    choice = request.sequences[0].choice()
    assert (choice.text, choice.token_ids, choice.finish_reason) == ("bc", [2, 3, 4], "stop")


def test_stop_strings_end_across_tokens_and_are_not_shown():
    engine = make_engine()
    request, pieces = add(engine, "a", temperature=0, stop=["def", "zz"])
    run(engine)
    choice = request.sequences[0].choice()
    assert (choice.text, choice.token_ids, choice.finish_reason) == ("bc", [2, 3, 4, 5, 6], "stop")
    assert "".join(piece.text for piece in pieces) == "bc"


def test_choices_differ_and_choice_0_is_that_of_n_1():
    engine = make_engine(np.zeros((7, 7)))
    many, _ = add(engine, "a", n=3, max_tokens=10, seed=5, ignore_eos=True)
    one, _ = add(engine, "a", n=1, max_tokens=10, seed=5, ignore_eos=True)
    run(engine)
    ids = [sequence.choice().token_ids for sequence in many.sequences]
    assert len({tuple(i) for i in ids}) == 3
    assert ids[0] == one.sequences[0].choice().token_ids


class Explodes:
    def apply(self, logits, token_ids, state):
        if state.step == 2:
            raise RuntimeError("boom")


def test_a_faulty_sampler_ends_its_request_alone():
    engine = make_engine()
    faulty, pieces = add(engine, "a", sampler=[Explodes(), "greedy"])
    good, _ = add(engine, "a", max_tokens=6, temperature=0)
    run(engine)
    choice = faulty.sequences[0].choice()
    assert (choice.text, choice.finish_reason) == ("bc", "error")
    assert "Explodes" in choice.error
    assert "boom" in choice.error
    assert pieces[-1].error == choice.error
    assert texts(good) == ["bcdefa"]
    assert engine.pool.num_free == engine.pool.num_blocks


class Exits:
    def apply(self, logits, token_ids, state):
        raise SystemExit(7)


class ExitsAtStart:
    def start(self, request):
        raise SystemExit

    def apply(self, logits, token_ids, state): ...


class Renumbers:
    def apply(self, logits, token_ids, state):
        token_ids.flags.writeable = True
        token_ids[:] = 999


class LeavesNan:
    def apply(self, logits, token_ids, state):
        logits[0] = np.nan


class RemovesAll:
    def apply(self, logits, token_ids, state):
        logits[:] = -np.inf


class ReturnsLogits:
    def apply(self, logits, token_ids, state):
        return logits * 2


class SaysNothing:
    def apply(self, logits, token_ids, state):
        raise MemoryError


FAULTS = {
    Exits: "raised SystemExit: 7 (",
    ExitsAtStart: "raised in start SystemExit",
    Renumbers: "raised ValueError: ",
    LeavesNan: "left NaN for 1 of 7 candidates, at output token 0",
    RemovesAll: "removed every candidate, at output token 0",
    ReturnsLogits: "returned a ndarray; apply edits logits in place and returns None, at output token 0",
    SaysNothing: "raised MemoryError (",
}


@pytest.mark.parametrize("sampler", FAULTS, ids=lambda sampler: sampler.__name__)
def test_a_sampler_that_fails_or_gives_rubbish_ends_its_request_alone(sampler):
    engine = make_engine()
    faulty, _ = add(engine, "a", sampler=[sampler()])
    good, _ = add(engine, "a", max_tokens=6, temperature=0)
    run(engine)
    assert faulty.sequences[0].choice().finish_reason == "error"
    assert f"sampler {sampler.__name__!r}" in faulty.sequences[0].choice().error
    assert FAULTS[sampler] in faulty.sequences[0].choice().error
    assert texts(good) == ["bcdefa"]
    assert engine.pool.num_free == engine.pool.num_blocks


def test_a_model_that_gives_nan_ends_the_request_not_the_engine():
    table = cycle(7)
    table[3] = np.nan
    engine = make_engine(table)
    bad, _ = add(engine, "a", temperature=0)
    good, _ = add(engine, "d", temperature=0, max_tokens=2)
    run(engine)
    assert bad.sequences[0].choice().finish_reason == "error"
    assert "NaN" in bad.sequences[0].choice().error
    assert texts(good) == ["ef"]


def test_abort_at_any_point_frees_the_blocks():
    for steps in range(4):
        engine = make_engine(max_batched_tokens=4, max_num_seqs=2)
        running, _ = add(engine, "abcdefab", temperature=0)
        add(engine, "b", temperature=0, max_tokens=3)
        waiting, pieces = add(engine, "c", temperature=0)
        for _ in range(steps):
            engine.step()
        engine.abort(running)
        engine.abort(waiting)
        engine.abort(waiting)  # twice does no harm
        run(engine)
        assert pieces[-1].finish_reason == "aborted"
        assert engine.pool.num_free == engine.pool.num_blocks


def test_ids_beyond_the_tokenizer_are_never_drawn():
    table = np.zeros((7, 9))
    table[:, 7:] = 100
    runner = TableRunner(np.vstack([table, np.zeros((2, 9))]))
    engine = Engine(EngineConfig(max_num_seqs=4), runner, LetterTokenizer(7))
    request, _ = add(engine, "a", max_tokens=30, ignore_eos=True, seed=1, logprobs=9)
    run(engine)
    choice = request.sequences[0].choice()
    assert max(choice.token_ids) < 7
    assert all(len(one.top) == 7 for one in choice.logprobs)
    assert choice.logprobs[0].logprob == pytest.approx(-np.log(7))


def test_logprobs_are_log_softmax_before_the_chain():
    row = np.array([1.0, 3.0, 2.0, 3.0, -1.0], np.float32)
    expected = row - np.log(np.exp(row.astype(np.float64)).sum())
    one = token_logprobs(row, 2, 3)
    assert one.logprob == pytest.approx(expected[2])
    assert list(one.top) == [1, 3, 2], "most probable first, lowest id first among equals"
    assert list(one.top.values()) == pytest.approx(expected[[1, 3, 2]])
    assert token_logprobs(row, 2, 0).top == {}
    ties = np.zeros(500, np.float32)
    assert list(token_logprobs(ties, 3, 40).top) == list(range(40))


def test_logprobs_do_not_see_what_the_chain_did():
    table = np.tile(np.array([0.0, 1, 2, 0, 0, 0, 0]), (7, 1))
    engine = make_engine(table)
    request, _ = add(engine, "a", max_tokens=1, top_k=1, logprobs=1)
    run(engine)
    one = request.sequences[0].choice().logprobs[0]
    assert one.logprob == pytest.approx(2 - np.log(np.exp(table[0]).sum()))


def test_what_a_stop_string_held_back_is_shown_at_the_end():
    engine = make_engine()
    request, pieces = add(engine, "a", temperature=0, max_tokens=3, stop=["cdx"])
    run(engine)
    assert texts(request) == ["bcd"]
    assert [piece.text for piece in pieces] == ["b", "", "cd"]
