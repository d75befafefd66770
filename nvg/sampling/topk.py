"""Top-k sampling."""

from dataclasses import dataclass

from nvg import ranges
from nvg.sampling import select
from nvg.sampling.contract import Logits, State, TokenIds


@dataclass(frozen=True)
class TopK:
    """Keep the k most probable tokens; of equal ones the lowest ids (Fan, Lewis and Dauphin 2018, arXiv:1805.04833).

    k: how many to keep; 0 means all

        keep i where fewer than k tokens are more probable than i

    Use it first in a chain: it makes all later stages cheap. On its own it cuts too much where many tokens would do,
    and too little where one is right.
    """

    k: int = 40

    def __post_init__(self) -> None:
        ranges.integer("k", self.k, 0, note="0 means off")

    def apply(self, logits: Logits, token_ids: TokenIds, state: State) -> None:
        if self.k:
            keep_top_k(logits, self.k)


def keep_top_k(logits: Logits, k: int) -> None:
    """Remove all but the k largest logits: float32 (n,), edited in place; exactly min(k, n) stay, of equal ones the
    first."""
    if k < logits.size:
        select.keep_largest(logits, int(k))
