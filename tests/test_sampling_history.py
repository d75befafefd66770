"""Samplers that look at the text so far, or at chosen tokens, against what they are written out element by element."""

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from rows import State, WordTokenizer, left, random_rows, read_only, request

from nvg.errors import ParameterError, SamplerError
from nvg.sampling.banned import Banned
from nvg.sampling.chain import Chain, Stage
from nvg.sampling.dry import DRY
from nvg.sampling.forcedprefix import ForcedPrefix
from nvg.sampling.logitbias import LogitBias
from nvg.sampling.minlength import MinLength
from nvg.sampling.norepeatngram import NoRepeatNGram
from nvg.sampling.penalties import Penalties
from nvg.sampling.topk import TopK


def texts(count, most_ids, seed=0):
    """Prompts and outputs of few different tokens, so that much repeats; either may be empty."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        num_ids = int(rng.integers(1, most_ids + 1))
        sizes = rng.integers(0, 60, 2) * (rng.random(2) < 0.9)
        yield tuple(rng.integers(0, num_ids, size).tolist() for size in sizes)


def candidates(seed, vocab_size=12):
    """(logits, ids): all ids or some of them, with holes or without."""
    rng = np.random.default_rng(seed)
    ids = np.flatnonzero(rng.random(vocab_size) < rng.choice([0.4, 1.0]))
    ids = ids if ids.size else np.array([vocab_size - 1])
    logits = (rng.standard_normal(ids.size) * 3).astype(np.float32)
    logits[rng.random(ids.size) < 0.2] = -np.inf
    logits[rng.integers(ids.size)] = rng.choice([-1.0, 0.0, 2.0])
    return logits, ids


@pytest.mark.parametrize(
    "spec",
    [
        Penalties(1.3),
        Penalties(0.8, last_n=-1),
        Penalties(1.0, 0.7, 0.0, 7),
        Penalties(1.0, 0.0, 0.4, -1),
        Penalties(1.5, -0.3, 0.2, 20),
        Penalties(2.0, 1.0, 1.0, 0),
    ],
)
def test_penalties(spec):
    for number, (prompt, output) in enumerate(texts(60, 12)):
        logits, ids = candidates(number)
        text = prompt + output
        counts = Counter(text if spec.last_n < 0 else text[len(text) - min(spec.last_n, len(text)) :])
        expected = []
        for logit, token_id in zip(logits.tolist(), ids.tolist(), strict=True):
            if counts[token_id]:
                logit = logit / spec.repetition if logit > 0 else logit * spec.repetition
                logit -= spec.presence + spec.frequency * counts[token_id]
            expected.append(logit)
        after = left(spec, logits, State(prompt, output), ids)
        np.testing.assert_allclose(after, np.array(expected), rtol=1e-6)


def test_penalties_never_make_a_candidate_vanish():
    after = left(Penalties(1e30, 1e38, 1e38), [-3e38, 3e38, 5.0], State([0, 1, 1, 1, 1]))
    assert np.isfinite(after).all()
    assert np.isfinite(left(Penalties(1e-38), [3e38, 5.0], State([0]))).all()


def longest_repetition(text, token_id, breaks):
    """Of how many tokens is `token_id` the continuation: at most, and as the text ends with, not beyond a break."""
    best = 0
    for end in range(len(text) - 1):
        if text[end + 1] != token_id:
            continue
        length = 0
        while (
            length <= end and text[end - length] == text[len(text) - 1 - length] and not breaks[len(text) - 1 - length]
        ):
            length += 1
        best = max(best, length)
    return best


@pytest.mark.parametrize(
    "spec", [DRY(), DRY(1.0, 1.0, 1, -1), DRY(0.5, 2.0, 3, 25), DRY(2.0, 1.75, 2, 4), DRY(0.0), DRY(last_n=0)]
)
def test_dry(spec):
    words = ["a", "b", "\n", "c:", "d", "e", "f", "g", "h", "i", "j", "k"]
    tokenizer = WordTokenizer(words)
    is_break = [any(mark in word for mark in spec.breakers) for word in words]
    num_punished = 0
    for number, (prompt, output) in enumerate(texts(150, 5, seed=1)):
        logits, ids = candidates(number)
        sampler = spec.start(request(12, prompt, tokenizer))
        for token_id in output:
            sampler.accept(token_id, -1.0)
        text = prompt + output
        window = text if spec.last_n < 0 else text[len(text) - min(spec.last_n, len(text)) :]
        expected = logits.astype(np.float64)
        for i, token_id in enumerate(ids.tolist()):
            length = longest_repetition(window, token_id, [is_break[t] for t in window])
            if length >= spec.allowed_length and not is_break[token_id]:
                expected[i] -= spec.multiplier * spec.base ** (length - spec.allowed_length)
                num_punished += 1
        np.testing.assert_allclose(left(sampler, logits, State(prompt, output), ids), expected, rtol=1e-5)
    assert num_punished > 40 or spec.last_n in (0, 4)


def test_dry_breakers_may_span_tokens():
    tokenizer = WordTokenizer(["x", "y", "<", "/", ">", "</z"])
    text = [0, 1, 5, 4, 0, 1, 5, 4]  # x y </z > x y </z >
    after = left(DRY(breakers=("</z>",)).start(request(6, text, tokenizer)), np.zeros(6), State(text))
    assert after.tolist() == [0.0] * 6
    after = left(DRY(breakers=("zz",)).start(request(6, text, tokenizer)), np.zeros(6), State(text))
    assert after.tolist() == [pytest.approx(-0.8 * 1.75**2), 0, 0, 0, 0, 0]
    after = left(DRY(breakers=("/z",)).start(request(6, [*text, 0], tokenizer)), np.zeros(6), State([*text, 0]))
    assert after.tolist() == [0, pytest.approx(-0.8), 0, 0, 0, 0]  # "> x" is all since the breaker


def test_dry_grows_without_bound_but_stays_finite():
    text = [3] * 2000
    after = left(DRY(5.0, 4.0).start(request(6, text)), np.zeros(6), State(text))
    assert np.isfinite(after).all()
    assert after[3] < -1e37
    assert after[[0, 1, 2, 4, 5]].tolist() == [0.0] * 5


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_no_ngram_comes_twice(n):
    for number, (prompt, output) in enumerate(texts(80, 4, seed=2)):
        logits, ids = candidates(number)
        text = prompt + output
        seen = {tuple(text[i : i + n]) for i in range(len(text) - n + 1)}
        end = tuple(text[len(text) - n + 1 :]) if n > 1 else ()
        repeats = np.array([len(end) == n - 1 and (*end, token_id) in seen for token_id in ids.tolist()])
        expected = np.where(repeats, -np.inf, logits)
        if not (expected > -np.inf).any():
            expected = logits
        assert left(NoRepeatNGram(n), logits, State(prompt, output), ids).tolist() == expected.tolist()
    assert left(NoRepeatNGram(0), [1.0], State([0, 0, 0])).tolist() == [1.0]


def test_banned_words_and_sequences():
    words = ["the", " ", "king", " king", "dom", "s", "!"]
    tokenizer = WordTokenizer(words)

    def after(spec, prompt=(), output=(), ids=None):
        sampler = spec.start(request(7, prompt, tokenizer))
        logits = np.zeros(7 if ids is None else len(ids))
        return np.flatnonzero(left(sampler, logits, State(prompt, output), ids) == -np.inf).tolist()

    assert after(Banned(words=("king",))) == [2, 3]
    assert after(Banned(words=(" king",))) == [3]
    assert after(Banned(words=("kings",))) == []
    assert after(Banned(words=("kings",)), [2]) == [5]
    assert after(Banned(words=("kings",)), [0], [3]) == [5]
    assert after(Banned(words=("kings",)), [2, 4]) == []
    assert after(Banned(ids=(0, 6))) == [0, 6]
    assert after(Banned(ids=(0, 6)), ids=[1, 2, 6]) == [2]
    assert after(Banned(sequences=((0, 1, 2), (1, 4), (5,)))) == [5]
    assert after(Banned(sequences=((0, 1, 2), (1, 4), (5,))), [0], [1]) == [2, 4, 5]
    assert after(Banned(sequences=((0, 1, 2), (1, 4), (5,))), [], [1]) == [4, 5]
    assert after(Banned()) == []


def test_what_is_banned_never_comes():
    spec = Banned(ids=(0, 1), sequences=((2, 3), (4, 2, 2)))
    chain = Chain([Stage("banned", spec, "test")], request(6), seed=3)
    text = []
    for _ in range(400):
        text.append(chain.sample(np.zeros(6, np.float32), read_only([]), np.array(text, np.int32))[0])
    assert {2, 3, 4, 5} == set(text)
    pairs = set(pairwise(text))
    assert (2, 3) not in pairs
    assert {(2, 2), (4, 2), (4, 3)} < pairs
    assert (4, 2, 2) not in set(zip(text, text[1:], text[2:], strict=False))


def test_a_row_of_banned_tokens_ends_the_request():
    stages = [Stage("topk", TopK(1), "test"), Stage("banned", Banned(ids=(3,)), "nvg")]
    chain = Chain(stages, request(6), seed=3)
    with pytest.raises(SamplerError, match=r"sampler 'banned' of nvg removed every candidate, at output token 0"):
        chain.sample(np.array([0, 0, 0, 1, 0, 0], np.float32), read_only([]), read_only([]))


def test_logit_bias():
    tokenizer = WordTokenizer(["the", " ", "king", " king", "dom"])

    def after(spec, prompt=(), output=()):
        return left(spec.start(request(5, prompt, tokenizer)), np.zeros(5), State(prompt, output)).tolist()

    assert after(LogitBias(ids={0: 1.5, 3: -math.inf})) == [1.5, 0, 0, -np.inf, 0]
    assert after(LogitBias(words={"king": -2, " king": 2.5})) == [0, 0, -2, 2.5, 0]
    assert after(LogitBias({2: 1}, {"king": 1.5})) == [0, 0, 2.5, 0, 0]
    assert after(LogitBias(words={"kingdom": 4})) == [0, 0, 0, 0, 0]
    assert after(LogitBias(words={"kingdom": 4, " kingdom": 1}), [0], [2]) == [0, 0, 0, 0, 4]
    most = np.finfo(np.float32).max
    assert left(LogitBias(ids={0: 3e38}).start(request(2)), [3e38, 0.0]).tolist() == [most, 0]
    assert left(LogitBias(ids={0: -3e38}).start(request(2)), [-3e38, 0.0]).tolist() == [-most, 0]
    for row in random_rows(10):
        big = left(LogitBias(ids={0: 3e38, 1: -3e38} if row.size > 1 else {0: 3e38}).start(request(row.size)), row)
        assert (np.isfinite(big) == np.isfinite(row)).all()


def test_minimum_length():
    sampler = MinLength(3).start(request(5, eos_token_ids=(1, 4)))
    for step in range(5):
        after = left(sampler, np.zeros(5), State([1, 1, 1, 1], [0] * step))
        assert np.flatnonzero(after == -np.inf).tolist() == ([1, 4] if step < 3 else [])
    assert left(sampler, [-np.inf, 2.0], State(), [0, 4]).tolist() == [-np.inf, 2.0]
    assert left(MinLength(3).start(request(5)), np.zeros(5)).tolist() == [0] * 5


def test_forced_prefix():
    tokenizer = WordTokenizer(["the", " ", "king", " king", "dom"])
    for spec in (ForcedPrefix("the kingdom"), ForcedPrefix(ids=(0, 3, 4))):
        chain = Chain([Stage("forcedprefix", spec, "test")], request(5, (), tokenizer), seed=3)
        text = []
        for _ in range(300):
            drawn = chain.sample(np.arange(5, dtype=np.float32), read_only([2]), np.array(text, np.int32))
            assert drawn[1] == 0.0 or len(text) >= 3
            text.append(drawn[0])
        assert text[:3] == [0, 3, 4]
        assert set(text[3:]) > {2, 3, 4}
    assert left(ForcedPrefix().start(request(5, (), tokenizer)), np.zeros(5)).tolist() == [0] * 5
    chain = Chain([Stage("topk", TopK(1), "t"), Stage("forcedprefix", ForcedPrefix(ids=(0,)), "t")], request(5), 3)
    with pytest.raises(SamplerError, match="token 0 of the prefix is no candidate; put this stage first"):
        chain.sample(np.arange(5, dtype=np.float32), read_only([]), read_only([]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Banned(sequences=((),)), "sequences has an empty sequence"),
        (lambda: Banned(ids=(6,)).start(request(6)), "token id 6 does not exist; ids are 0 to 5"),
        (lambda: Banned(words=("",)).start(request(6)), "a text is empty"),
        (lambda: LogitBias(ids={-1: 2.0}).start(request(6)), "token id -1 does not exist"),
        (lambda: LogitBias(ids={1: math.inf}), "ids has inf for 1; it must be a number, or -inf"),
        (lambda: LogitBias(words={"a": math.nan}), "words has nan for 'a'; it must be a number"),
        (lambda: LogitBias(words={"a": "b"}), "words has 'b' for 'a'; it must be a number"),
        (lambda: ForcedPrefix("a", (1,)), "give one of them"),
        (lambda: DRY(breakers=("\n", "")), "breakers has an empty text"),
        (lambda: DRY(base=0.5), "base is 0.5; it must be a number >= 1"),
        (lambda: DRY(allowed_length=0), "allowed_length is 0; it must be an integer >= 1"),
        (lambda: Penalties(0), r"repetition is 0; it must be a number above 0 \(1 means off\)"),
        (lambda: Penalties(presence=math.inf), "presence is inf; it must be a finite number"),
        (lambda: Penalties(last_n=-2), r"last_n is -2; it must be an integer >= -1 \(-1 means all, 0 none\)"),
        (lambda: MinLength(-1), "n is -1"),
        (lambda: NoRepeatNGram(1.5), "n is 1.5; it must be an integer"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ParameterError, match=message):
        make()


def test_a_spec_that_works_by_the_sequence_says_so():
    for spec in (DRY(), Banned(), LogitBias(), MinLength(), ForcedPrefix()):
        with pytest.raises(TypeError, match=r"works on one sequence: call apply of what start\(request\) returns"):
            spec.apply(np.zeros(3, np.float32), read_only([0, 1, 2]), State())
