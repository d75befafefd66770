"""Nucleus (top-p) sampling."""

from dataclasses import dataclass

import numpy as np

from nvg import ranges
from nvg.sampling import mass
from nvg.sampling.contract import Logits, State, TokenIds


@dataclass(frozen=True)
class TopP:
    """Nucleus sampling (Holtzman et al. 2019, arXiv:1904.09751): keep the smallest set of most probable tokens whose
    probability reaches p; at least one, and of equal ones the lowest ids.

    p: above 0 and at most 1; 1 means all

        keep the smallest set S of most probable tokens with: sum over S of P(i) >= p

    Use it for open text: it keeps few tokens where the model is sure and many where it is not. 0.9 to 0.95 is usual.
    """

    p: float = 0.9

    def __post_init__(self) -> None:
        ranges.number("p", self.p, "above 0 and at most 1 (1 means off)", 0, 1, open_low=True)

    def apply(self, logits: Logits, token_ids: TokenIds, state: State) -> None:
        if self.p < 1:
            mass.keep_nucleus(logits, float(self.p))


def nucleus(logits: Logits, p: float) -> tuple[np.float32, int]:
    """The smallest logit of the nucleus, and how many of the most probable tokens it takes to reach probability p.

    logits: float32 (n,), at least one finite. p: in (0, 1]. Probabilities are those of the tokens that are left: their
    weights have the precision of the logits, float32; sums are float64.
    """
    threshold, size = mass.nucleus(logits, float(p))
    return np.float32(threshold), size
