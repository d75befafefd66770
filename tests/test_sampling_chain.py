import math
import re
from dataclasses import dataclass, field

import numpy as np
import pytest

from nvg.errors import EngineError, SamplerError
from nvg.params import SamplingParams
from nvg.sampling.chain import Chain, Stage
from nvg.sampling.contract import Sampler, SamplerRequest
from nvg.sampling.greedy import Greedy
from nvg.sampling.minp import MinP
from nvg.sampling.random import uniform
from nvg.sampling.temperature import Temperature
from nvg.sampling.topk import TopK
from nvg.sampling.topp import TopP

PROBABILITIES = [0.08, 0.34, 0.02, 0.21, 0.3, 0.05]
PROMPT = np.array([3, 1], dtype=np.int32)


class TinyTokenizer:
    eos_token_ids = (0,)

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size


def make_chain(*specs, seed=7, choice=0, vocab_size=6, num_ids=None) -> Chain:
    tokenizer = TinyTokenizer(num_ids or vocab_size)
    request = SamplerRequest(tokenizer, vocab_size, (0,), PROMPT, SamplingParams())
    return Chain([Stage(type(spec).__name__, spec, "test 1.0") for spec in specs], request, seed, choice)


def row() -> np.ndarray:
    return (np.log(PROBABILITIES) + 2).astype(np.float32)


def generate(chain: Chain, num_tokens: int) -> list[tuple[int, float]]:
    output: list[int] = []
    drawn = []
    for _ in range(num_tokens):
        drawn.append(chain.sample(row(), PROMPT, np.array(output, dtype=np.int32)))
        output.append(drawn[-1][0])
    return drawn


@dataclass(frozen=True)
class Spy:
    """Notes what it sees."""

    seen: list = field(default_factory=list)

    def apply(self, logits, token_ids, state):
        self.seen.append((logits.copy(), token_ids, state))


@dataclass(frozen=True)
class WideSpy(Spy):
    needs_vocab = True


@dataclass(frozen=True)
class Function:
    """Whatever a test makes of it."""

    function: object

    def apply(self, logits, token_ids, state):
        return self.function(logits, token_ids, state)


def test_built_ins_keep_the_contract():
    assert all(isinstance(spec, Sampler) for spec in (Greedy(), Temperature(), TopK(), TopP(), MinP()))


def test_the_draw_follows_the_chain_s_distribution():
    chain = make_chain(TopK(4), TopP(0.85), Temperature(0.5))
    # Of 0.34 0.30 0.21 0.08, three reach 0.85 of the 0.93; then they are squared.
    squares = {token_id: PROBABILITIES[token_id] ** 2 for token_id in (1, 3, 4)}
    expected = {token_id: square / sum(squares.values()) for token_id, square in squares.items()}
    num_draws = 4000
    counts = dict.fromkeys(expected, 0)
    for position in range(num_draws):
        token_id, logprob = chain.sample(row(), PROMPT, np.zeros(position, dtype=np.int32))
        counts[token_id] += 1
        assert logprob == pytest.approx(math.log(expected[token_id]), abs=1e-5)
    chi_square = sum((counts[i] - num_draws * p) ** 2 / (num_draws * p) for i, p in expected.items())
    assert chi_square < 13.8  # 2 degrees of freedom: exceeded once in a thousand seeds


def test_an_empty_chain_draws_from_the_model():
    token_id, logprob = make_chain().sample(row(), PROMPT, PROMPT)
    assert logprob == pytest.approx(math.log(PROBABILITIES[token_id]), abs=1e-6)


def test_greedy_is_certain():
    assert generate(make_chain(Greedy()), 2) == [(1, 0.0), (1, 0.0)]
    assert generate(make_chain(Temperature(0)), 1) == [(1, 0.0)]


def test_the_same_seed_gives_the_same_tokens():
    chain = (TopP(0.9), Temperature(1.3))
    first = generate(make_chain(*chain, seed=2**64 - 1), 40)
    assert generate(make_chain(*chain, seed=2**64 - 1), 40) == first
    assert generate(make_chain(*chain, seed=5), 40) != first
    assert generate(make_chain(*chain, seed=2**64 - 1, choice=1), 40) != first


