"""What the recorder says of a chain, against the same numbers worked out in plain Python."""

import math
from dataclasses import dataclass, field

import numpy as np
import pytest

import nvg.engine.output
from nvg import LLM, SamplingParams
from nvg.params import Distribution
from nvg.sampling.chain import Chain, Stage
from nvg.sampling.contract import SamplerRequest
from nvg.sampling.greedy import Greedy
from nvg.sampling.minp import MinP
from nvg.sampling.recorder import NUM_TOP, Recorder
from nvg.sampling.temperature import Temperature
from nvg.sampling.topk import TopK
from nvg.sampling.topp import TopP

PROMPT = np.array([3, 1], np.int32)
VOCAB_SIZE = 300


class Tokenizer:
    vocab_size = VOCAB_SIZE - 7
    eos_token_ids = (0,)


@dataclass(frozen=True)
class Watched:
    """A sampler, and the logits that it left: by token id."""

    spec: object
    left: list = field(default_factory=list)

    def apply(self, logits, token_ids, state):
        self.spec.apply(logits, token_ids, state)
        pairs = zip(token_ids.tolist(), logits.tolist(), strict=True)
        self.left.append({i: logit for i, logit in pairs if logit > -math.inf})


@dataclass(frozen=True)
class Wide(Watched):
    needs_vocab = True


@dataclass(frozen=True)
class Favour:
    """Raises some tokens: ranks change, and nothing is removed."""

    def apply(self, logits, token_ids, state):
        logits[token_ids % 5 == 0] += 2


def sample(specs, row, recorder, banned=()):
    request = SamplerRequest(Tokenizer(), VOCAB_SIZE, (0,), PROMPT, SamplingParams())
    stages = [Stage(f"{number}-{type(spec).__name__}", spec, "test") for number, spec in enumerate(specs)]
    return Chain(stages, request, 7, recorder=recorder).sample(row.copy(), PROMPT, PROMPT, banned=banned)


def probabilities(logits):
    """Softmax of {id: logit}."""
    top = max(logits.values())
    weights = {i: math.exp(logit - top) for i, logit in logits.items()}
    total = math.fsum(weights.values())
    return {i: weight / total for i, weight in weights.items()}


def close(value):
    return pytest.approx(value, rel=1e-12, abs=1e-15)


def check(explanation, token_id, names, points):
    """points: {id: logit} before the first stage and after each."""
    ranked = [sorted(point, key=lambda i: (-point[i], i)) for point in points]
    probs = [probabilities(point) for point in points]
    distributions = [
        Distribution(
            num_candidates=len(point),
            entropy=close(-math.fsum(p * math.log(p) for p in prob.values() if p)),
            rank=ranking.index(token_id) + 1,
            prob=close(prob[token_id]),
        )
        for point, ranking, prob in zip(points, ranked, probs, strict=True)
    ]
    assert explanation.token_id == token_id
    assert explanation.model == distributions[0]
    assert [stage.name for stage in explanation.stages] == names
    assert [stage.before for stage in explanation.stages] == distributions[:-1]
    assert [stage.after for stage in explanation.stages] == distributions[1:]
    for number, stage in enumerate(explanation.stages):
        gone = points[number].keys() - points[number + 1].keys()
        assert stage.removed == close(math.fsum(probs[number][i] for i in gone))
        assert 0 <= stage.seconds < 60
    shown = {token_id}.union(*(ranking[:NUM_TOP] for ranking in ranked))
    assert explanation.candidates.keys() == shown
    for i, row in explanation.candidates.items():
        assert list(row) == [close(prob[i]) if i in prob else None for prob in probs]
    order = [[-1 if p is None else p for p in row[::-1]] for row in explanation.candidates.values()]
    assert order == sorted(order, reverse=True)


CHAINS = [
    [],
    [Greedy()],
    [TopK(40), TopP(0.95), Temperature(0.8)],
    [Temperature(1.7), TopP(0.7), TopK(5)],
    [MinP(0.1), Favour(), TopK(12), Temperature(0.0)],
    [Favour(), TopK(0), TopP(1.0)],
    [TopK(3), Favour(), Temperature(0.001)],
]


