"""Compiled primitives for samplers, callable from Python and from an author's own `@numba.njit` functions.

Each takes `logits`, float32 (n,), of which at least one is finite and none NaN or +inf, and changes nothing but `out`.
Those that Python calls first compile, and are then kept in nvg's compile cache.
"""

# mypy: disallow-untyped-decorators=False, warn-return-any=False

import numpy as np
import numpy.typing as npt

from nvg.runtime.compile_cache import njit
from nvg.sampling import select
from nvg.sampling.contract import Logits

Float64 = npt.NDArray[np.float64]


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
def kth_largest(logits: Logits, k: int) -> np.float32:
    """The k-th largest logit, 1 <= k <= n, in O(n). Equal ones count each: more than k may be at least this large."""
    return select.kth_largest(logits, k)


@njit(cached=True)
def nucleus_threshold(logits: Logits, p: float) -> np.float32:
    """The smallest logit of the nucleus, in O(n): those at least this large reach probability p, 0 < p <= 1, and those
    larger do not."""
    return select.nucleus(logits, p)[0]
