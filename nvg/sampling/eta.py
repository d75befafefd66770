"""Eta sampling."""

from dataclasses import dataclass

from nvg import ranges
from nvg.sampling import spread
from nvg.sampling.contract import Logits, State, TokenIds


@dataclass(frozen=True)
class Eta:
    """Keep the tokens at least as probable as the smaller of epsilon and sqrt(epsilon) e^-entropy, and always the most
    probable (Hewitt, Manning and Liang 2022, arXiv:2210.15191).

    As in transformers (`eta_cutoff`), where it is off by default; its documentation gives 0.0003 to 0.002 as
    the paper's values.

    epsilon: from 0 to 1; 0 means all

        keep i where P(i) >= min(epsilon, sqrt(epsilon) e^-H(P))

    Use it like epsilon, where a flat distribution should keep more of its tail.
    """

    epsilon: float = 3e-4

    def __post_init__(self) -> None:
        ranges.number("epsilon", self.epsilon, "from 0 to 1 (0 means off)", 0, 1)

    def apply(self, logits: Logits, token_ids: TokenIds, state: State) -> None:
        if self.epsilon:
            spread.keep_eta(logits, float(self.epsilon))
