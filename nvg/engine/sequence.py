"""A request and its sequences: one sequence for each of the n choices."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from nvg.model.contract import Int32
from nvg.params import Choice, FinishReason, Piece, SamplingParams, TokenLogprobs
from nvg.sampling.chain import Chain, Stage
from nvg.tokenizers.stream import TextStream

Sink = Callable[[Piece], None]


@dataclass
class Request:
    """What somebody asked for. `sink` gets every piece, on the engine's thread."""

    prompt: str | None
    prompt_token_ids: list[int]
    params: SamplingParams
    seed: int
    stages: tuple[Stage, ...]
    sink: Sink
    sequences: list[Sequence] = field(default_factory=list)

    @property
    def is_finished(self) -> bool:
        """Whether every choice has ended."""
        return all(sequence.finish_reason for sequence in self.sequences)


class Sequence:
    """One choice as it grows: its tokens, how many of them are in the KV cache, and where."""

    def __init__(self, request: Request, index: int, max_model_len: int, text: TextStream) -> None:
        prompt = request.prompt_token_ids
        self.request = request
        self.index = index
        self.num_prompt_tokens = len(prompt)
        self.max_len = min(max_model_len, len(prompt) + request.params.max_tokens)
        self._tokens = np.empty(max(self.max_len, len(prompt)), np.int32)
        self._tokens[: len(prompt)] = prompt
        self.num_tokens = len(prompt)
        self.num_cached_tokens = 0
        self.blocks: Int32 | None = None
        self.chain: Chain | None = None
        self.text = text
        self.logprobs: list[TokenLogprobs] | None = None if request.params.logprobs is None else []
        self.finish_reason: FinishReason | None = None
        self.error: str | None = None
        self._shown: list[str] = []
        self.added_s = time.perf_counter()
        self.first_token_s: float | None = None
        """Seconds from the request to its first token."""

    @property
    def token_ids(self) -> Int32:
        """Prompt and output."""
        return self._tokens[: self.num_tokens]

    @property
    def prompt_token_ids(self) -> Int32:
        return self._tokens[: self.num_prompt_tokens]

    @property
    def output_token_ids(self) -> Int32:
        return self._tokens[self.num_prompt_tokens : self.num_tokens]

    @property
    def num_new_tokens(self) -> int:
        """Tokens that are not in the KV cache yet: the whole prompt at first, then one a step."""
        return self.num_tokens - self.num_cached_tokens

    @property
    def is_full(self) -> bool:
        """Whether max_tokens or the context allows no further token."""
        return self.num_tokens >= self.max_len

    def append(self, token_id: int) -> None:
        """Add an output token."""
        self._tokens[self.num_tokens] = token_id
        self.num_tokens += 1
        if self.first_token_s is None:
            self.first_token_s = time.perf_counter() - self.added_s

    def emit(self, text: str, num_token_ids: int) -> None:
        """Pass on what a step added: some text and the last `num_token_ids` tokens."""
        self._shown.append(text)
        token_ids = self.token_ids[self.num_tokens - num_token_ids :].tolist()
        logprobs = self.logprobs[-1:] if self.logprobs is not None and num_token_ids else None
        self.request.sink(Piece(text, token_ids, logprobs, self.finish_reason, self.index, self.error))

    def choice(self) -> Choice:
        """The finished sequence, for its user."""
        assert self.finish_reason
        token_ids = self.output_token_ids.tolist()
        return Choice(self.index, "".join(self._shown), token_ids, self.finish_reason, self.logprobs, self.error)
