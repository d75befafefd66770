"""Top-a sampling."""

import math
from dataclasses import dataclass

from nvg import ranges
from nvg.sampling import spread
from nvg.sampling.contract import Logits, State, TokenIds


@dataclass(frozen=True)
class TopA:
    """Keep the tokens at least a times as probable as the square of the largest probability (Peng 2022,
    https://github.com/BlinkDL/RWKV-LM). Where the model is sure, few stay; where it is not, many do.

    As in KoboldAI, where it is off by default; its author began with 0.02.

    a: from 0 to 1; 0 means all

        keep i where P(i) >= a (max P)^2

    Use it like minp, where flat distributions should keep more.
    """

    a: float = 0.2

    def __post_init__(self) -> None:
        ranges.number("a", self.a, "from 0 to 1 (0 means off)", 0, 1)

    def apply(self, logits: Logits, token_ids: TokenIds, state: State) -> None:
        if self.a:
            spread.keep_probable(logits, math.log(self.a), 2.0)
