"""The pool of KV blocks: which are free."""

from __future__ import annotations

import numpy as np

from nvg.model.contract import Int32


class BlockPool:
    """Hands out block numbers 0 .. num_blocks - 1. All or nothing, so that a sequence that began can always end."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = list(range(num_blocks - 1, -1, -1))

    @property
    def num_free(self) -> int:
        """Blocks that nobody has."""
        return len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks `num_tokens` KV entries need."""
        return -(-num_tokens // self.block_size)

    def allocate(self, num_blocks: int) -> Int32 | None:
        """Numbers of `num_blocks` blocks, int32; None if there are not as many."""
        if num_blocks > len(self._free):
            return None
        return np.array([self._free.pop() for _ in range(num_blocks)], np.int32)

    def release(self, blocks: Int32) -> None:
        """Give blocks back."""
        self._free.extend(blocks[::-1].tolist())
        assert len(self._free) <= self.num_blocks
