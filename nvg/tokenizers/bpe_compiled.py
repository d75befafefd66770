"""Long texts' ids as compiled code over UTF-8: what `bpe` does piece by piece in Python.

A word that came before takes its ids from there: the table of words holds places in the text and in the ids, and is as
large whatever comes. O(n log n) for any text, but for patterns that look far ahead for nothing, again and again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from nvg.runtime.compile_cache import CompileStep, function_step, njit
from nvg.runtime.cores import default_threads
from nvg.tokenizers.automaton import GAPS, MATCHES, SplitTables
from nvg.tokenizers.bpe_merge import MergeTable
from nvg.tokenizers.byte_alphabet import ByteIds
from nvg.tokenizers.merging_compiled import MAX_SCANNED_IDS, Merges, fill_ranks, merge_few, merge_many, merges_of
from nvg.tokenizers.splitting_compiled import Splits, next_match, splits_of

_MAX_CACHED_BYTES = 32
_CACHE_SLOTS = 1 << 15
_BYTES_PER_THREAD = 1 << 19
_SEEN_PER_BYTE, _SEEN = 256, 1 << 24
"""How many characters a pattern may look at in a text before it counts as hostile: a second's work for a megabyte."""

_Array = npt.NDArray[Any]


class Bytes(NamedTuple):
    """The arrays of ByteIds."""

    ids: _Array
    unknown_id: int
    fuses_unknown: bool


class WholePieces(NamedTuple):
    """Pieces that are one token whatever the merges say, by open addressing in a power of 2 slots (none: no slots)."""

    text: _Array
    """uint8: the pieces, one after the other."""
    bounds: _Array
    """int64: where each begins, and the last ends."""
    ids: _Array
    """int32: the id of each."""
    slots: _Array
    """int32: the piece in each slot, -1 for none."""
    longest: int
    """Bytes."""


