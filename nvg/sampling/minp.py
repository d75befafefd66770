"""Min-p sampling."""

import math
import numbers
from dataclasses import dataclass

from nvg.sampling import select
from nvg.sampling.contract import Logits, State, TokenIds


@dataclass(frozen=True)
class MinP:
    """Keep the tokens at least p times as probable as the most probable one (Nguyen et al. 2024, arXiv:2407.01082).

    p: from 0 to 1; 0 means all, 1 keeps only the most probable and its equals
    """

    p: float = 0.05

    def __post_init__(self) -> None:
        if not (isinstance(self.p, numbers.Real) and 0 <= self.p <= 1):
            raise ValueError(f"p is {self.p!r}; it must be a number from 0 to 1 (0 means off)")

    def apply(self, logits: Logits, token_ids: TokenIds, state: State) -> None:
        if self.p:
            # A ratio of probabilities is a difference of logits: no softmax is needed.
            select.keep_ratio(logits, math.log(self.p))
