"""No n-gram twice."""

from dataclasses import dataclass

from nvg import ranges
from nvg.sampling import edit
from nvg.sampling.contract import Logits, State, TokenIds


@dataclass(frozen=True)
class NoRepeatNGram:
    """Remove the tokens that would repeat n tokens in a row of prompt and output (Paulus, Xiong and Socher 2017,
    arXiv:1705.04304, section 2.5).

    As in transformers (`no_repeat_ngram_size`), where it is off by default. If nothing else is left, they stay.

    n: from 0 to 2^31 - 1; 0 means off, 1 never the same token twice

        l'(i) = -inf where the last n - 1 tokens stood before an i already

    Use it for short texts, such as summaries. In long ones names and phrases have to come again: dry is gentler.
    """

    n: int = 3

    def __post_init__(self) -> None:
        ranges.integer("n", self.n, 0, 2**31 - 1, note="0 means off")

    def apply(self, logits: Logits, token_ids: TokenIds, state: State) -> None:
        if self.n:
            edit.remove_repeats(logits, token_ids, edit.last_tokens(state, -1), int(self.n))
