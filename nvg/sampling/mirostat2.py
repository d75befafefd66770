"""Mirostat, version 2."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nvg.sampling import select, spread
from nvg.sampling.contract import Logits, PerSequence, Sampler, SamplerRequest, State, TokenIds
from nvg.sampling.mirostat import Surprise, check_target


@dataclass(frozen=True)
class Mirostat2(PerSequence):
    """Keep the surprise of the text near tau: tokens with a surprise above mu are removed, and mu is corrected by what
    is drawn (Basu, Ramachandran, Keskar and Varshney 2020, arXiv:2007.14966; version 2 of their code,
    https://github.com/basusourya/mirostat). Put it last.

    As in llama.cpp: the surprise of a drawn token is that among those that were left, and mu begins at 2 tau.

    tau: the surprise aimed at, in bits, above 0
    eta: how fast to learn, at least 0

        keep i where -log2 P(i) <= mu;  after the draw of j: mu' = mu - eta (-log2 P'(j) - tau)

    Use it for long texts of even quality, neither dull nor wild; it does without the Zipf distribution of mirostat.
    """

    tau: float = 5.0
    eta: float = 0.1

    def __post_init__(self) -> None:
        check_target(self.tau, self.eta)

    def start(self, request: SamplerRequest) -> Sampler:
        return _Sequence(self.tau, self.eta)


class _Sequence(Surprise):
    def apply(self, logits: Logits, token_ids: TokenIds, state: State) -> None:
        if not spread.keep_probable(logits, -self.mu * math.log(2), 0.0):
            select.keep_first_largest(logits)
