import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nvg.sampling.draw import draw
from nvg.sampling.random import uniform

PROBABILITIES = [0.1, 0.4, 0.05, 0.25, 0.2]
IDS = np.array([2, 3, 7, 11, 40], dtype=np.int32)


def row(probabilities) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(np.array(probabilities)).astype(np.float32) + np.float32(5)


@pytest.mark.parametrize(
    ("number", "token_id"),
    [(0.0, 2), (0.0999, 2), (0.1001, 3), (0.4999, 3), (0.5001, 7), (0.5499, 7), (0.5501, 11), (0.8001, 40)],
)
def test_inverse_cdf_over_ascending_ids(number, token_id):
    drawn, logprob = draw(row(PROBABILITIES), IDS, number)
    assert drawn == token_id
    assert logprob == pytest.approx(math.log(PROBABILITIES[IDS.tolist().index(token_id)]), abs=1e-6)
    assert type(drawn) is int
    assert type(logprob) is float


def test_the_largest_number_draws_the_last_token_that_has_any_weight():
    largest = 1 - 2.0**-53
    assert draw(row([0.5, 0.5, 0.0]), IDS[:3], largest)[0] == 3
    logits = np.array([0, 0, 0, -1000, -np.inf], dtype=np.float32)
    assert draw(logits, IDS, largest)[0] == 7


@given(hnp.arrays(np.float32, st.integers(2, 30), elements=st.floats(-30, 30, width=32)))
def test_the_largest_number_is_always_below_the_total(logits):
    ids = np.arange(logits.size, dtype=np.int32)
    assert draw(logits, ids, 1 - 2.0**-53)[0] < logits.size


def test_a_token_without_weight_is_never_drawn():
    assert draw(row([0.0, 0.0, 1.0, 0.0]), IDS[:4], 0.0)[0] == 7


def test_one_candidate_needs_no_draw():
    assert draw(np.array([-3.5], dtype=np.float32), IDS[1:2], 0.7) == (3, 0.0)


def test_a_draw_changes_nothing():
    logits = row(PROBABILITIES)
    before = logits.copy()
    draw(logits, IDS, 0.3)
    np.testing.assert_array_equal(logits, before)


def test_the_place_in_memory_does_not_matter():
    logits = np.random.default_rng(0).normal(size=1003).astype(np.float32)
    ids = np.arange(1003, dtype=np.int32)
    results = set()
    for shift in range(16):
        buffer = np.empty(1100, dtype=np.float32)
        buffer[shift : shift + 1003] = logits
        results.add(draw(buffer[shift : shift + 1003], ids, 0.987654321))
    assert len(results) == 1


def test_draws_follow_the_distribution():
    num_draws = 20_000
    logits = row(PROBABILITIES)
    counts = dict.fromkeys(IDS.tolist(), 0)
    for position in range(num_draws):
        counts[draw(logits, IDS, uniform(42, 0, position, 0, 0))[0]] += 1
    expected = num_draws * np.array(PROBABILITIES)
    chi_square = float(np.sum((np.array(list(counts.values())) - expected) ** 2 / expected))
    assert chi_square < 18.5  # 4 degrees of freedom: exceeded once in a thousand seeds
