"""The merges of byte-pair encoding: lowest rank first, leftmost first among equals (Sennrich et al. 2016,
arXiv:1508.07909, in the order of the published GPT-2 encoder)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import heapify, heappop, heappush
from itertools import pairwise

_MAX_SCANNED_IDS = 64
"""Up to here a scan for the lowest rank is faster than keeping the pairs in order (measured: equal at 64 to 128)."""


class MergeTable:
    """Which pairs of ids merge, in which order, into which id. Immutable.

    `left_ids[r]` and `right_ids[r]` become `merged_ids[r]`, the token that joins the two; a lower rank r goes first. Of
    a pair that is listed twice the last rank counts. All ids are below `vocab_size`.
    """

    def __init__(
        self, left_ids: Sequence[int], right_ids: Sequence[int], merged_ids: Sequence[int], vocab_size: int
    ) -> None:
        # One integer per pair: half the memory of a tuple, and nothing for the garbage collector to visit.
        pairs = [left * vocab_size + right for left, right in zip(left_ids, right_ids, strict=True)]
        self._ranks = dict(zip(pairs, range(len(merged_ids)), strict=True))
        self._merged_ids = merged_ids
        self._vocab_size = vocab_size

    def pairs(self) -> list[tuple[int, int]]:
        """The pairs of ids in the order of their ranks."""
        return [divmod(pair, self._vocab_size) for pair in sorted(self._ranks, key=self._ranks.__getitem__)]

    def columns(self) -> tuple[list[int], list[int], Sequence[int], int]:
        """Each pair as left * vocab_size + right, its rank, the id that each rank merges into, and vocab_size."""
        return list(self._ranks), list(self._ranks.values()), self._merged_ids, self._vocab_size

    def merge(self, ids: list[int]) -> list[int]:
        """The ids after all merges; overwrites `ids`. O(n log n)."""
        return self._scan(ids) if len(ids) <= _MAX_SCANNED_IDS else self._sweep(ids)

    def _scan(self, ids: list[int]) -> list[int]:
        """`merge` for a few ids: O(n^2), with a small constant."""
        rank_of, size, never = self._ranks.get, self._vocab_size, len(self._merged_ids)
        ranks = [rank_of(left * size + right, never) for left, right in pairwise(ids)]
        while ranks and (rank := min(ranks)) < never:
            i = ranks.index(rank)
            new_id = ids[i] = self._merged_ids[rank]
            del ids[i + 1], ranks[i]
            if i > 0:
                ranks[i - 1] = rank_of(ids[i - 1] * size + new_id, never)
            if i < len(ranks):
                ranks[i] = rank_of(new_id * size + ids[i + 1], never)
        return ids

    def _sweep(self, ids: list[int]) -> list[int]:
        """`merge` for many ids: a linked list, and a heap of ranks with the positions where each may apply.

        A rank's positions are swept from left to right. The sweep pauses where a merge makes a pair of lower rank
        possible (only vocabularies that reach one token in two ways have those). No position can join a rank that
        was begun: until it ends, every new pair holds a token that is longer than both of its own.
        """
        rank_of, size = self._ranks.get, self._vocab_size
        end = len(ids)
        following = list(range(1, end + 1))
        preceding = list(range(-1, end - 1))
        waiting: dict[int, list[int]] = {}
        for i, (left, right) in enumerate(pairwise(ids)):
            rank = rank_of(left * size + right)
            if rank is not None:
                waiting.setdefault(rank, []).append(i)
        begun: dict[int, Iterator[int]] = {}
        heap = list(waiting)
        heapify(heap)

        while heap:
            rank = heappop(heap)
            new_id = self._merged_ids[rank]
            positions = begun.pop(rank, None) or iter(sorted(waiting.pop(rank)))
            for i in positions:
                j = following[i]
                # Stale where another merge has taken one of the two (what was a right side is -1: no pair's number).
                if j == end or rank_of(ids[i] * size + ids[j]) != rank:
                    continue
                ids[i], ids[j] = new_id, -1
                after = following[i] = following[j]
                before = preceding[i]
                lowest = rank
                if after < end:
                    preceding[after] = i
                    new_rank = rank_of(new_id * size + ids[after])
                    if new_rank is not None:
                        lowest = _enqueue(new_rank, i, waiting, heap, lowest)
                if before >= 0:
                    new_rank = rank_of(ids[before] * size + new_id)
                    if new_rank is not None:
                        lowest = _enqueue(new_rank, before, waiting, heap, lowest)
                if lowest < rank:
                    begun[rank] = positions
                    heappush(heap, rank)
                    break
        return [token_id for token_id in ids if token_id >= 0]


def _enqueue(rank: int, position: int, waiting: dict[int, list[int]], heap: list[int], lowest: int) -> int:
    """Let `position` wait for its turn at `rank`; the lower of `rank` and `lowest`."""
    if rank in waiting:
        waiting[rank].append(position)
    else:
        waiting[rank] = [position]
        heappush(heap, rank)
    return min(rank, lowest)
