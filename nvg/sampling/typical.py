"""Locally typical sampling."""

from dataclasses import dataclass

from nvg import ranges
from nvg.sampling import spread
from nvg.sampling.contract import Logits, State, TokenIds


@dataclass(frozen=True)
class Typical:
    """Keep the tokens whose surprise is nearest the entropy, as few as reach probability p (Meister, Pimentel, Wiher
    and Cotterell 2022, arXiv:2202.00666); of equally near ones the lowest ids.

    transformers (default 0.9) keeps all that are equally near at the bar; llama.cpp goes beyond p where it is met
    exactly.

    p: above 0 and at most 1; 1 means all

        keep the smallest set S of least |-ln P(i) - H(P)| with: sum over S of P(i) >= p

    Use it for text that tells neither more nor less than expected; it can remove the most probable tokens, too.
    """

    p: float = 0.9

    def __post_init__(self) -> None:
        ranges.number("p", self.p, "above 0 and at most 1 (1 means off)", 0, 1, open_low=True)

    def apply(self, logits: Logits, token_ids: TokenIds, state: State) -> None:
        if self.p < 1:
            spread.keep_typical(logits, float(self.p))
