"""The pool of KV blocks: who uses them, which are free, and which keep their contents until the room is needed."""

from __future__ import annotations

from nvg.engine.prefix import PrefixCache


class BlockPool:
    """Hands out block numbers 0 .. num_blocks - 1. A block may have several users; it is free when the last has gone.

    Blocks that the prefix cache knows keep their contents when they become free, and are taken last, the one that was
    left first before the others.
    """

    def __init__(self, num_blocks: int, block_size: int, prefixes: PrefixCache | None = None) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._prefixes = PrefixCache() if prefixes is None else prefixes
        self._num_users = [0] * num_blocks
        self._empty = list(range(num_blocks - 1, -1, -1))
        self._idle: dict[int, None] = {}  # free, but known to the prefix cache; in the order in which they were left

    @property
    def num_free(self) -> int:
        """Blocks that nobody uses."""
        return len(self._empty) + len(self._idle)

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks `num_tokens` KV entries need."""
        return -(-num_tokens // self.block_size)

    def num_users(self, block: int) -> int:
        """How many use it."""
        return self._num_users[block]

    def allocate(self, num_blocks: int) -> list[int] | None:
        """Numbers of `num_blocks` free blocks, each with one user now; None if there are not as many."""
        if num_blocks > self.num_free:
            return None
        return [self._take() for _ in range(num_blocks)]

    def share(self, block: int) -> None:
        """Become one more user of a block that has users, or that the prefix cache knows."""
        if not self._num_users[block]:
            del self._idle[block]
        self._num_users[block] += 1

    def release(self, blocks: list[int]) -> None:
        """Stop using blocks, in a sequence's order: its last block is taken before its first, because what begins a
        sequence is useful without what follows, and not the other way round."""
        for block in reversed(blocks):
            self._num_users[block] -= 1
            assert self._num_users[block] >= 0
            if not self._num_users[block]:
                if block in self._prefixes:
                    self._idle[block] = None
                else:
                    self._empty.append(block)

    def _take(self) -> int:
        if self._empty:
            block = self._empty.pop()
        else:
            block = next(iter(self._idle))
            del self._idle[block]
            self._prefixes.forget(block)
        self._num_users[block] = 1
        return block
