"""Who runs when: slots, room in the pool, preemption, choices that run together, contexts that slide."""

import numpy as np
import pytest
from fakes import SMALL_BLOCK, HistoryRunner, LetterTokenizer, with_small_blocks

from nvg.engine.engine import Engine
from nvg.engine.sequence import Request
from nvg.errors import ParameterError
from nvg.params import EngineConfig, SamplingParams
from nvg.sampling.compose import resolve

CONTEXT = 32


def make_engine(num_blocks=100, max_num_seqs=8, max_num_batched_tokens=16, **options):
    config = EngineConfig(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        kv_memory=num_blocks * SMALL_BLOCK * 4,
        **options,
    )
    runner = HistoryRunner(8, max_model_len=CONTEXT, max_batched_tokens=64, max_logits_rows=16)
    return Engine(with_small_blocks(config), runner, LetterTokenizer(8))


def add(engine, prompt, **params):
    params = SamplingParams(**{"temperature": 0, "ignore_eos": True, **params})
    request = Request(None, list(prompt), params, params.seed or 0, resolve(params), lambda piece: None)
    engine.check(request)
    engine.add(request)
    return request


def run(engine):
    for _ in range(1000):
        engine.step()
    assert not engine.has_work


def tokens(request):
    return [sequence.choice().token_ids for sequence in request.sequences]


def tokens_so_far(request):
    return request.sequences[0].output_token_ids.tolist()


def step_tokens(engine):
    """How many tokens each of the last step's sequences had."""
    return np.diff(engine.runner.batches[-1].query_offsets).tolist()


def alone(prompt, **params):
    engine = make_engine()
    request = add(engine, prompt, **params)
    run(engine)
    return tokens(request)


def test_the_newest_is_preempted_when_the_pool_is_full():
    engine = make_engine(num_blocks=6)
    old, new = add(engine, [1, 2, 3], max_tokens=18), add(engine, [3, 2, 1], max_tokens=14)
    while not engine.stats.preemptions and engine.has_work:
        engine.step()
    assert (old.sequences[0].kv.num_tokens, new.sequences[0].kv.num_tokens) == (13, 0)
    run(engine)
    assert tokens(old) == alone([1, 2, 3], max_tokens=18)
    assert tokens(new) == alone([3, 2, 1], max_tokens=14)
    assert engine.stats.preemptions == 1
    assert engine.stats.cached_tokens, "of what it had computed, some was still there"
    assert engine.pool.num_free == 6


def test_a_preempted_request_can_be_aborted():
    engine = make_engine(num_blocks=6)
    old, new = add(engine, [1, 2, 3], max_tokens=18), add(engine, [3, 2, 1], max_tokens=14)
    while not engine.stats.preemptions:
        engine.step()
    had = tokens_so_far(new)
    assert had, "it had begun"
    engine.abort(new)
    assert (new.sequences[0].choice().finish_reason, tokens(new)) == ("aborted", [had])
    run(engine)
    assert tokens(old) == alone([1, 2, 3], max_tokens=18)
    assert engine.pool.num_free == 6


def test_the_preempted_come_back_in_their_order_and_before_the_others():
    engine = make_engine(num_blocks=9)
    first = add(engine, [1], max_tokens=30)
    others = [add(engine, [2 + i], max_tokens=14) for i in range(3)]
    finished = []
    while engine.has_work:
        engine.step()
        finished += [request for request in (first, *others) if not request.live and request not in finished]
    assert engine.stats.preemptions > 1
    assert [request for request in finished if request is not first] == others


def test_a_prompt_takes_the_room_of_newer_prompts():
    engine = make_engine(num_blocks=8, max_num_batched_tokens=4)
    old = add(engine, [1] * 20, max_tokens=2)
    engine.step()
    new = add(engine, [2] * 4, max_tokens=2)
    engine._scheduler._running.append(engine._scheduler._waiting.popleft())  # let in before there was room for both
    hoard = engine.pool.allocate(6)
    engine._kv.reserve(new.sequences[0].kv, 4)
    engine.step()
    assert (old.sequences[0].kv.num_tokens, new.sequences[0].kv.num_blocks) == (8, 0)
    engine.step()
    assert not engine._scheduler.schedule(), "nobody is left to take from, and the newer one must not overtake"
    engine.pool.release(hoard)
    run(engine)
    assert tokens(old) == alone([1] * 20, max_tokens=2)
    assert tokens(new) == alone([2] * 4, max_tokens=2)


