"""What every stage of a chain did to the candidates of one token, in numbers: plain NumPy, beside the step path."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nvg.params import Distribution, Explanation, StageRecord
from nvg.sampling.contract import Logits, TokenIds

NUM_TOP = 10
"""So many of the most probable candidates of each distribution are kept."""


class Recorder:
    """Watches one chain; changes nothing of what it sees."""

    def __init__(self) -> None:
        self._seen: list[_Seen] = []

    def begin(self, logits: Logits, token_ids: TokenIds) -> None:
        """A token's candidates before the first stage: float32 (n,) and int32 (n,), ascending; -inf is none."""
        self._seen = [_see("", 0.0, logits, token_ids)]

    def stage(self, name: str, seconds: float, logits: Logits, token_ids: TokenIds) -> None:
        """The candidates after the next stage, whether those that are -inf are still there or not."""
        self._seen.append(_see(name, seconds, logits, token_ids))

    def explain(self, token_id: int) -> Explanation:
        """How the token was drawn, which is one of the last candidates."""
        seen, self._seen = self._seen, []
        distributions = [one.distribution(token_id) for one in seen]
        stages = tuple(
            StageRecord(one.name, last.removed_by(one), before, after, one.seconds)
            for last, one, before, after in zip(seen, seen[1:], distributions, distributions[1:], strict=False)
        )
        shown = {token_id}.union(*(one.most_probable() for one in seen))
        columns = [one.probs_of(sorted(shown)) for one in seen]
        rows = dict(zip(sorted(shown), zip(*columns, strict=True), strict=True))
        ranked = sorted(rows, key=lambda i: [-1.0 if prob is None else prob for prob in rows[i][::-1]], reverse=True)
        return Explanation(token_id, distributions[0], stages, {i: rows[i] for i in ranked})


@dataclass(frozen=True)
class _Seen:
    """The candidates that are left at one point of the chain."""

    name: str
    seconds: float
    token_ids: TokenIds
    logits: Logits
    probs: npt.NDArray[np.float64]
    entropy: float

    def distribution(self, token_id: int) -> Distribution:
        index = int(np.searchsorted(self.token_ids, token_id))
        logit = self.logits[index]
        better = np.count_nonzero(self.logits > logit) + np.count_nonzero(self.logits[:index] == logit)
        return Distribution(self.token_ids.size, self.entropy, int(better) + 1, float(self.probs[index]))

    def removed_by(self, later: _Seen) -> float:
        """The probability of the candidates that are not among the later ones."""
        if later.token_ids.size == self.token_ids.size:
            return 0.0
        gone = np.ones(self.token_ids.size, np.bool_)
        gone[np.searchsorted(self.token_ids, later.token_ids)] = False
        return float(self.probs[gone].sum())

    def most_probable(self) -> list[int]:
        """The ids of the NUM_TOP largest logits, of equal ones the lowest."""
        num_top = min(NUM_TOP, self.logits.size)
        least = np.partition(self.logits, -num_top)[-num_top]
        reaching = np.flatnonzero(self.logits >= least)
        found: list[int] = self.token_ids[
            reaching[np.argsort(-self.logits[reaching], kind="stable")][:num_top]
        ].tolist()
        return found

    def probs_of(self, token_ids: list[int]) -> list[float | None]:
        """The probability of each, None of those that are removed."""
        indices = np.searchsorted(self.token_ids, token_ids).tolist()
        return [
            float(self.probs[index]) if index < self.token_ids.size and self.token_ids[index] == token_id else None
            for index, token_id in zip(indices, token_ids, strict=True)
        ]


def _see(name: str, seconds: float, logits: Logits, token_ids: TokenIds) -> _Seen:
    left = logits > -np.inf
    ids, kept = token_ids[left], logits[left]
    shifted = kept.astype(np.float64) - float(kept.max())
    weights = np.exp(shifted)
    total = float(weights.sum())
    probs = weights / total
    entropy = np.log(total) - float((probs * shifted).sum())
    return _Seen(name, seconds, ids, kept, probs, max(0.0, float(entropy)))
