"""P-less sampling, compiled by Numba."""

from dataclasses import dataclass

import numpy as np
from numba import njit

from nvg.sampling import math


@njit(cache=True, error_model="numpy")
def remove_unlikely(logits, scale):
    """Remove, in place, what is less probable than `scale` times the probability that two draws are the same.

    logits: float32 (n,), at least one finite, no NaN or +inf. scale: above 0, at most 1.
    """
    weights = np.empty_like(logits)
    total = math.weights(logits, weights)
    squares = 0.0
    for weight in weights:
        squares += np.float64(weight) * weight
    # Probabilities are weight / total; the largest weight is 1, and stays, because squares <= total.
    threshold = scale * min(squares / total, 1.0)
    for i in range(logits.size):
        if weights[i] < threshold:
            logits[i] = -np.inf


@dataclass(frozen=True)
class PLess:
    """P-less sampling (Tan, Wu and Howard 2025, arXiv:2509.23234): keep the tokens that are at least as probable as it
    is that two draws from the distribution are the same, which is the sum of all squared probabilities.

    There is nothing to tune: a sure model keeps one token, an undecided one many, at any temperature.

    scale: multiplies the threshold, above 0 and at most 1; 1 is the paper's
    """

    scale: float = 1.0

    def __post_init__(self):
        if not 0 < self.scale <= 1:
            raise ValueError(f"scale is {self.scale!r}; it must be a number above 0 and at most 1")

    def apply(self, logits, token_ids, state):
        remove_unlikely(logits, float(self.scale))
