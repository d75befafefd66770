"""Compiled primitives for samplers, callable from Python and from an author's own `@numba.njit` functions.

Each takes `logits`, float32 (n,) and contiguous, of which at least one is finite and none NaN or +inf (-inf is a
removed candidate), and changes nothing but `out`. Those that Python calls first compile, and are then kept in nvg's
compile cache. A function of one's own may be `@njit(cache=True)`: what it calls here becomes part of its machine code,
which Numba makes again when the author's file changes, or the versions of Numba and the CPU.
"""

# mypy: disallow-untyped-decorators=False, warn-return-any=False

import numpy as np

from nvg.runtime.compile_cache import njit
from nvg.sampling import mass, select, vector
from nvg.sampling.contract import Float64, Logits
from nvg.sampling.vector import LANES


@njit(cached=True)
def argmax(logits: Logits) -> int:
    """Index of the largest logit; of equal ones the first."""
    return select.argmax(logits)


@njit(cached=True)
def log_sum_exp(logits: Logits) -> float:
    """log(sum(exp(logits))), float64, summed from the first to the last."""
    top = np.float64(logits[argmax(logits)])
    total = 0.0
    for logit in logits:
        total += np.exp(logit - top)
    return top + np.log(total)


@njit(cached=True)
def softmax(logits: Logits, out: Float64) -> None:
    """Write the probabilities into `out`, float64 (n,)."""
    normaliser = log_sum_exp(logits)
    for i in range(logits.size):
        out[i] = np.exp(logits[i] - normaliser)


@njit(cached=True)
def weights(logits: Logits, out: Logits) -> float:
    """Write e^(logit - the largest), at most 1, into `out`, float32 (n,), and return their sum, float64: `softmax` at
    the precision of the logits, many times as fast. A probability is a weight divided by the sum."""
    top = select.largest(logits)
    whole = logits.size // LANES * LANES
    sums = np.zeros(LANES)
    for i in range(whole):
        out[i] = logits[i]
    vector.weigh(out, whole // LANES, top, sums)
    if whole < logits.size:
        tail = np.empty(LANES, np.float32)
        for i in range(LANES):
            tail[i] = logits[whole + i] if whole + i < logits.size else -np.inf
        vector.weigh(tail, 1, top, sums)
        for i in range(whole, logits.size):
            out[i] = tail[i - whole]
    total = 0.0
    for lane in range(LANES):
        total += sums[lane]
    return total


@njit(cached=True)
def entropy(logits: Logits) -> float:
    """Shannon's entropy of the distribution, in nats: from 0, where one candidate is left, to log(n), where all are
    equal."""
    weight = np.empty(logits.size, np.float32)
    total = weights(logits, weight)
    top = np.float64(select.largest(logits))
    mean = 0.0  # of the logits' distances from the largest
    for i in range(logits.size):
        if weight[i] > 0:
            mean += np.float64(weight[i]) * (np.float64(logits[i]) - top)
    return max(0.0, np.log(total) - mean / total)


@njit(cached=True)
def kth_largest(logits: Logits, k: int) -> np.float32:
    """The k-th largest logit, 1 <= k <= n, in O(n): the threshold of a top-k. Equal ones count each, so more than
    k may be at least this large; `row[row < threshold] = -inf` keeps them all."""
    return select.kth_largest(logits, k)


@njit(cached=True)
def nucleus_threshold(logits: Logits, p: float) -> np.float32:
    """The smallest logit of the nucleus, in O(n): those at least this large reach probability p, 0 < p <= 1, and those
    larger do not."""
    return mass.nucleus(logits, p)[0]
