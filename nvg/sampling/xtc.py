"""XTC sampling."""

from dataclasses import dataclass

from nvg import ranges
from nvg.sampling import spread
from nvg.sampling.contract import Logits, State, TokenIds


@dataclass(frozen=True)
class XTC:
    """Exclude top choices: of the tokens at least as probable as the threshold all but the least probable one, each
    time with the given probability (Weidmann 2024, https://github.com/oobabooga/text-generation-webui/pull/6335).

    As in llama.cpp, whose default probability 0 is off. The author's code spares all when one of those to be
    excluded is a line break or ends the text; this one does not.

    probability: how often, from 0 to 1; 0 means never
    threshold: from 0 to 1; above 0.5 nothing is excluded

        now and then keep i where P(i) < threshold, or i is the least probable of the others

    Use it for stories, to leave the beaten track; not where one token is right. minp before it keeps the tail out.
    """

    probability: float = 0.5
    threshold: float = 0.1

    def __post_init__(self) -> None:
        ranges.number("probability", self.probability, "from 0 to 1 (0 means off)", 0, 1)
        ranges.number("threshold", self.threshold, "from 0 to 1 (above 0.5 means off)", 0, 1)

    def apply(self, logits: Logits, token_ids: TokenIds, state: State) -> None:
        if self.probability and self.threshold <= 0.5 and state.uniform() < self.probability:
            spread.remove_all_but_last_reaching(logits, float(self.threshold))
