"""Each sampler's distribution against closed forms and against formulas written apart from the code."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nvg.sampling.greedy import Greedy
from nvg.sampling.minp import MinP
from nvg.sampling.temperature import Temperature
from nvg.sampling.topk import TopK
from nvg.sampling.topp import TopP

# Ids, out of order of probability; no sum of them lies on a bar used below.
PROBABILITIES = [0.08, 0.34, 0.02, 0.21, 0.3, 0.05]

rows = hnp.arrays(
    np.float32,
    st.integers(1, 60),
    elements=st.one_of(st.integers(-4, 4).map(float), st.floats(-20, 20, width=32)),
)


def log_row(probabilities) -> np.ndarray:
    return (np.log(probabilities) + 3).astype(np.float32)


def applied(spec, logits) -> np.ndarray:
    """The probabilities that a spec leaves."""
    logits = np.array(logits, dtype=np.float32)
    ids = np.arange(logits.size, dtype=np.int32)
    assert spec.apply(logits, ids, None) is None
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


def ranked(logits) -> list[int]:
    """Ids from the most probable down, of equal ones the lowest first."""
    return sorted(range(len(logits)), key=lambda i: (-logits[i], i))


def renormalised(probabilities, kept) -> np.ndarray:
    total = math.fsum(probabilities[i] for i in kept)
    return np.array([p / total if i in kept else 0.0 for i, p in enumerate(probabilities)])


@pytest.mark.parametrize(
    ("spec", "kept"),
    [
        (Greedy(), {1}),
        (TopK(1), {1}),
        (TopK(3), {1, 3, 4}),
        (TopK(6), set(range(6))),
        (TopK(1000), set(range(6))),
        (TopK(0), set(range(6))),
        (TopP(1e-9), {1}),
        (TopP(0.33), {1}),
        (TopP(0.35), {1, 4}),
        (TopP(0.63), {1, 4}),
        (TopP(0.65), {1, 3, 4}),
        (TopP(0.9), {0, 1, 3, 4}),
        (TopP(0.99), set(range(6))),
        (TopP(1), set(range(6))),
        (MinP(1), {1}),
        (MinP(0.5), {1, 3, 4}),
        (MinP(0.2), {0, 1, 3, 4}),
        (MinP(0), set(range(6))),
        (Temperature(0), {1}),
    ],
)
def test_what_stays_and_with_what_probability(spec, kept):
    np.testing.assert_allclose(
        applied(spec, log_row(PROBABILITIES)), renormalised(PROBABILITIES, kept), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("t", [0.25, 0.5, 0.8, 1.0, 1.7, 30.0])
def test_temperature_is_a_power_of_the_probabilities(t):
    powers = np.array(PROBABILITIES) ** (1 / t)
    np.testing.assert_allclose(applied(Temperature(t), log_row(PROBABILITIES)), powers / powers.sum(), rtol=3e-6)


@pytest.mark.parametrize("t", [5e-324, 1e-300, 1e-30])
def test_the_smallest_temperatures_are_greedy(t):
    assert applied(Temperature(t), log_row(PROBABILITIES)).tolist() == [0, 1, 0, 0, 0, 0]


def test_the_largest_temperature_is_uniform():
    np.testing.assert_allclose(applied(Temperature(1e308), log_row(PROBABILITIES)), np.full(6, 1 / 6), rtol=1e-7)


@pytest.mark.parametrize("spec", [Greedy(), Temperature(0), TopK(1), TopP(0.1)])
def test_of_equals_the_lowest_id_stays(spec):
    assert applied(spec, [1, 5, 2, 5, 5]).tolist() == [0, 1, 0, 0, 0]


@pytest.mark.parametrize(("spec", "kept"), [(TopK(3), [1, 3, 4]), (TopP(0.39), [1, 3])])
def test_ties_at_the_bar_go_to_the_lowest_ids(spec, kept):
    logits = [0, 7, 0, 7, 7, 7, 7]
    assert np.flatnonzero(applied(spec, logits)).tolist() == kept


@pytest.mark.parametrize("spec", [Greedy(), TopK(2), TopP(0.5), MinP(0.1), Temperature(0.7), Temperature(0)])
def test_removed_candidates_stay_removed(spec):
    left = applied(spec, [-np.inf, 1.0, -np.inf, 2.0, 1.5])
    assert left[0] == 0
    assert left[2] == 0
    assert left[3] > 0
    assert applied(spec, [-np.inf, -np.inf, 4.0]).tolist() == [0, 0, 1]
    assert applied(spec, [4.0]).tolist() == [1]


@given(rows, st.integers(1, 70))
def test_topk_keeps_the_first_k_of_the_ranking(logits, k):
    kept = np.flatnonzero(applied(TopK(k), logits))
    assert set(kept.tolist()) == set(ranked(logits)[:k])


@given(rows, st.floats(1e-6, 0.999999))
def test_topp_keeps_the_shortest_head_of_the_ranking_that_reaches_p(logits, p):
    weights = np.exp(logits.astype(np.float64) - logits.max())
    probabilities = weights / weights.sum()
    ranking = ranked(logits)
    size = int(np.count_nonzero(applied(TopP(p), logits)))
    assert set(np.flatnonzero(applied(TopP(p), logits)).tolist()) == set(ranking[:size])
    mass = [math.fsum(probabilities[ranking[:length]]) for length in range(size + 1)]
    assert mass[size] >= p - 1e-6  # weights are float32, like the logits
    assert mass[size - 1] < p + 1e-6


@given(rows, st.floats(0.001, 1))
def test_minp_is_a_ratio_to_the_largest(logits, p):
    ratios = np.exp(logits.astype(np.float64) - logits.max())
    kept = applied(MinP(p), logits) > 0
    assert kept[ratios > p * (1 + 1e-5)].all()
    assert not kept[ratios < p * (1 - 1e-5)].any()


@pytest.mark.parametrize("scale", [0.001, 1.0, 2.5, 6.0])
@pytest.mark.parametrize("p", [0.3, 0.9, 0.9999])
def test_topp_on_a_whole_vocabulary(scale, p):
    logits = (np.random.default_rng(3).normal(size=50257) * scale).astype(np.float32)
    weights = np.exp(logits.astype(np.float64))
    probabilities = weights / weights.sum()
    left = applied(TopP(p), logits)
    size = np.count_nonzero(left)
    largest = np.sort(probabilities)[::-1]
    assert largest[:size].sum() >= p - 1e-6
    assert largest[: size - 1].sum() < p + 1e-6
    assert probabilities[left > 0].min() >= probabilities[left == 0].max(initial=0)


def test_the_place_in_memory_does_not_matter():
    logits = np.random.default_rng(5).normal(size=5003).astype(np.float32)
    for spec in (TopK(40), TopP(0.7), MinP(0.1), Temperature(0.7)):
        results = set()
        for shift in range(8):
            buffer = np.empty(5100, dtype=np.float32)
            row = buffer[shift : shift + 5003]
            row[:] = logits
            spec.apply(row, None, None)
            results.add(row.tobytes())
        assert len(results) == 1, spec


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TopK(-1), "k is -1; it must be an integer >= 0 (0 means off)"),
        (lambda: TopK(2.5), "k is 2.5; it must be an integer >= 0 (0 means off)"),
        (lambda: TopP(0), "p is 0; it must be a number above 0 and at most 1 (1 means off)"),
        (lambda: TopP(1.01), "p is 1.01; it must be a number above 0 and at most 1 (1 means off)"),
        (lambda: TopP(math.nan), "p is nan; it must be a number above 0 and at most 1 (1 means off)"),
        (lambda: TopP("x"), "p is 'x'; it must be a number above 0 and at most 1 (1 means off)"),
        (lambda: MinP(-0.1), "p is -0.1; it must be a number from 0 to 1 (0 means off)"),
        (lambda: Temperature(-1), "t is -1; it must be a number >= 0 (0 means greedy, 1 means off)"),
        (lambda: Temperature(math.inf), "t is inf; it must be a finite number >= 0 (0 means greedy, 1 means off)"),
        (lambda: Temperature(math.nan), "t is nan; it must be a number >= 0 (0 means greedy, 1 means off)"),
    ],
)
def test_bad_options_say_what_is_allowed(make, message):
    with pytest.raises(ValueError, match="it must be") as caught:
        make()
    assert str(caught.value) == message
