"""Nucleus (top-p) sampling."""

import numbers
from dataclasses import dataclass

import numpy as np

from nvg.sampling import select
from nvg.sampling.contract import Logits, State, TokenIds


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
            select.keep_from(logits, *select.nucleus(logits, float(self.p)))


def nucleus(logits: Logits, p: float) -> tuple[np.float32, int]:
    """The smallest logit of the nucleus, and how many of the most probable tokens it takes to reach probability p.

    logits: float32 (n,), at least one finite. p: in (0, 1]. Probabilities are those of the tokens that are left: their
    weights have the precision of the logits, float32; sums are float64.
    """
    threshold, size = select.nucleus(logits, float(p))
    return np.float32(threshold), size
