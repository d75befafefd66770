"""What a sampler is: an immutable spec that edits the remaining candidates; the engine draws.

A frozen dataclass whose fields are the sampler's options, with a method `apply`:

    @dataclass(frozen=True)
    class TopP:
        '''Nucleus sampling (Holtzman et al. 2019, arXiv:1904.09751).'''
        p: float = 0.9

        def apply(self, logits, token_ids, state): ...
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from nvg.params import SamplingParams
from nvg.tokenizers.contract import Tokenizer

Logits = npt.NDArray[np.float32]
TokenIds = npt.NDArray[np.int32]
Float64 = npt.NDArray[np.float64]


class State(Protocol):
    """What a sampler may look at while it works on one row."""

    @property
    def prompt_token_ids(self) -> TokenIds:
        """The prompt, read-only int32."""

    @property
    def output_token_ids(self) -> TokenIds:
        """The output so far, read-only int32."""

    @property
    def step(self) -> int:
        """How many tokens came before: 0 for the first output token."""

    def uniform(self) -> float:
        """A uniform number in [0, 1), decided by (seed, choice, output position, stage, how many were drawn here)."""


@runtime_checkable
class Sampler(Protocol):
    """One stage of a chain.

    Optional members:

    `start(request: SamplerRequest) -> Sampler`: a fresh object for one sequence, with `apply` (the spec itself then
    needs none), which may keep state and may have `accept(token_id: int, logprob: float)`, called once for each output
    token in order, end-of-text included (logprob, in nats, under the distribution that was drawn from).

    `needs_vocab = True`: n is always the whole vocabulary, removed candidates being -inf.

    `may_remove_all = True`: a row may hold nothing that the sampler lets through, as with a grammar or a list of banned
    words. It then removes all, or raises ValueError to say why, and `nvg.testing` does not hold that against it.
    """

    def apply(self, logits: Logits, token_ids: TokenIds, state: State) -> None:
        """Edit `logits`, float32 (n,), in place; -inf removes a candidate. `token_ids`, int32 (n,), ascending and
        read-only, says which token each one is. n may be any number from 1 to the vocabulary's size."""


@dataclass(frozen=True)
class SamplerRequest:
    """What `start` is told about the sequence."""

    tokenizer: Tokenizer
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    prompt_token_ids: TokenIds
    params: SamplingParams


class PerSequence:
    """Base of specs that work by what `start(request)` returns, and whose own `apply` therefore can't."""

    def apply(self, logits: Logits, token_ids: TokenIds, state: State) -> None:
        raise TypeError(f"{type(self).__name__} works on one sequence: call apply of what start(request) returns")


SamplerFactory = Callable[..., Any]
