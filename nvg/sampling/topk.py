"""Top-k sampling."""

import numbers
from dataclasses import dataclass

from nvg.sampling import select
from nvg.sampling.contract import Logits, State, TokenIds


@dataclass(frozen=True)
class TopK:
    """Keep the k most probable tokens; of equal ones the lowest ids (Fan, Lewis and Dauphin 2018, arXiv:1805.04833).

    k: how many to keep; 0 means all
    """

    k: int = 40

    def __post_init__(self) -> None:
        if not (isinstance(self.k, numbers.Integral) and self.k >= 0):
            raise ValueError(f"k is {self.k!r}; it must be an integer >= 0 (0 means off)")

    def apply(self, logits: Logits, token_ids: TokenIds, state: State) -> None:
        if self.k:
            keep_top_k(logits, self.k)


def keep_top_k(logits: Logits, k: int) -> None:
    """Remove all but the k largest logits: float32 (n,), edited in place; exactly min(k, n) stay, of equal ones the
    first."""
    if k < logits.size:
        select.keep_largest(logits, int(k))
