"""Compiled primitives for samplers, callable from Python and from an author's own `@numba.njit` functions.

Each takes `logits`, float32 (n,), of which at least one is finite and none NaN or +inf, and changes nothing but `out`.
Those that Python calls first compile, and are then kept in nvg's compile cache.
"""

# mypy: disallow-untyped-decorators=False, warn-return-any=False

import numpy as np
import numpy.typing as npt

from nvg.runtime.compile_cache import njit
from nvg.sampling.contract import Logits

Float64 = npt.NDArray[np.float64]


@njit(cached=True)
def argmax(logits: Logits) -> int:
    """Index of the largest logit; of equal ones the first."""
    best = 0
    for i in range(1, logits.size):
        if logits[i] > logits[best]:
            best = i
    return best


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
def kth_largest(logits: Logits, k: int) -> np.float32:
    """The k-th largest logit, 1 <= k <= n, in O(n). Equal ones count each: more than k may be at least this large."""
    return _threshold(logits, np.ones(logits.size), np.float64(k))


@njit(cached=True)
def nucleus_threshold(logits: Logits, p: float) -> np.float32:
    """The smallest logit of the nucleus, in O(n): those at least this large reach probability p, 0 < p <= 1, and those
    larger do not."""
    weights = np.empty(logits.size)
    softmax(logits, weights)
    return _threshold(logits, weights, p)


@njit
def _threshold(logits: Logits, weights: Float64, target: float) -> np.float32:
    """The largest logit such that the weights of those at least as large sum to `target`; else the smallest logit.

    Radix selection: the bits of a float32, sign folded, order as integers; three passes fix 11 + 11 + 10 of them.
    """
    bits = logits.view(np.int32)
    known = 0  # the threshold's leading bits
    above = 0.0  # the weight of all that is larger than every logit with these leading bits
    for shift, width in ((21, 11), (10, 11), (0, 10)):
        sums = np.zeros(1 << width)
        lowest = (1 << width) - 1
        for i in range(bits.size):
            order = _order(bits[i])
            if order >> (shift + width) == known:
                bucket = (order >> shift) & ((1 << width) - 1)
                sums[bucket] += weights[i]
                lowest = min(lowest, bucket)
        bucket = (1 << width) - 1
        while bucket > lowest and above + sums[bucket] < target:
            above += sums[bucket]
            bucket -= 1
        known = (known << width) | bucket
    found = logits[0]
    for i in range(bits.size):
        if _order(bits[i]) == known:
            found = logits[i]
    return found


@njit
def _order(bits: np.int32) -> np.int64:
    """A float32's bits (int32) as an integer from 0 to 2**32 - 1 that orders as the float does."""
    return np.int64(bits) + (1 << 31) if bits >= 0 else (1 << 31) - 1 - (np.int64(bits) + (1 << 31))