def test_nobody_is_admitted_without_room_to_grow():
    engine = make_engine(num_blocks=4)
    add(engine, [1] * 7, max_tokens=8)
    add(engine, [2] * 4, max_tokens=8)
    engine.step()
    assert (engine.num_running, engine.num_waiting) == (1, 1), "two and one blocks, and one more each"
    engine = make_engine(num_blocks=5)
    add(engine, [1] * 7, max_tokens=8)
    add(engine, [2] * 4, max_tokens=8)
    engine.step()
    assert (engine.num_running, engine.num_waiting) == (2, 0)


def test_a_shared_prompt_needs_room_once():
    engine = make_engine(num_blocks=7, max_num_batched_tokens=40)
    first = add(engine, [1] * 17, max_tokens=3)
    engine.step()
    second = add(engine, [1] * 17, max_tokens=3)
    engine.step()
    assert engine.num_running == 2
    assert (first.num_cached_tokens, second.num_cached_tokens, engine.stats.cached_tokens) == (0, 16, 16)
    run(engine)
    assert tokens(first) == tokens(second) == alone([1] * 17, max_tokens=3)
    assert second.output().num_cached_tokens == 16


def test_prompts_that_come_together_are_computed_once():
    engine = make_engine(max_num_batched_tokens=16)
    requests = [add(engine, [*[1] * 16, 2 + i], max_tokens=2) for i in range(4)]
    run(engine)
    assert [request.num_cached_tokens for request in requests] == [0, 16, 16, 16]
    assert engine.stats.prefill_tokens == 16 + 4


def test_choices_compute_the_prompt_once_and_run_together():
    engine = make_engine()
    request = add(engine, [1, 2, 3, 4, 5, 6], n=3, max_tokens=5, temperature=None, seed=1)
    engine.step()
    assert step_tokens(engine) == [6]
    assert engine.pool.num_blocks - engine.pool.num_free == 2, "and keep it once"
    engine.step()
    assert step_tokens(engine) == [1, 1, 1]
    assert engine.pool.num_blocks - engine.pool.num_free == 4, "the full block is common, the other is copied"
    run(engine)
    assert len({tuple(one) for one in tokens(request)}) == 3
    assert engine.pool.num_free == engine.pool.num_blocks


class Adds:
    """Changes logits in place, and keeps what it saw."""

    def __init__(self):
        self.seen = []

    def apply(self, logits, token_ids, state):
        if state.step == 0:
            self.seen.append(logits.copy())
            logits += np.arange(logits.size, dtype=np.float32)


def test_choices_begin_from_the_same_logits():
    engine = make_engine()
    sampler = Adds()
    add(engine, [1, 2, 3], n=3, max_tokens=2, sampler=[sampler], temperature=None)
    run(engine)
    assert len(sampler.seen) == 3
    assert all((row == sampler.seen[0]).all() for row in sampler.seen)


def test_choices_are_admitted_and_preempted_together():
    engine = make_engine(num_blocks=14, max_num_seqs=4)
    prompts = [5] * 13, [6, 5, 4, 3, 2]
    first = add(engine, prompts[0], max_tokens=18)
    group = add(engine, prompts[1], n=3, max_tokens=12, temperature=None, seed=2)
    late = add(engine, [7], max_tokens=2)
    while engine.has_work:
        engine.step()
        lengths = {len(sequence.output_token_ids) for sequence in group.live}
        assert len(lengths) <= 1, "they draw in the same steps"
        if engine._scheduler._waiting and engine._scheduler._waiting[0] is group:
            assert not any(sequence.kv.num_blocks for sequence in group.live)
            assert late in engine._scheduler._waiting, "nobody overtakes"
    assert engine.stats.preemptions == 1
    assert tokens(first) == alone(prompts[0], max_tokens=18)
    assert tokens(group) == alone(prompts[1], n=3, max_tokens=12, temperature=None, seed=2)


def test_more_choices_than_slots_are_refused():
    with pytest.raises(ParameterError, match="n is 5; at most 4 sequences run at once: lower n or raise max_num_seqs"):
        add(make_engine(max_num_seqs=4), [1], n=5)
    with pytest.raises(ParameterError, match=r"needs 10 blocks of 4 KV entries, the pool has 8: .* or n$"):
        add(make_engine(num_blocks=8), [1, 2, 3, 4, 5], n=3, max_tokens=9)
    add(make_engine(num_blocks=10), [1, 2, 3, 4, 5], n=3, max_tokens=9)


