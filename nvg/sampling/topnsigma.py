"""Top-n-sigma sampling."""

import math
from dataclasses import dataclass

from nvg import ranges
from nvg.sampling import spread
from nvg.sampling.contract import Logits, State, TokenIds


@dataclass(frozen=True)
class TopNSigma:
    """Keep the tokens whose logits are within n standard deviations of the largest (Tang, Liu, Xu et al. 2024,
    arXiv:2411.07641). What stays does not depend on the temperature.

    The deviation is that of the logits that are left, as in llama.cpp, where the stage is off by default.

    n: at least 0; 0 means all

        keep i where l(i) >= max l - n sd(l)

    Use it with a high temperature behind it: noise far below the best tokens stays out, whatever the temperature.
    """

    n: float = 1.0

    def __post_init__(self) -> None:
        ranges.number("n", self.n, ">= 0 (0 means off)", 0, math.inf)

    def apply(self, logits: Logits, token_ids: TokenIds, state: State) -> None:
        if self.n:
            spread.keep_deviations(logits, float(self.n))
