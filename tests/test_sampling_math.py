import math

import numpy as np
import pytest
from numba import njit

from nvg.sampling import math as primitives
from nvg.sampling.topp import nucleus


@pytest.fixture(scope="module")
def logits() -> np.ndarray:
    row = (np.random.default_rng(1).normal(size=3000) * 3).astype(np.float32)
    row[7] = row[2000] = row.max() + 1
    row[100:140] = -np.inf
    return row


def test_argmax_takes_the_first_of_equals(logits):
    assert primitives.argmax(logits) == 7


def test_log_sum_exp(logits):
    assert primitives.log_sum_exp(logits) == pytest.approx(math.log(math.fsum(map(math.exp, logits))), rel=1e-12)
    assert primitives.log_sum_exp(logits[:100] + np.float32(500)) > 500


def test_softmax(logits):
    out = np.empty(logits.size)
    primitives.softmax(logits, out)
    weights = np.array([math.exp(logit) for logit in logits])
    np.testing.assert_allclose(out, weights / math.fsum(weights), rtol=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3, 40, 2959, 2960, 3000])
def test_kth_largest(logits, k):
    assert primitives.kth_largest(logits, k) == np.sort(logits)[-k]


def test_kth_largest_orders_signs_and_zeros():
    row = np.array([-1e-40, 1e-40, -3e38, 3e38, 0.0, -0.0, -np.inf], dtype=np.float32)
    for k in range(1, row.size + 1):
        assert primitives.kth_largest(row, k) == np.sort(row)[-k]


@pytest.mark.parametrize("p", [1e-9, 0.1, 0.5, 0.9, 0.9999])
def test_nucleus_threshold_agrees_with_topp(logits, p):
    assert primitives.nucleus_threshold(logits, p) == nucleus(logits, p)[0]


def test_the_whole_is_the_nucleus_of_one(logits):
    reached = logits >= primitives.nucleus_threshold(logits, 1.0)
    weights = np.exp(logits.astype(np.float64))
    assert weights[~reached].sum() <= 1e-12 * weights.sum()


def test_an_author_s_compiled_function_may_call_them(logits):
    @njit
    def second_best_is_close(row, margin):
        return row[primitives.argmax(row)] - primitives.kth_largest(row, 3) < margin

    gap = float(logits.max() - np.sort(logits)[-3])
    assert second_best_is_close(logits, gap + 0.01)
    assert not second_best_is_close(logits, gap - 0.01)
