"""The KV cache as sequences use it: blocks to write to, blocks that others have filled, and copies on write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from nvg.engine.blocks import BlockPool
from nvg.engine.prefix import ROOT, PrefixCache
from nvg.model.contract import Int32


class Cached(Protocol):
    """A sequence: its tokens, and `kv`, where their keys and values are."""

    kv: KVEntries

    @property
    def window(self) -> Int32:
        """The tokens that its keys and values are of, from position 0 on."""


class KVEntries:
    """Where the keys and values of a sequence are. Belongs to a `KVCache`, which changes it."""

    __slots__ = ("block_table", "node", "num_blocks", "num_known_blocks", "num_tokens")

    def __init__(self) -> None:
        self.block_table: Int32 | None = None  # (most blocks,) of which num_blocks are in use
        self.num_blocks = 0
        self.num_tokens = 0
        """Tokens whose keys and values are there."""
        self.num_known_blocks = 0  # from the begin, known to the prefix cache: all that are full
        self.node = ROOT  # where these end

    @property
    def blocks(self) -> list[int]:
        """The numbers of its blocks, in order."""
        return [] if self.block_table is None else self.block_table[: self.num_blocks].tolist()


class KVCache:
    """Joins the pool and the prefix cache.

    copy_block(source, target): copies a block's contents. table_width: most blocks that a sequence can have.
    """

    def __init__(
        self, num_blocks: int, block_size: int, table_width: int, copy_block: Callable[[int, int], None]
    ) -> None:
        self._prefixes = PrefixCache()
        self.pool = BlockPool(num_blocks, block_size, self._prefixes)
        self._size = block_size
        self._table_width = table_width
        self._copy_block = copy_block

    def reuse(self, sequence: Cached) -> int:
        """Take what is cached of the tokens that come next, but never the last token, whose logits are wanted.

        Returns how many tokens that saves.
        """
        kv, size, pool = sequence.kv, self._size, self.pool
        window = sequence.window
        before = kv.num_tokens
        for i in range(before // size, (len(window) - 1) // size):
            block = self._prefixes.find(kv.node, window[i * size : (i + 1) * size].tobytes())
            if block is None:
                break
            pool.share(block)
            table = self._table(kv)
            if i < kv.num_blocks:  # it was about to be filled
                pool.release([int(table[i])])
            else:
                kv.num_blocks += 1
            table[i] = block
            kv.node = self._prefixes.node_of(block)
            kv.num_known_blocks = i + 1
            kv.num_tokens = (i + 1) * size
        return kv.num_tokens - before

    def reserve(self, kv: KVEntries, num_tokens: int) -> int:
        """Get blocks that the next tokens can be written to; returns for how many of `num_tokens` there is room."""
        size, pool = self._size, self.pool
        room = kv.num_blocks * size - kv.num_tokens
        if room > 0:
            assert kv.block_table is not None
            tail = kv.num_tokens // size
            block = int(kv.block_table[tail])
            if pool.num_users(block) > 1:
                copies = pool.allocate(1)
                if copies is None:
                    return 0
                self._copy_block(block, copies[0])
                kv.block_table[tail] = copies[0]
                pool.release([block])
        if room < num_tokens:
            count = min(pool.blocks_for(num_tokens - room), pool.num_free)
            blocks = pool.allocate(count)
            assert blocks is not None
            self._table(kv)[kv.num_blocks : kv.num_blocks + count] = blocks
            kv.num_blocks += count
            room += count * size
        return min(room, num_tokens)

    def advance(self, sequence: Cached, num_tokens: int) -> None:
        """A step has written that many tokens more; blocks that are full now can be found by others."""
        kv, size = sequence.kv, self._size
        kv.num_tokens += num_tokens
        if kv.num_known_blocks == kv.num_tokens // size:
            return
        window, table = sequence.window, self._table(kv)
        for i in range(kv.num_known_blocks, kv.num_tokens // size):
            own = int(table[i])
            block = self._prefixes.add(kv.node, window[i * size : (i + 1) * size].tobytes(), own)
            if block != own:  # somebody has computed the same meanwhile: the same bits
                self.pool.share(block)
                self.pool.release([own])
                table[i] = block
            kv.node = self._prefixes.node_of(block)
            kv.num_known_blocks = i + 1

    def fork(self, kv: KVEntries, copy: KVEntries) -> None:
        """Let `copy`, which has nothing, have all that `kv` has; whoever writes first to a common block copies it."""
        assert copy.num_blocks == 0
        for block in kv.blocks:
            self.pool.share(block)
        if kv.block_table is not None:
            copy.block_table = kv.block_table.copy()
        copy.num_blocks, copy.num_tokens = kv.num_blocks, kv.num_tokens
        copy.num_known_blocks, copy.node = kv.num_known_blocks, kv.node

    def release(self, kv: KVEntries) -> None:
        """Give up all blocks; what is full stays in the prefix cache while there is room."""
        self.pool.release(kv.blocks)
        kv.num_blocks = kv.num_tokens = kv.num_known_blocks = 0
        kv.node = ROOT

    def _table(self, kv: KVEntries) -> Int32:
        if kv.block_table is None:
            kv.block_table = np.zeros(self._table_width, np.int32)
        return kv.block_table
