"""Temperature."""

import math
from dataclasses import dataclass

from nvg import ranges
from nvg.sampling import select
from nvg.sampling.contract import Logits, State, TokenIds
from nvg.sampling.greedy import keep_most_probable


@dataclass(frozen=True)
class Temperature:
    """Divide the logits by t: below 1 the probable tokens gain, above 1 they lose (Ackley, Hinton and Sejnowski 1985,
    doi:10.1207/s15516709cog0901_7).

    t: at least 0; 1 changes nothing, 0 keeps only the most probable token

        P'(i) = P(i)^(1/t) / sum over j of P(j)^(1/t)

    Use it to trade safe text for surprising text, after the stages that remove tokens: 0.7 to 0.9 for text that holds
    together, above 1 only behind topk, topp or minp, because it raises the improbable most.
    """

    t: float = 1.0

    def __post_init__(self) -> None:
        ranges.number("t", self.t, ">= 0 (0 means greedy, 1 means off)", 0, math.inf)

    def apply(self, logits: Logits, token_ids: TokenIds, state: State) -> None:
        if self.t == 0:
            keep_most_probable(logits)
        elif self.t != 1:
            # Relative to the largest, which stays 0: no t, however small, makes a logit +inf or NaN.
            select.divide(logits, float(self.t))