@pytest.mark.parametrize("chain", CHAINS, ids=str)
@pytest.mark.parametrize("watched", [Watched, Wide])
@pytest.mark.parametrize("decimals", [6, 0], ids=["distinct", "ties"])
def test_numbers(chain, watched, decimals):
    rng = np.random.default_rng(5)
    for scale in (0.5, 3, 200):
        row = (rng.normal(size=VOCAB_SIZE) * scale).round(decimals).astype(np.float32)
        specs, recorder = [watched(spec) for spec in chain], Recorder()
        token_id, _ = sample(specs, row, recorder, banned=[2, 9])
        first = {i: float(row[i]) for i in range(Tokenizer.vocab_size) if i not in (2, 9)}
        names = [f"{number}-{watched.__name__}" for number in range(len(chain))]
        check(recorder.explain(token_id), token_id, names, [first, *(spec.left[0] for spec in specs)])


@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_the_draw_is_the_same_with_a_recorder(chain):
    rng = np.random.default_rng(8)
    for _ in range(20):
        row = (rng.normal(size=VOCAB_SIZE) * 2).astype(np.float32)
        assert sample(chain, row, None) == sample(chain, row, Recorder())


def test_a_formula_of_the_whole_chain():
    row = np.full(VOCAB_SIZE, -np.inf, np.float32)
    row[[10, 20, 30, 40]] = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    recorder = Recorder()
    token_id, _ = sample([TopK(3), Temperature(0.5)], row, recorder)
    explanation = recorder.explain(token_id)
    squares = [16 / 29, 9 / 29, 4 / 29]
    assert explanation.model.num_candidates == 4
    assert explanation.model.entropy == pytest.approx(1.2798542, abs=1e-6)
    assert explanation.stages[0].removed == pytest.approx(0.1, abs=1e-7)
    assert [explanation.stages[1].after.num_candidates, explanation.stages[1].removed] == [3, 0]
    assert {i: probs[-1] for i, probs in explanation.candidates.items()} == {
        10: pytest.approx(squares[0], abs=1e-6),
        20: pytest.approx(squares[1], abs=1e-6),
        30: pytest.approx(squares[2], abs=1e-6),
        40: None,
    }
    assert explanation.candidates[20] == pytest.approx((0.3, 3 / 9, squares[1]), abs=1e-6)


PARAMS = [
    {"temperature": 0},
    {"top_k": 20, "top_p": 0.9, "temperature": 1.3, "n": 3},
    {"sampler": ["topp", "temperature"], "min_tokens": 4, "logprobs": 2},
    {},
]


@pytest.mark.parametrize("options", PARAMS, ids=str)
def test_requests_that_ask_get_the_same_tokens_and_explanations(options, tiny_checkpoint, compiled_kernels):
    params = [SamplingParams(**options, max_tokens=9, seed=3, explain=explain) for explain in (False, True)]
    with LLM(str(tiny_checkpoint)) as llm:
        plain, explained = llm.generate(["The king"] * 2, params)
        pieces = list(llm.stream("The king", params[1]))
    assert [choice.token_ids for choice in plain.outputs] == [choice.token_ids for choice in explained.outputs]
    assert [choice.logprobs for choice in plain.outputs] == [choice.logprobs for choice in explained.outputs]
    assert plain.explanations is None
    for choice in explained.outputs:
        assert [one.token_id for one in choice.explanations] == choice.token_ids
        streamed = [one for piece in pieces if piece.index == choice.index for one in piece.explanations or ()]
        assert [one.candidates for one in streamed] == [one.candidates for one in choice.explanations]
    assert explained.explanations is explained.outputs[0].explanations


def test_requests_that_do_not_ask_have_no_recorder(tiny_checkpoint, compiled_kernels, monkeypatch):
    def never():
        raise AssertionError("a recorder was made")

    monkeypatch.setattr(nvg.engine.output, "Recorder", never)
    with LLM(str(tiny_checkpoint)) as llm:
        (output,) = llm.generate("The king", SamplingParams(max_tokens=3))
    assert (output.error, output.explanations) == (None, None)


def test_explain_is_a_yes_or_no():
    with pytest.raises(ValueError, match="explain is 3; it must be True or False"):
        SamplingParams(explain=3)
