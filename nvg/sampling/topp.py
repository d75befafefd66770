"""Nucleus (top-p) sampling."""

import numbers
from dataclasses import dataclass

import numpy as np

from nvg.sampling.contract import Logits, State, TokenIds
from nvg.sampling.topk import keep_from

# How many of the largest logits to sort, tried in turn before all: a nucleus is mostly small, and sorting so many is
# much cheaper than sorting a vocabulary.
_HEADS = 256, 8192


@dataclass(frozen=True)
class TopP:
    """Nucleus sampling (Holtzman et al. 2019, arXiv:1904.09751): keep the smallest set of most probable tokens whose
    probability reaches p; at least one, and of equal ones the lowest ids.

    p: above 0 and at most 1; 1 means all
    """

    p: float = 0.9

    def __post_init__(self) -> None:
        if not (isinstance(self.p, numbers.Real) and 0 < self.p <= 1):
            raise ValueError(f"p is {self.p!r}; it must be a number above 0 and at most 1 (1 means off)")

    def apply(self, logits: Logits, token_ids: TokenIds, state: State) -> None:
        if self.p < 1:
            threshold, size = nucleus(logits, self.p)
            keep_from(logits, threshold, size)


def nucleus(logits: Logits, p: float) -> tuple[np.float32, int]:
    """The smallest logit of the nucleus, and how many of the most probable tokens it takes to reach probability p.

    logits: float32 (n,), at least one finite. p: in (0, 1]. Probabilities are those of the tokens that are left: their
    weights have the precision of the logits, float32; sums are float64.
    """
    n = logits.size
    top = logits.max()
    target = p * float(np.exp(logits - top).sum(dtype=np.float64))
    for head in (*_HEADS, n):
        if head <= n:
            largest = np.sort(np.partition(logits, n - head)[n - head :] if head < n else logits)[::-1]
            reached = np.exp(np.subtract(largest, top, order="C")).astype(np.float64).cumsum()
            size = int(np.searchsorted(reached, target)) + 1
            if size <= head:
                return largest[size - 1], size
    return largest[-1], n  # p is so near to 1 that rounding kept the sum below it
