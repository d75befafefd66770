"""Repetition, presence and frequency penalties."""

import math
from dataclasses import dataclass

from nvg import ranges
from nvg.sampling import edit
from nvg.sampling.contract import Logits, State, TokenIds


@dataclass(frozen=True)
class Penalties:
    """Make tokens that came before less probable: the logit is divided by `repetition` if it is above 0 and multiplied
    if it is not (Keskar et al. 2019, arXiv:1909.05858, section 4.1), then `presence` is subtracted, and `frequency`
    once for each time that the token came (https://platform.openai.com/docs/api-reference/chat/create).

    As in llama.cpp, all three look at the last tokens of prompt and output together. transformers' repetition penalty
    looks at all of them; presence and frequency of OpenAI and vLLM at the output only.

    repetition: above 0; 1 means off
    presence: any number; 0 means off
    frequency: any number; 0 means off
    last_n: how many tokens to look back; -1 means all, 0 none

        l'(i) = (l(i) / repetition if l(i) > 0, else l(i) repetition) - presence - frequency c(i) where c(i) > 0,
        c(i) = how often i is among the last tokens

    Use it first in a chain and mildly, with a repetition up to 1.2 or a presence or frequency up to 0.5: it makes
    commas and articles less probable, too.
    """

    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    last_n: int = 64

    def __post_init__(self) -> None:
        ranges.number("repetition", self.repetition, "above 0 (1 means off)", 0, math.inf, open_low=True)
        ranges.number("presence", self.presence, "(0 means off)", -math.inf, math.inf)
        ranges.number("frequency", self.frequency, "(0 means off)", -math.inf, math.inf)
        ranges.integer("last_n", self.last_n, -1, note="-1 means all, 0 none")

    def apply(self, logits: Logits, token_ids: TokenIds, state: State) -> None:
        if self.last_n and (self.repetition != 1 or self.presence or self.frequency):
            came = edit.last_tokens(state, self.last_n)
            came.sort()
            amounts = float(self.repetition), float(self.presence), float(self.frequency)
            edit.penalise(logits, token_ids, came, *amounts)
