import math
import os
import subprocess
import sys
from pathlib import Path

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


@pytest.mark.parametrize("size", [1, 15, 16, 17, 3000])
def test_weights(logits, size):
    row = logits[100 : 100 + size] if size > 40 else logits[:size]
    out, before = np.empty(row.size, np.float32), row.copy()
    total = primitives.weights(row, out)
    exact = np.exp(row.astype(np.float64) - float(row.max()))
    np.testing.assert_allclose(out, exact, rtol=2e-6)
    assert total == pytest.approx(out.sum(dtype=np.float64), rel=1e-12)
    np.testing.assert_array_equal(row, before)


def test_weights_do_not_depend_on_the_position(logits):
    row = logits[:33].copy()
    out, shifted = np.empty(33, np.float32), np.empty(34, np.float32)
    primitives.weights(row, out)
    primitives.weights(np.append(np.float32(-np.inf), row), shifted)
    np.testing.assert_array_equal(out, shifted[1:])


def test_entropy(logits):
    probabilities = np.empty(logits.size)
    primitives.softmax(logits, probabilities)
    exact = -math.fsum(p * math.log(p) for p in probabilities if p > 0)
    assert primitives.entropy(logits) == pytest.approx(exact, rel=1e-6)
    assert primitives.entropy(np.full(1000, -7, np.float32)) == pytest.approx(math.log(1000))
    assert primitives.entropy(np.array([-np.inf, 3, -np.inf], np.float32)) == 0


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


OWN = """
import numpy as np
from numba import njit
from nvg.sampling import math

@njit(cache=True)
def keep_half(logits):
    weights = np.empty_like(logits)
    total = math.weights(logits, weights)
    least = math.kth_largest(logits, max(1, logits.size // 2))
    for i in range(logits.size):
        if logits[i] < least:
            logits[i] = -np.inf
    return total + math.entropy(logits) + math.log_sum_exp(logits)

row = np.arange(1000, dtype=np.float32)
value = keep_half(row)
print(int((row > -np.inf).sum()), value, sum(keep_half.stats.cache_hits.values()))
"""


def test_an_author_s_cached_function_is_compiled_once(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    runs = [
        subprocess.run(
            [sys.executable, "own.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        ).stdout.split()
        for _ in range(2)
    ]
    assert [run[2] for run in runs] == ["0", "1"]
    assert runs[0][:2] == runs[1][:2]
    assert runs[0][0] == "500"
