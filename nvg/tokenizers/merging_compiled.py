"""The merges of byte-pair encoding as compiled code: `bpe_merge` in arrays."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nvg.runtime.compile_cache import njit
from nvg.tokenizers.bpe_merge import MergeTable

MAX_SCANNED_IDS = 64
"""Of `merge_few`; above it, a heap of pairs is faster."""

_Array = npt.NDArray[Any]


class Merges(NamedTuple):
    """A merge table: a pair's rank by open addressing, in a power of 2 slots."""

    keys: _Array
    """int64: left * vocab_size + right, -1 where the slot is free."""
    ranks: _Array
    """int32, of each key."""
    merged_ids: _Array
    """int32: what each rank makes of a pair."""
    vocab_size: int


def merges_of(table: MergeTable) -> Merges:
    """The arrays of a merge table."""
    pairs, ranks, merged_ids, vocab_size = table.columns()
    size = 1 << max(4, (2 * len(pairs)).bit_length())
    merges = Merges(np.full(size, -1, np.int64), np.zeros(size, np.int32), np.array(merged_ids, np.int32), vocab_size)
    fill_ranks(np.array(pairs, np.int64), np.array(ranks, np.int32), merges.keys, merges.ranks)
    return merges


@njit(cached=True)
def fill_ranks(pairs, new_ranks, keys, ranks):
    """Put each pair's rank into the table `keys`, `ranks` (open addressing; a power of 2 slots, -1 is free)."""
    mask = keys.size - 1
    for i in range(pairs.size):
        slot = _slot(pairs[i], mask)
        while keys[slot] != -1:
            slot = (slot + 1) & mask
        keys[slot] = pairs[i]
        ranks[slot] = new_ranks[i]


@njit(inline=True)
def _slot(pair, mask):
    return ((pair * 0x9E3779B97F4A7C1) >> 20) & mask


@njit
def _rank_of(left, right, merges):
    """The rank of two ids; -1 if they don't merge."""
    keys, ranks = merges.keys, merges.ranks
    pair = left * merges.vocab_size + right
    mask = keys.size - 1
    slot = _slot(pair, mask)
    while keys[slot] != -1:
        if keys[slot] == pair:
            return np.int64(ranks[slot])
        slot = (slot + 1) & mask
    return np.int64(-1)


@njit
def merge_few(ids, n, merges):
    """Merge ids[:n] in place by looking for the lowest rank; how many are left."""
    pair_ranks = np.empty(MAX_SCANNED_IDS, np.int64)
    for i in range(n - 1):
        pair_ranks[i] = _rank_of(ids[i], ids[i + 1], merges)
    while n > 1:
        best, at = np.int64(-1), 0
        for i in range(n - 1):
            if pair_ranks[i] >= 0 and (best < 0 or pair_ranks[i] < best):
                best, at = pair_ranks[i], i
        if best < 0:
            break
        ids[at] = merges.merged_ids[best]
        for i in range(at + 1, n - 1):
            ids[i] = ids[i + 1]
            pair_ranks[i - 1] = pair_ranks[i]
        n -= 1
        if at > 0:
            pair_ranks[at - 1] = _rank_of(ids[at - 1], ids[at], merges)
        if at < n - 1:
            pair_ranks[at] = _rank_of(ids[at], ids[at + 1], merges)
    return n


@njit
def _push(heap, size, key):
    i = size
    while i > 0 and heap[(i - 1) >> 1] > key:
        heap[i] = heap[(i - 1) >> 1]
        i = (i - 1) >> 1
    heap[i] = key
    return size + 1


@njit
def _pop(heap, size):
    """Remove heap[0]; the new size."""
    size -= 1
    key = heap[size]
    i = 0
    while 2 * i + 1 < size:
        child = 2 * i + 1
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= key:
            break
        heap[i] = heap[child]
        i = child
    heap[i] = key
    return size


@njit
def merge_many(ids, n, merges):
    """Merge ids[:n] in place by a linked list and a heap of (rank, place); how many are left."""
    following, preceding = np.empty(n, np.int32), np.empty(n, np.int32)
    pair_ranks = np.full(n, -1, np.int64)
    heap = np.empty(3 * n, np.int64)
    size = 0
    for i in range(n):
        following[i], preceding[i] = i + 1, i - 1
        if i + 1 < n:
            rank = _rank_of(ids[i], ids[i + 1], merges)
            pair_ranks[i] = rank
            if rank >= 0:
                size = _push(heap, size, rank << 32 | i)
    while size:
        key = heap[0]
        size = _pop(heap, size)
        i = key & 0xFFFFFFFF
        rank = key >> 32
        if pair_ranks[i] != rank:  # another merge has taken one of the two
            continue
        j = following[i]
        ids[i], ids[j] = merges.merged_ids[rank], -1
        pair_ranks[i] = pair_ranks[j] = -1
        after, before = following[j], preceding[i]
        following[i] = after
        if after < n:
            preceding[after] = i
            new_rank = _rank_of(ids[i], ids[after], merges)
            pair_ranks[i] = new_rank
            if new_rank >= 0:
                size = _push(heap, size, new_rank << 32 | i)
        if before >= 0:
            new_rank = _rank_of(ids[before], ids[i], merges)
            pair_ranks[before] = new_rank
            if new_rank >= 0:
                size = _push(heap, size, new_rank << 32 | before)
    left = 0
    for i in range(n):
        if ids[i] >= 0:
            ids[left] = ids[i]
            left += 1
    return left
