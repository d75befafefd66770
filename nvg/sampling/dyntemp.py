"""Dynamic temperature."""

import math
from dataclasses import dataclass

from nvg import ranges
from nvg.sampling import select, spread
from nvg.sampling.contract import Logits, State, TokenIds


@dataclass(frozen=True)
class DynTemp:
    """Divide the logits by a temperature between t - range and t + range: the lower one where the model is sure, the
    higher one where all that is left is equally probable (kalomaze 2023,
    https://github.com/ggml-org/llama.cpp/issues/3483).

    With the entropy as a fraction h of its largest value, ln n, it is t - range + 2 range h^exponent, but t - range is
    at least 0. llama.cpp's default range 0 is a plain temperature.

    t: at least 0
    range: at least 0; 0 means a plain temperature
    exponent: above 0; above 1 the lower temperatures gain, below 1 the higher ones

        l'(i) = l(i) / T,  T = low + (t + range - low) h^exponent,  low = max(0, t - range),  h = H(P) / ln n

    Use it in place of temperature to vary where many tokens would do and not to err where one is right.
    """

    t: float = 1.0
    range: float = 0.5
    exponent: float = 1.0

    def __post_init__(self) -> None:
        ranges.number("t", self.t, ">= 0", 0, math.inf)
        ranges.number("range", self.range, ">= 0 (0 means a plain temperature)", 0, math.inf)
        ranges.number("exponent", self.exponent, "above 0", 0, math.inf, open_low=True)

    def apply(self, logits: Logits, token_ids: TokenIds, state: State) -> None:
        entropy, num_left = spread.entropy(logits)
        if num_left == 1:
            return
        low, high = max(0.0, self.t - self.range), self.t + self.range
        t = low + (high - low) * min(1.0, entropy / math.log(num_left)) ** self.exponent if self.range else self.t
        if t > 0:
            select.divide(logits, float(t))
        else:
            select.keep_first_largest(logits)
