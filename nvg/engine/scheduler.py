"""Who takes part in the next step: sequences that decode, then pieces of prompts, first come first served."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from nvg.engine.blocks import BlockPool
from nvg.engine.sequence import Sequence


@dataclass(frozen=True)
class Share:
    """A sequence's part of a step."""

    sequence: Sequence
    num_tokens: int

    @property
    def completes(self) -> bool:
        """Whether the step brings the sequence's last token into the cache, so that the next can be drawn."""
        return self.num_tokens == self.sequence.num_new_tokens

    @property
    def decodes(self) -> bool:
        """Whether it brings an output token into the cache, not a piece of the prompt."""
        return self.sequence.num_cached_tokens >= self.sequence.num_prompt_tokens


class Scheduler:
    """Waiting and running sequences. A sequence is admitted when blocks for all that it may become are free."""

    def __init__(self, pool: BlockPool, max_num_seqs: int, max_batched_tokens: int) -> None:
        self._pool = pool
        self._max_num_seqs = max_num_seqs
        self._max_batched_tokens = max_batched_tokens
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []

    @property
    def has_work(self) -> bool:
        """Whether any sequence waits or runs."""
        return bool(self._waiting or self._running)

    @property
    def sequences(self) -> list[Sequence]:
        """All that run or wait, in their order."""
        return [*self._running, *self._waiting]

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self._waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, and free its blocks."""
        if sequence in self._running:
            self._running.remove(sequence)
        else:
            self._waiting.remove(sequence)
        if sequence.blocks is not None:
            self._pool.release(sequence.blocks)
            sequence.blocks = None

    def schedule(self) -> list[Share]:
        """The next step's shares: at most max_num_seqs sequences and max_batched_tokens tokens."""
        while self._waiting and len(self._running) < self._max_num_seqs:
            blocks = self._pool.allocate(self._pool.blocks_for(self._waiting[0].max_len))
            if blocks is None:
                break
            self._waiting[0].blocks = blocks
            self._running.append(self._waiting.popleft())
        budget = self._max_batched_tokens
        shares = []
        for sequence in sorted(self._running, key=lambda s: s.num_new_tokens > 1):  # stable: decodes first
            num_tokens = min(sequence.num_new_tokens, budget)
            if num_tokens == 0:
                break
            budget -= num_tokens
            shares.append(Share(sequence, num_tokens))
        return shares
