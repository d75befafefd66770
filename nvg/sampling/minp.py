"""Min-p sampling."""

import math
from dataclasses import dataclass

from nvg import ranges
from nvg.sampling import select
from nvg.sampling.contract import Logits, State, TokenIds


@dataclass(frozen=True)
class MinP:
    """Keep the tokens at least p times as probable as the most probable one (Nguyen et al. 2024, arXiv:2407.01082).

    p: from 0 to 1; 0 means all, 1 keeps only the most probable and its equals

        keep i where P(i) >= p max P

    Use it instead of topp, above all with a temperature above 1: what it keeps does not grow with a long flat tail.
    """

    p: float = 0.05

    def __post_init__(self) -> None:
        ranges.number("p", self.p, "from 0 to 1 (0 means off)", 0, 1)

    def apply(self, logits: Logits, token_ids: TokenIds, state: State) -> None:
        if self.p:
            # A ratio of probabilities is a difference of logits: no softmax is needed.
            select.keep_ratio(logits, math.log(self.p))