def test_adding_a_stage_does_not_shift_the_draw():
    drawing = Function(lambda logits, token_ids, state: state.uniform() and None)
    assert generate(make_chain(TopK(0), drawing, TopP(1.0)), 40) == generate(make_chain(), 40)


def test_uniform_is_counted_by_stage_position_and_draw():
    numbers = []

    def note(logits, token_ids, state):
        numbers.append((state.step, state.uniform(), state.uniform()))

    generate(make_chain(TopK(0), Function(note), seed=9, choice=2), 2)
    assert numbers == [(step, uniform(9, 2, step, 1, 0), uniform(9, 2, step, 1, 1)) for step in (0, 1)]


def test_candidates_are_compacted_in_ascending_order():
    spy = Spy()
    make_chain(TopK(3), spy).sample(row(), PROMPT, PROMPT)
    ((logits, token_ids, state),) = spy.seen
    assert token_ids.tolist() == [1, 3, 4]
    assert token_ids.dtype == np.int32
    np.testing.assert_array_equal(logits, row()[[1, 3, 4]])
    assert logits.dtype == np.float32
    assert state.step == 2
    assert state.prompt_token_ids.tolist() == state.output_token_ids.tolist() == [3, 1]
    for array in (token_ids, state.prompt_token_ids, state.output_token_ids):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_the_callers_arrays_stay_writable():
    prompt = PROMPT.copy()
    make_chain(Spy()).sample(row(), prompt, prompt)
    assert prompt.flags.writeable


def test_needs_vocab_sees_the_whole_vocabulary():
    narrow, wide, late = Spy(), WideSpy(), Spy()
    make_chain(TopK(3), narrow, wide, late, num_ids=5).sample(row(), PROMPT, PROMPT, banned=[1])
    for spy in (narrow, wide):
        logits, token_ids, _ = spy.seen[0]
        assert token_ids.tolist() == [0, 1, 2, 3, 4, 5]
        assert np.isfinite(logits).tolist() == [True, False, False, True, True, False]
    assert late.seen[0][1].tolist() == [0, 3, 4]


def test_compaction_changes_no_token():
    chain = (TopK(4), Temperature(0.7), TopP(0.8))
    assert generate(make_chain(*chain), 40) == generate(make_chain(*chain, WideSpy()), 40)


def test_what_is_removed_stays_removed():
    @dataclass(frozen=True)
    class Reviver:
        needs_vocab = True

        def apply(self, logits, token_ids, state):
            logits[:] = 0

    chain = make_chain(TopK(2), Reviver(), num_ids=4)
    tokens = {chain.sample(row(), PROMPT, np.zeros(i, dtype=np.int32), banned=(1,))[0] for i in range(30)}
    assert tokens == {0, 3}


def test_banned_ids_and_ids_beyond_the_tokenizer_are_no_candidates():
    spy = Spy()
    token_id, logprob = make_chain(spy, num_ids=4).sample(row(), PROMPT, PROMPT, banned=np.array([1, 0, 99]))
    assert spy.seen[0][1].tolist() == [2, 3]
    assert logprob == pytest.approx(math.log(PROBABILITIES[token_id] / 0.23), abs=1e-6)


def test_a_sampler_with_state():
    @dataclass(frozen=True)
    class NoRepeat:
        """Never the same token twice."""

        log: list = field(default_factory=list)

        def start(self, request):
            self.log.append(("start", request.prompt_token_ids.tolist(), request.vocab_size))
            return NoRepeatSequence(self.log)

    class NoRepeatSequence:
        def __init__(self, log):
            self.log = log
            self.used = []

        def apply(self, logits, token_ids, state):
            assert state.output_token_ids.tolist() == self.used
            logits[np.isin(token_ids, self.used)] = -np.inf

        def accept(self, token_id, logprob):
            self.used.append(token_id)
            self.log.append((token_id, logprob))

    spec = NoRepeat()
    drawn = generate(make_chain(spec), 6)
    assert sorted(token_id for token_id, _ in drawn) == [0, 1, 2, 3, 4, 5]
    assert spec.log == [("start", [3, 1], 6), *drawn]
    assert drawn[-1][1] == 0.0
    assert sorted(token_id for token_id, _ in generate(make_chain(spec, seed=8), 6)) == [0, 1, 2, 3, 4, 5]


