"""Top-k sampling."""

import numbers
from dataclasses import dataclass

import numpy as np

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
    n = logits.size
    if k < n:
        keep_from(logits, np.partition(logits, n - k)[n - k], k)


def keep_from(logits: Logits, threshold: np.float32, k: int) -> None:
    """`keep_top_k` where the k-th largest logit is known to be `threshold`."""
    room = k - int(np.count_nonzero(logits > threshold))
    tied = np.flatnonzero(logits == threshold)
    np.putmask(logits, logits < threshold, -np.inf)
    logits[tied[room:]] = -np.inf
