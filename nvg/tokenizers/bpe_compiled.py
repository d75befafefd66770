"""GPT-2's pieces and merges for long texts, as compiled code over UTF-8: what `bpe` does piece by piece in Python.

The pieces are found by a scanner of its own, for GPT-2's published pattern alone; Unicode's letters, digits and spaces
are those of the library that runs the pattern, so both cut alike. A word that came before takes its ids from there: the
table of words holds places in the text and in the ids, and is as large whatever comes. O(n log n) for any text.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import accumulate, pairwise
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import regex

from nvg.runtime.compile_cache import CompileStep, function_step, njit
from nvg.runtime.cores import default_threads
from nvg.tokenizers.bpe_merge import MergeTable
from nvg.tokenizers.byte_alphabet import ByteIds

_LETTER, _DIGIT, _SPACE = 1, 2, 3  # and 0 for all else
_MAX_CACHED_BYTES = 32
_CACHE_SLOTS = 1 << 15
_MAX_SCANNED_IDS = 64  # above it, a heap of pairs
_BYTES_PER_THREAD = 1 << 19

_Array = npt.NDArray[Any]


class CompiledBPE:
    """Texts -> ids of one vocabulary."""

    def __init__(self, merges: MergeTable, byte_ids: ByteIds) -> None:
        pairs, ranks, merged_ids, self._vocab_size = merges.columns()
        size = 1 << max(4, (2 * len(pairs)).bit_length())
        self._keys, self._ranks = np.full(size, -1, np.int64), np.zeros(size, np.int32)
        _fill(np.array(pairs, np.int64), np.array(ranks, np.int32), self._keys, self._ranks)
        self._merged_ids = np.array(merged_ids, np.int32)
        self._byte_ids = np.array(byte_ids.ids, np.int32)
        self._unknown_id, self._fuses_unknown = byte_ids.unknown_id, byte_ids.fuses_unknown

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, in as many threads as there is work for; none of them needs the GIL."""
        data = [text.encode() for text in texts]
        total = sum(map(len, data))
        num_threads = max(1, min(default_threads(), total // _BYTES_PER_THREAD, len(data)))
        if num_threads == 1:
            return self._encode(data)
        ends = np.fromiter(accumulate(map(len, data)), np.int64, len(data))
        cuts = [0, *np.searchsorted(ends, [total * k // num_threads for k in range(1, num_threads)]), len(data)]
        with ThreadPoolExecutor(num_threads) as pool:
            parts = pool.map(self._encode, [data[a:b] for a, b in pairwise(cuts)])
            return [ids for part in parts for ids in part]

    def _encode(self, data: Sequence[bytes]) -> list[list[int]]:
        bounds = np.zeros(len(data) + 1, np.int64)
        np.cumsum([len(text) for text in data], out=bounds[1:])
        ids = np.empty(bounds[-1], np.int32)
        out_bounds = np.zeros_like(bounds)
        text = np.frombuffer(b"".join(data) or b"\0", np.uint8)
        _encode(
            text, bounds, _classes(), self._byte_ids, self._unknown_id, self._fuses_unknown, self._keys, self._ranks,
            self._merged_ids, self._vocab_size, ids, out_bounds,
        )  # fmt: skip
        ends = out_bounds.tolist()
        return [ids[start:end].tolist() for start, end in pairwise(ends)]


def compile_steps() -> list[CompileStep]:
    """What must be compiled before the first text."""
    i8, i32, i64 = (
        numba.types.int64,
        numba.types.Array(numba.types.int32, 1, "C"),
        numba.types.Array(numba.types.int64, 1, "C"),
    )
    boolean = numba.types.boolean
    read_u1 = numba.types.Array(numba.types.uint8, 1, "C", readonly=True)
    return [
        function_step(_fill, (i64, i32, i64, i32)),
        function_step(_encode, (read_u1, i64, read_u1, i32, i8, boolean, i64, i32, i32, i8, i32, i64)),
    ]


def is_ready() -> bool:
    """Whether nothing is left to compile."""
    return all(step.is_cached() for step in compile_steps())


@cache
def _classes() -> npt.NDArray[np.uint8]:
    """The class of each code point, (0x110000,): as `regex` has them, which is what the pattern is written for."""
    every = np.arange(0x110000, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")
    classes = np.zeros(0x110000, np.uint8)
    for number, pattern in ((_LETTER, r"\p{L}+"), (_DIGIT, r"\p{N}+"), (_SPACE, r"\s+")):
        for run in regex.finditer(pattern, every):
            classes[run.start() : run.end()] = number
    classes.flags.writeable = False
    return classes


@njit(cached=True)
def _fill(pairs, new_ranks, keys, ranks):
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
def _rank_of(left, right, vocab_size, keys, ranks):
    """The rank of two ids; -1 if they don't merge."""
    pair = left * vocab_size + right
    mask = keys.size - 1
    slot = _slot(pair, mask)
    while keys[slot] != -1:
        if keys[slot] == pair:
            return np.int64(ranks[slot])
        slot = (slot + 1) & mask
    return np.int64(-1)


@njit(inline=True)
def _num_bytes(lead):
    """Of a character in UTF-8, by its first byte."""
    return 1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4


@njit
def _class_at(text, i, classes):
    """The class of the character at byte i."""
    lead = np.int64(text[i])
    if lead < 0x80:
        return classes[lead]
    if lead < 0xE0:
        return classes[(lead & 0x1F) << 6 | (text[i + 1] & 0x3F)]
    if lead < 0xF0:
        return classes[(lead & 0xF) << 12 | np.int64(text[i + 1] & 0x3F) << 6 | (text[i + 2] & 0x3F)]
    return classes[
        (lead & 7) << 18 | np.int64(text[i + 1] & 0x3F) << 12 | np.int64(text[i + 2] & 0x3F) << 6 | (text[i + 3] & 0x3F)
    ]


@njit
def _piece_end(text, start, end, classes):
    """Where the piece that begins at `start` ends: the alternatives of the pattern, in its order."""
    first = text[start]
    if first == 0x27 and start + 1 < end:  # 's 't 're 've 'm 'll 'd
        second = text[start + 1]
        if second == 0x73 or second == 0x74 or second == 0x6D or second == 0x64:
            return start + 2
        if start + 2 < end:
            third = text[start + 2]
            if third == 0x65 and (second == 0x72 or second == 0x76):
                return start + 3
            if third == 0x6C and second == 0x6C:
                return start + 3
    i = start
    kind = _class_at(text, i, classes)
    if first == 0x20 and start + 1 < end:  # one space may go before letters, digits, or others
        after = _class_at(text, start + 1, classes)
        if after != _SPACE:
            i, kind = start + 1, after
    last = i
    while i < end and _class_at(text, i, classes) == kind:
        last = i
        i += _num_bytes(text[i])
    if kind == _SPACE and i < end and last > start:
        return last  # the last space goes with what follows
    return i


@njit
def _merge_few(ids, n, vocab_size, keys, ranks, merged_ids):
    """Merge ids[:n] in place by looking for the lowest rank; how many are left."""
    pair_ranks = np.empty(_MAX_SCANNED_IDS, np.int64)
    for i in range(n - 1):
        pair_ranks[i] = _rank_of(ids[i], ids[i + 1], vocab_size, keys, ranks)
    while n > 1:
        best, at = np.int64(-1), 0
        for i in range(n - 1):
            if pair_ranks[i] >= 0 and (best < 0 or pair_ranks[i] < best):
                best, at = pair_ranks[i], i
        if best < 0:
            break
        ids[at] = merged_ids[best]
        for i in range(at + 1, n - 1):
            ids[i] = ids[i + 1]
            pair_ranks[i - 1] = pair_ranks[i]
        n -= 1
        if at > 0:
            pair_ranks[at - 1] = _rank_of(ids[at - 1], ids[at], vocab_size, keys, ranks)
        if at < n - 1:
            pair_ranks[at] = _rank_of(ids[at], ids[at + 1], vocab_size, keys, ranks)
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
def _merge_many(ids, n, vocab_size, keys, ranks, merged_ids):
    """Merge ids[:n] in place by a linked list and a heap of (rank, place); how many are left."""
    following, preceding = np.empty(n, np.int32), np.empty(n, np.int32)
    pair_ranks = np.full(n, -1, np.int64)
    heap = np.empty(3 * n, np.int64)
    size = 0
    for i in range(n):
        following[i], preceding[i] = i + 1, i - 1
        if i + 1 < n:
            rank = _rank_of(ids[i], ids[i + 1], vocab_size, keys, ranks)
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
        ids[i], ids[j] = merged_ids[rank], -1
        pair_ranks[i] = pair_ranks[j] = -1
        after, before = following[j], preceding[i]
        following[i] = after
        if after < n:
            preceding[after] = i
            new_rank = _rank_of(ids[i], ids[after], vocab_size, keys, ranks)
            pair_ranks[i] = new_rank
            if new_rank >= 0:
                size = _push(heap, size, new_rank << 32 | i)
        if before >= 0:
            new_rank = _rank_of(ids[before], ids[i], vocab_size, keys, ranks)
            pair_ranks[before] = new_rank
            if new_rank >= 0:
                size = _push(heap, size, new_rank << 32 | before)
    left = 0
    for i in range(n):
        if ids[i] >= 0:
            ids[left] = ids[i]
            left += 1
    return left


@njit(cached=True)
def _encode(
    text, bounds, classes, byte_ids, unknown_id, fuses_unknown, keys, ranks, merged_ids, vocab_size, ids, out_bounds
):
    """Ids of the texts text[bounds[k] : bounds[k + 1]] into ids[out_bounds[k] : out_bounds[k + 1]].

    text, uint8: UTF-8, whole characters. ids, int32: as many as bytes, at most. Other arguments as in CompiledBPE.
    """
    words = np.zeros((_CACHE_SLOTS, 4), np.int64)  # begin and length in the text, begin and length in the ids
    num_ids = 0
    for k in range(bounds.size - 1):
        start, end = bounds[k], bounds[k + 1]
        while start < end:
            stop = _piece_end(text, start, end, classes)
            length = stop - start
            slot = -1
            if length <= _MAX_CACHED_BYTES:
                mixed = np.uint64(length)
                for i in range(start, stop):
                    mixed = (mixed ^ np.uint64(text[i])) * np.uint64(0x100000001B3)
                slot = np.int64((mixed ^ (mixed >> np.uint64(29))) & np.uint64(_CACHE_SLOTS - 1))
                found = words[slot, 1] == length
                if found:
                    offset = words[slot, 0] - start
                    for i in range(start, stop):
                        if text[i] != text[i + offset]:
                            found = False
                            break
                if found:
                    begin = words[slot, 2]
                    for i in range(words[slot, 3]):
                        ids[num_ids + i] = ids[begin + i]
                    num_ids += words[slot, 3]
                    start = stop
                    continue
            piece = ids[num_ids : num_ids + length]
            length = 0
            was_unknown = False
            for i in range(start, stop):
                token_id = byte_ids[text[i]]
                is_unknown = token_id < 0
                if is_unknown:
                    token_id = np.int32(-1 if fuses_unknown and was_unknown else unknown_id)
                if token_id >= 0:
                    piece[length] = token_id
                    length += 1
                was_unknown = is_unknown
            if length <= _MAX_SCANNED_IDS:
                length = _merge_few(piece, length, vocab_size, keys, ranks, merged_ids)
            else:
                length = _merge_many(piece, length, vocab_size, keys, ranks, merged_ids)
            if slot >= 0:
                words[slot, 0], words[slot, 1] = start, stop - start
                words[slot, 2], words[slot, 3] = num_ids, length
            num_ids += length
            start = stop
        out_bounds[k + 1] = num_ids
