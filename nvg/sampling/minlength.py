"""Minimum length."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nvg import ranges
from nvg.sampling import edit
from nvg.sampling.contract import Logits, PerSequence, Sampler, SamplerRequest, State, TokenIds


@dataclass(frozen=True)
class MinLength(PerSequence):
    """Don't end the text before n new tokens (transformers' `min_new_tokens`, generation/logits_process.py,
    MinNewTokensLengthLogitsProcessor).

    It removes the end-of-text tokens; if nothing else is left, they stay. `SamplingParams.min_tokens` keeps from
    stop ids, too, whatever the chain does.

    n: at least 0

        l'(i) = -inf where i ends the text, while step < n

    Use it when a model ends too soon. It does not make it have more to say: n should be well below the usual length.
    """

    n: int = 1

    def __post_init__(self) -> None:
        ranges.integer("n", self.n, 0)

    def start(self, request: SamplerRequest) -> Sampler:
        return _Sequence(self.n, request.eos_token_ids)


class _Sequence:
    def __init__(self, n: int, eos_token_ids: tuple[int, ...]) -> None:
        self._n = n
        self._ids = np.array(eos_token_ids, np.int32)

    def apply(self, logits: Logits, token_ids: TokenIds, state: State) -> None:
        if state.step < self._n:
            edit.remove(logits, token_ids, self._ids)