def test_prefill_beside_decodes_is_bounded():
    engine = make_engine(max_num_batched_tokens=16, max_prefill_tokens=3)
    for i in range(2):
        add(engine, [1 + i], max_tokens=30)
    engine.step()
    add(engine, [3] * 30, max_tokens=2)
    engine.step()
    assert step_tokens(engine) == [1, 1, 4], "twice as many as decode"
    engine.abort(engine.requests[0])
    engine.step()
    assert step_tokens(engine) == [1, 3], "or max_prefill_tokens"
    engine.abort(engine.requests[0])
    engine.step()
    assert step_tokens(engine) == [16], "or all, if nobody waits"


def test_prefill_is_not_held_back_where_nobody_waits_for_single_tokens():
    engine = make_engine(max_num_batched_tokens=16, max_prefill_tokens=5)
    for i in range(2):
        add(engine, [1 + i], max_tokens=30).is_watched = False
    engine.step()
    add(engine, [3] * 28, max_tokens=2)
    engine.step()
    assert step_tokens(engine) == [1, 1, 14]
    engine.requests[1].is_watched = True
    engine.step()
    assert step_tokens(engine) == [1, 1, 5]


def test_slots_are_filled_while_work_waits():
    engine = make_engine(max_num_seqs=3)
    for i in range(10):
        add(engine, [1 + i % 7] * (1 + i), max_tokens=1 + i % 4)
    while engine.has_work:
        engine._scheduler.schedule()
        assert engine.num_running == 3 or not engine.num_waiting
        engine.step()


def test_a_full_context_ends_the_text_or_is_refused_or_slides():
    stop = alone([1] * 30, max_tokens=9)[0]
    assert len(stop) == 2
    with pytest.raises(
        ParameterError, match="has 30 tokens and max_tokens is 9, the context holds 32: lower max_tokens"
    ):
        add(make_engine(), [1] * 30, max_tokens=9, on_full="error")
    assert alone([1] * 30, max_tokens=2, on_full="error") == [stop]
    slid = alone([1] * 30, max_tokens=40, on_full="slide")[0]
    assert len(slid) == 40
    assert slid[:2] == stop
    whole = [*[1] * 30, *slid]
    for length, end in ((32, 48), (48, 64), (64, 70)):  # each time the last half of 32 tokens goes on
        assert alone(whole[length - 16 : length], max_tokens=end - length)[0] == whole[length:end]


def test_a_prompt_that_fills_the_context_slides_at_once():
    prompt = [1, 2, 3, 4] * 8
    assert alone(prompt, max_tokens=5, on_full="slide", n=2) == alone(prompt[16:], max_tokens=5, n=2)
    assert alone(prompt, max_tokens=0, on_full="slide") == [[]]


def test_prompt_logprobs_are_those_of_the_output():
    engine = make_engine()
    first = add(engine, [1, 2], max_tokens=12, logprobs=2)
    run(engine)
    choice = first.sequences[0].choice()
    again = add(engine, [1, 2, *choice.token_ids], max_tokens=1, prompt_logprobs=2)
    run(engine)
    told = again.output().prompt_logprobs
    assert told[0] is None
    assert told[2:] == choice.logprobs
    assert again.num_cached_tokens == 0, "they do not read the prefix cache"


@pytest.mark.parametrize(("num_blocks", "num_preemptions"), [(12, 0), (8, 1)])
def test_requests_go_on_between_pieces_of_logits_or_make_room_for_them(num_blocks, num_preemptions):
    engine = make_engine(num_blocks=num_blocks)
    request = add(engine, [1, 2, 3], max_tokens=20)
    for _ in range(8):
        engine.step()
    results = []

    def work():
        results.append((yield from engine.logits([5] * 28)))

    for _ in work():
        engine.step()
    assert results[0].shape == (28, 8)
    assert engine._scheduler.num_preemptions == num_preemptions
    assert engine.stats.steps == 9 - num_preemptions
    run(engine)
    assert tokens(request) == alone([1, 2, 3], max_tokens=20)
    assert engine.pool.num_free == num_blocks
