"""Epsilon sampling."""

import math
from dataclasses import dataclass

from nvg import ranges
from nvg.sampling import spread
from nvg.sampling.contract import Logits, State, TokenIds


@dataclass(frozen=True)
class Epsilon:
    """Keep the tokens at least as probable as epsilon, and always the most probable (Hewitt, Manning and Liang 2022,
    arXiv:2210.15191).

    As in transformers (`epsilon_cutoff`), where it is off by default; its documentation gives 0.0003 to 0.0009
    as the paper's values.

    epsilon: from 0 to 1; 0 means all

        keep i where P(i) >= epsilon

    Use it to cut off only what the model thinks absurd, and leave the distribution as it is otherwise.
    """

    epsilon: float = 3e-4

    def __post_init__(self) -> None:
        ranges.number("epsilon", self.epsilon, "from 0 to 1 (0 means off)", 0, 1)

    def apply(self, logits: Logits, token_ids: TokenIds, state: State) -> None:
        if self.epsilon:
            spread.keep_probable(logits, math.log(self.epsilon), 0.0)