def failing(logits, token_ids, state):
    raise KeyError("the weights\nare missing")


def nan(logits, token_ids, state):
    logits[1:3] = np.nan


def infinite(logits, token_ids, state):
    logits[0] = np.inf


def removing(logits, token_ids, state):
    logits[:] = -np.inf


@pytest.mark.parametrize(
    ("function", "fault"),
    [
        (failing, "raised KeyError: 'the weights\\nare missing'"),
        (nan, "left NaN for 2 of 4 candidates"),
        (infinite, "left +inf for 1 of 4 candidates"),
        (removing, "removed every candidate"),
        (lambda logits, *_: logits * 2, "returned a ndarray; apply edits logits in place and returns None"),
    ],
)
def test_faulty_samplers_are_named(function, fault):
    chain = make_chain(TopK(4), Function(function), TopP(0.9))
    with pytest.raises(SamplerError) as caught:
        chain.sample(row(), PROMPT, np.zeros(5, dtype=np.int32))
    shown = re.sub(r" \(test_sampling_chain.py, line \d+\)", "", str(caught.value))
    assert shown == f"sampler 'Function' of test 1.0 {fault}, at output token 5"


def test_faults_of_start_and_accept_are_named():
    @dataclass(frozen=True)
    class Starting:
        result: object

        def start(self, request):
            if isinstance(self.result, Exception):
                raise self.result
            return self.result

    class Accepting(Spy):
        def accept(self, token_id, logprob):
            raise RuntimeError("no more")

    with pytest.raises(
        SamplerError,
        match=r".Starting. of test 1.0 raised in start ValueError: no tokenizer \(test_sampling_chain.py, line",
    ):
        make_chain(Starting(ValueError("no tokenizer")))
    with pytest.raises(SamplerError, match=r"returned a NoneType from start, which has no method apply$"):
        make_chain(Starting(None))
    with pytest.raises(
        SamplerError,
        match=r"raised in accept RuntimeError: no more \(test_sampling_chain.py, line \d+\), at output token 2$",
    ):
        make_chain(Starting(Accepting())).sample(row(), PROMPT, PROMPT)


def test_a_row_that_can_t_be_drawn_from_is_the_model_s_fault():
    logits = row()
    logits[2] = np.nan
    with pytest.raises(EngineError, match=r"the model left NaN for 1 of 6 candidates at output token 0"):
        make_chain(Greedy()).sample(logits, PROMPT, PROMPT[:0])
    with pytest.raises(EngineError, match=r"no token is left to draw at output token 0: all are banned"):
        make_chain(Greedy()).sample(row(), PROMPT, PROMPT[:0], banned=range(6))


@pytest.mark.parametrize("left", [2, 1023, 1024, 1025, 4999])
@pytest.mark.parametrize("by_model", [True, False])
def test_of_a_long_row_what_is_left_goes_on(left, by_model):
    rng = np.random.default_rng(left)
    kept = np.sort(rng.choice(5000, left, replace=False))
    logits = rng.standard_normal(5000).astype(np.float32)
    expected = logits[kept]
    keep, spy = KeepIds(tuple(kept)), Spy()
    if by_model:
        keep.apply(logits, np.arange(5000), None)
    chain = make_chain(*([] if by_model else [keep]), spy, vocab_size=5000)
    token_id, _ = chain.sample(logits, PROMPT, np.array([], dtype=np.int32))
    np.testing.assert_array_equal(spy.seen[0][0], expected)
    np.testing.assert_array_equal(spy.seen[0][1], kept)
    assert token_id in kept


@dataclass(frozen=True)
class KeepIds:
    ids: tuple

    def apply(self, logits, token_ids, state):
        logits[~np.isin(token_ids, self.ids)] = -np.inf