class CompiledBPE:
    """Texts -> ids of one vocabulary."""

    def __init__(
        self,
        splits: SplitTables,
        merges: MergeTable,
        byte_ids: ByteIds,
        whole_pieces: Mapping[bytes, int] | None = None,
    ) -> None:
        """whole_pieces: ids of the pieces that are one token whatever the merges say."""
        self._splits, self._merges = splits_of(splits), merges_of(merges)
        self._bytes = Bytes(np.array(byte_ids.ids, np.int32), byte_ids.unknown_id, byte_ids.fuses_unknown)
        self._whole_pieces = _whole_pieces(whole_pieces or {})

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, in as many threads as there is work for; none of them needs the GIL.

        Raises TimeoutError for a pattern that looks at a text again and again.
        """
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
        limit = _SEEN + _SEEN_PER_BYTE * text.size
        if not _encode(
            text, bounds, self._splits, self._bytes, self._whole_pieces, self._merges, ids, out_bounds, limit
        ):
            raise TimeoutError
        return [ids[start:end].tolist() for start, end in pairwise(out_bounds.tolist())]


def _whole_pieces(ids: Mapping[bytes, int]) -> WholePieces:
    text = np.frombuffer(b"".join(ids) or b"\0", np.uint8)
    bounds = np.zeros(len(ids) + 1, np.int64)
    np.cumsum(list(map(len, ids)), out=bounds[1:])
    slots = np.full(1 << (2 * len(ids)).bit_length() if ids else 0, -1, np.int32)
    pieces = WholePieces(text, bounds, np.array(list(ids.values()), np.int32), slots, max(map(len, ids), default=0))
    _fill_pieces(pieces)
    return pieces


def compile_steps() -> list[CompileStep]:
    """What must be compiled before the first text."""
    i32, i64 = np.zeros(1, np.int32), np.zeros(1, np.int64)
    text = np.frombuffer(b"\0", np.uint8)
    splits = Splits(np.zeros(1, np.uint8), i32, i64, i64, 0)
    pieces, merges = WholePieces(text, i64, i32, i32, 0), Merges(i64, i32, i32, 0)
    arguments = (text, i64, splits, Bytes(i32, 0, False), pieces, merges, i32, i64, 0)
    return [
        function_step(function, tuple(map(numba.typeof, given)))
        for function, given in ((_encode, arguments), (fill_ranks, (i64, i32, i64, i32)), (_fill_pieces, (pieces,)))
    ]


def is_ready() -> bool:
    """Whether nothing is left to compile."""
    return all(step.is_cached() for step in compile_steps())


@njit
def _hash(text, start, stop):
    mixed = np.uint64(stop - start)
    for i in range(start, stop):
        mixed = (mixed ^ np.uint64(text[i])) * np.uint64(0x100000001B3)
    return np.int64((mixed ^ (mixed >> np.uint64(29))) & np.uint64(0x7FFFFFFF))


@njit
def _same(text, start, stop, other, begin):
    """Whether text[start:stop] is also at other[begin:]."""
    for i in range(start, stop):  # noqa: SIM110 (compiled, `all` is slower)
        if text[i] != other[i - start + begin]:
            return False
    return True


@njit(cached=True)
def _fill_pieces(pieces):
    """Put each piece into a slot."""
    mask = pieces.slots.size - 1
    for k in range(pieces.bounds.size - 1):
        slot = _hash(pieces.text, pieces.bounds[k], pieces.bounds[k + 1]) & mask
        while pieces.slots[slot] >= 0:
            slot = (slot + 1) & mask
        pieces.slots[slot] = k


@njit
def _whole_id(text, start, stop, hashed, pieces):
    """The id of text[start:stop] as one token, -1 if it is none."""
    mask = pieces.slots.size - 1
    slot = hashed & mask
    while pieces.slots[slot] >= 0:
        k = pieces.slots[slot]
        begin = pieces.bounds[k]
        if pieces.bounds[k + 1] - begin == stop - start and _same(text, start, stop, pieces.text, begin):
            return pieces.ids[k]
        slot = (slot + 1) & mask
    return np.int32(-1)


@njit
def _encode_piece(text, start, stop, byte_ids, hashed, pieces, merges, ids):
    """Ids of one piece into ids[: stop - start]; how many there are."""
    if stop - start <= pieces.longest:
        whole_id = _whole_id(text, start, stop, hashed, pieces)
        if whole_id >= 0:
            ids[0] = whole_id
            return 1
    length = 0
    was_unknown = False
    for i in range(start, stop):
        token_id = byte_ids.ids[text[i]]
        is_unknown = token_id < 0
        if is_unknown:
            token_id = np.int32(-1 if byte_ids.fuses_unknown and was_unknown else byte_ids.unknown_id)
        if token_id >= 0:
            ids[length] = token_id
            length += 1
        was_unknown = is_unknown
    if length <= MAX_SCANNED_IDS:
        return merge_few(ids, length, merges)
    return merge_many(ids, length, merges)


@njit(cached=True)
def _encode(text, bounds, splits, byte_ids, pieces, merges, ids, out_bounds, limit):
    """Ids of the texts text[bounds[k] : bounds[k + 1]] into ids[out_bounds[k] : out_bounds[k + 1]]; False after looking
    at more than `limit` characters.

    text, uint8: UTF-8, whole characters. ids, int32: as many as bytes, at most.
    """
    words = np.zeros((_CACHE_SLOTS, 4), np.int64)  # begin and length in the text, begin and length in the ids
    num_steps = splits.starts.size
    # What each step has still to cut, and where its next match ends if that begins there.
    begins, ends = np.zeros(num_steps + 1, np.int64), np.zeros(num_steps + 1, np.int64)
    matches = np.zeros(num_steps + 1, np.int64)
    num_ids, seen = 0, 0
    for k in range(bounds.size - 1):
        begins[0], ends[0], matches[0] = bounds[k], bounds[k + 1], 0
        step = 0
        while step >= 0:
            start, end = begins[step], ends[step]
            if start == end:
                step -= 1
                continue
            if step < num_steps:
                kind = MATCHES
                stop = matches[step]
                matches[step] = 0
                if stop == 0:
                    begin, stop, looked = next_match(text, start, end, splits, step, limit - seen)
                    seen += looked
                    if seen > limit:
                        return False
                    if begin > start:
                        kind = GAPS
                        matches[step] = stop if stop > begin else 0
                        stop = begin
                begins[step] = stop
                if splits.kept[step] & kind:
                    step += 1
                    begins[step], ends[step], matches[step] = start, stop, 0
                continue
            step -= 1
            length = end - start
            hashed = _hash(text, start, end) if length <= max(_MAX_CACHED_BYTES, pieces.longest) else 0
            slot = -1
            if length <= _MAX_CACHED_BYTES:
                slot = hashed & (_CACHE_SLOTS - 1)
                if words[slot, 1] == length and _same(text, start, end, text, words[slot, 0]):
                    begin = words[slot, 2]
                    for i in range(words[slot, 3]):
                        ids[num_ids + i] = ids[begin + i]
                    num_ids += words[slot, 3]
                    continue
            count = _encode_piece(text, start, end, byte_ids, hashed, pieces, merges, ids[num_ids : num_ids + length])
            if slot >= 0:
                words[slot, 0], words[slot, 1], words[slot, 2], words[slot, 3] = start, length, num_ids, count
            num_ids += count
        out_bounds[k + 1] = num_ids
    return True
