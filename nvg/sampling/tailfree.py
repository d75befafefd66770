"""Tail-free sampling."""

from dataclasses import dataclass

import numpy as np

from nvg import ranges
from nvg.sampling import select
from nvg.sampling.contract import Logits, State, TokenIds

_FLAT = 1e-6


@dataclass(frozen=True)
class TailFree:
    """Cut off the tail, which begins where the curve of sorted probabilities has bent by a share z of all its bends,
    the absolute second differences (Phenix and Egan 2019, https://www.trentonbricken.com/Tail-Free-Sampling/).

    As llama.cpp had it until https://github.com/ggml-org/llama.cpp/pull/10071: the token at which z is passed goes. The
    authors' code keeps this one and the next. It sorts all that is left, so it is best put after topk.

    z: from 0 to 1; 1 means all

        keep the r-th most probable token, r = 0 always, where b(0) + ... + b(r) <= z,
        b(r) = |P(r) - 2 P(r + 1) + P(r + 2)| / the sum of these

    Use it where the tail should be found by its shape and not by a number of tokens or a probability.
    """

    z: float = 0.95

    def __post_init__(self) -> None:
        ranges.number("z", self.z, "from 0 to 1 (1 means off)", 0, 1)

    def apply(self, logits: Logits, token_ids: TokenIds, state: State) -> None:
        if self.z == 1:
            return
        ranking = np.sort(logits[logits > -np.inf])[::-1].astype(np.float64)
        if ranking.size <= 2:
            return
        weights = np.exp(ranking - ranking[0])  # float32 would leave little of second differences
        bends = np.abs(np.diff(weights / weights.sum(), 2))
        total = bends.sum()
        shares = bends / total if total > _FLAT else np.full(bends.size, 1 / bends.size)
        beyond = np.flatnonzero(np.cumsum(shares)[1:] > self.z)
        if beyond.size:
            select.keep_largest(logits, int(beyond[0]) + 1)
