"""Compiled passes over one row of candidates: what the chain, the built-in samplers and the draw are made of.

Rows are float32 (n,), contiguous, without NaN or +inf unless said otherwise; -inf is a removed candidate. Nothing is
sorted: bounds cut a row down to the few values that matter, and what is exact is decided among those. Every result is a
function of the row alone.
"""

# mypy: disallow-untyped-decorators=False, disallow-untyped-calls=False, warn-return-any=False

from __future__ import annotations

import math

import numpy as np
from numba.core import types

from nvg.runtime.compile_cache import CompileStep, function_step, njit
from nvg.sampling import vector
from nvg.sampling.contract import Logits, TokenIds
from nvg.sampling.vector import CHUNK, LANES

_LOWEST, _HIGHEST = np.finfo(np.float32).min, np.finfo(np.float32).max
_INF = np.float32(np.inf)
_MAGNITUDE = 0x7FFFFFFF  # of a float32: all bits but the sign
FEW = 4096
"""Rows up to this size are searched as they are; longer ones are cut down first."""
_BLOCK = 8 * CHUNK
_DRAW_BLOCK = 32 * LANES


@njit
def key_of(value: np.float32) -> np.int64:
    """A float32 as an integer that orders as it does, without gaps; 0 for both zeros."""
    bits = np.int64(np.float32(value).view(np.int32))
    return bits if bits >= 0 else -(bits & _MAGNITUDE)


@njit
def value_of(key: np.int64) -> np.float32:
    """The float32 of a `key_of`."""
    return np.int32(key if key >= 0 else -key - _MAGNITUDE - 1).view(np.float32)


@njit
def above(value: np.float32) -> np.float32:
    """The next larger float32."""
    return value_of(key_of(value) + 1)


@njit
def largest(row: Logits) -> np.float32:
    """The largest logit."""
    whole = row.size // CHUNK
    top = vector.largest(row, 0, whole, _LOWEST)
    for i in range(whole * CHUNK, row.size):
        top = max(top, row[i])
    return min(top, _HIGHEST)  # a row that breaks the rules gets a wrong answer, not memory that is not its own


@njit
def count_reaching(row: Logits, bound: np.float32) -> np.int64:
    """How many are at least `bound`."""
    whole = row.size // CHUNK
    count = vector.count_reaching(row, 0, whole, bound)
    for i in range(whole * CHUNK, row.size):
        count += row[i] >= bound
    return count


@njit(cached=True, nogil=False)
def count_candidates(row: Logits) -> int:
    """How many are above -inf; -1 if any is NaN or +inf."""
    whole = row.size // CHUNK
    count = vector.count_candidates(row, 0, whole, _LOWEST)
    for i in range(whole * CHUNK, row.size):
        if not row[i] < _INF:
            return -1
        if count >= 0 and row[i] >= _LOWEST:
            count += 1
    return count


@njit
def _last_bits(row: Logits, start: int, low: np.float32, high: np.float32) -> int:
    """`_bits` where the row ends before the chunk does."""
    bits = np.uint32(0)
    for i in range(start, row.size):
        if low <= row[i] < high:
            bits |= np.uint32(1) << np.uint32(i - start)
    return bits


@njit(inline=True)
def _bits(row: Logits, start: int, low: np.float32, high: np.float32) -> int:
    """Which of the up to `CHUNK` values from `start` on have low <= value < high: bit i for row[start + i]."""
    if start + CHUNK <= row.size:
        bits = vector.bits_between(row, start, low, high)
    else:
        bits = _last_bits(row, start, low, high)
    return bits


@njit(cached=True, nogil=False)
def survey(row: Logits, values: Logits, indices: TokenIds) -> int:
    """How many are above -inf; -1 if any is NaN or +inf. If `values` and `indices` have room for so many, these
    candidates and their indices are copied there, in order."""
    count = 0
    whole = row.size // CHUNK * CHUNK
    for start in range(0, whole, CHUNK):
        found = vector.bits_left(row, start)
        if found >> np.uint64(32):
            return -1
        bits = np.uint32(found)
        size = count
        count += vector.count_bits(bits)
        if count > values.size:
            continue
        while bits:
            i = start + vector.lowest_bit(bits)
            bits &= bits - np.uint32(1)
            values[size] = row[i]
            indices[size] = i
            size += 1
    for i in range(whole, row.size):
        if not row[i] < _INF:
            return -1
        if row[i] >= _LOWEST:
            if count < values.size:
                values[count] = row[i]
                indices[count] = i
            count += 1
    return count


@njit(cached=True, nogil=False)
def compact(row: Logits, token_ids: TokenIds, out: Logits, out_ids: TokenIds) -> None:
    """Copy the candidates above -inf and their ids, in order, into `out` and `out_ids`, which have that size."""
    _copy_reaching(row, token_ids, _LOWEST, out, out_ids)


@njit
def compact_from(
    row: Logits, token_ids: TokenIds, threshold: np.float32, size: int, out: Logits, out_ids: TokenIds
) -> None:
    """Copy the `size` largest and their ids, in order, into `out` and `out_ids`, which have the row's size; the last of
    these is known to be `threshold`, and of equal ones the first are taken."""
    excess = _copy_reaching(row, token_ids, threshold, out, out_ids) - size
    if excess <= 0:
        return
    num_equal = 0
    for i in range(size + excess):
        num_equal += out[i] == threshold
    room, left = num_equal - excess, 0
    for i in range(size + excess):
        is_last = out[i] == threshold
        if not is_last or room > 0:
            out[left], out_ids[left] = out[i], out_ids[i]
            left += 1
        room -= is_last


@njit
def _copy_reaching(row: Logits, token_ids: TokenIds, bound: np.float32, out: Logits, out_ids: TokenIds) -> int:
    """Copy what is at least `bound`, and its ids, in order, as far as there is room; returns how many."""
    size, start = 0, 0
    while start + LANES <= row.size and size + LANES <= out.size:
        size = vector.compress(row, token_ids, start, bound, out, out_ids, size)
        start += LANES
    for i in range(start, row.size):
        if row[i] >= bound and size < out.size:
            out[size] = row[i]
            out_ids[size] = token_ids[i]
            size += 1
    return size


@njit
def argmax(row: Logits) -> int:
    """Index of the largest; of equal ones the first."""
    top = largest(row)
    start = 0
    bits = _bits(row, start, top, _INF)
    while not bits and start + CHUNK < row.size:
        start += CHUNK
        bits = _bits(row, start, top, _INF)
    return start + vector.lowest_bit(bits) if bits else 0


@njit(cached=True, nogil=False)
def keep_first_largest(row: Logits) -> None:
    """Remove all but the first of the largest, in place."""
    best = argmax(row)
    top = row[best]
    for i in range(row.size):
        row[i] = -_INF
    row[best] = top


@njit
def _remove_below(row: Logits, bound: np.float32) -> int:
    """How many stay."""
    num_left = 0
    for i in range(row.size):
        stays = row[i] >= bound
        row[i] = row[i] if stays else -_INF
        num_left += stays
    return num_left


@njit(cached=True, nogil=False)
def keep_ratio(row: Logits, log_ratio: float) -> None:
    """Remove, in place, what is less than e^log_ratio times as probable as the most probable."""
    _remove_below(row, ratio_bound(row, log_ratio))


@njit
def ratio_bound(row: Logits, log_ratio: float) -> np.float32:
    """The logit of what is e^log_ratio times as probable as the most probable."""
    return np.float32(np.float64(largest(row)) + log_ratio)


@njit(cached=True, nogil=False)
def keep_from(row: Logits, threshold: np.float32, size: int) -> None:
    """Remove all but the `size` largest, in place, where the last of these is known to be `threshold`; of equal ones
    the first stay."""
    threshold = np.float32(threshold)
    next_one = above(threshold)
    excess = _remove_below(row, threshold) - size
    if excess <= 0:
        return
    room = count_reaching(row, threshold) - count_reaching(row, next_one) - excess
    for start in range(0, row.size, CHUNK):
        bits = _bits(row, start, threshold, next_one)
        while bits:
            if room <= 0:
                row[start + vector.lowest_bit(bits)] = -_INF
            bits &= bits - np.uint32(1)
            room -= 1


@njit
def padded(size: int) -> int:
    """The next multiple of `CHUNK`."""
    return (size + CHUNK - 1) // CHUNK * CHUNK


@njit
def _filled(size: int, value: np.float32) -> Logits:
    filled = np.empty(size, np.float32)
    for i in range(size):
        filled[i] = value
    return filled


@njit
def append_between(
    row: Logits, first: int, end: int, low: np.float32, high: np.float32, found: TokenIds, size: int
) -> int:
    """Write the indices of the values of row[first:end] with low <= value < high to `found` from `size` on; returns
    where they end. first: a multiple of CHUNK; end: another, or the row's."""
    for start in range(first, end, CHUNK):
        bits = _bits(row, start, low, high)
        while bits:
            found[size] = start + vector.lowest_bit(bits)
            bits &= bits - np.uint32(1)
            size += 1
    return size


@njit
def taken(row: Logits, indices: TokenIds, filler: np.float32) -> Logits:
    """row[indices], and `filler` up to a multiple of `CHUNK`."""
    taken = _filled(padded(indices.size), filler)
    for i in range(indices.size):
        taken[i] = row[indices[i]]
    return taken


@njit
def _can_bound(size: int, k: int) -> bool:
    """Whether `_reaching_bound` cuts a row down."""
    return size > FEW and 2 * k * CHUNK <= size


@njit
def _reaching_bound(row: Logits, k: int) -> tuple[np.float32, TokenIds, Logits]:
    """(bound, indices, values) of a few values that the k largest are among, all that are at least `bound`; values are
    filled up with -inf."""
    # Each of the k largest maxima of blocks is an element: so many are at least as large as the k-th of them.
    block = _BLOCK if 2 * k * _BLOCK <= row.size else CHUNK
    maxima = _block_maxima(row, block)
    bound = _search(maxima, k, -_INF)
    found = np.empty(row.size, np.int32)  # memory that stays untouched costs nothing
    size = 0
    for start in range(0, row.size, block):
        if maxima[start // block] >= bound:
            size = append_between(row, start, min(start + block, row.size), bound, _INF, found, size)
    return bound, found[:size], taken(row, found[:size], -_INF)


@njit
def _block_maxima(row: Logits, block: int) -> Logits:
    """The largest of each `block` elements, a multiple of CHUNK; filled up with -inf."""
    maxima = _filled(padded((row.size + block - 1) // block), -_INF)
    whole = row.size // CHUNK
    for start in range(0, whole, block // CHUNK):
        num_chunks = min(block // CHUNK, whole - start)
        maxima[start * CHUNK // block] = vector.largest(row, start * CHUNK, num_chunks, -_INF)
    for i in range(whole * CHUNK, row.size):
        maxima[i // block] = max(maxima[i // block], row[i])
    return maxima


@njit(cached=True, nogil=False)
def kth_largest(row: Logits, k: int) -> np.float32:
    """The k-th largest, 1 <= k <= n; equal ones count each."""
    if not _can_bound(row.size, k):
        return _search(row, k, -_INF)
    bound, _, values = _reaching_bound(row, k)
    return _search(values, k, bound)


@njit(cached=True, nogil=False)
def keep_largest(row: Logits, k: int) -> None:
    """Remove all but the k largest, in place, 1 <= k <= n; of equal ones the first stay."""
    if not _can_bound(row.size, k):
        keep_from(row, kth_largest(row, k), k)
        return
    bound, indices, values = _reaching_bound(row, k)
    threshold = _search(values, k, bound)
    room = k - count_reaching(values, above(threshold))
    for i in range(row.size):
        row[i] = -_INF
    for i in range(indices.size):
        is_last = values[i] == threshold
        if values[i] > threshold or (is_last and room > 0):
            row[indices[i]] = values[i]
        room -= is_last


@njit
def _search(values: Logits, k: int, low: np.float32) -> np.float32:
    """The k-th largest, which is at least `low`: bit by bit, counting."""
    reached, missed = key_of(low), key_of(_INF)
    while missed - reached > 1:
        middle = (reached + missed) >> 1
        if count_reaching(values, value_of(middle)) >= k:
            reached = middle
        else:
            missed = middle
    return value_of(reached)


@njit(cached=True, nogil=False)
def divide(row: Logits, t: float) -> None:
    """row = (row - largest) / t, in place, computed in float64; t > 0. What overflows is removed."""
    top = np.float64(largest(row))
    for i in range(row.size):
        row[i] = (np.float64(row[i]) - top) / t


@njit
def _chunk_at(row: Logits, start: int) -> tuple[Logits, int]:
    """`LANES` values from `start` on, and where in the array they begin; beyond the row's end -inf."""
    if start + LANES <= row.size:
        return row, start
    chunk = np.empty(LANES, np.float32)
    for i in range(LANES):
        chunk[i] = row[start + i] if start + i < row.size else -_INF
    return chunk, 0


@njit(cached=True, nogil=False)
def pick(row: Logits, uniform: float) -> tuple[int, float]:
    """(index, log-probability) of the first candidate of softmax(row) whose cumulative probability exceeds `uniform`.

    Weights are float64. Those of `_DRAW_BLOCK` candidates are added in `LANES` sums, these from the first to the last,
    and so are the blocks' totals, and in the block that decides all that come before a candidate.
    """
    top = largest(row)
    totals = np.empty((row.size + _DRAW_BLOCK - 1) // _DRAW_BLOCK)
    total = 0.0
    for block in range(totals.size):
        start = block * _DRAW_BLOCK
        whole = (min(start + _DRAW_BLOCK, row.size) - start) // LANES
        weight = vector.total_weight(row, start, whole, top)
        if start + whole * LANES < min(start + _DRAW_BLOCK, row.size):
            chunk, offset = _chunk_at(row, start + whole * LANES)
            weight += vector.total_weight(chunk, offset, 1, top)
        total += weight
        totals[block] = total
    # `uniform` is at most 1 - 2**-53, and that times the total is below the total in floating point too.
    bar = uniform * total
    block = 0
    while block < totals.size - 1 and not totals[block] > bar:
        block += 1
    reached = totals[block - 1] if block else 0.0
    sums = np.empty(LANES)
    found = 0  # where rounding lets no sum of the block exceed the bar, its last candidate that weighs anything
    for start in range(block * _DRAW_BLOCK, min((block + 1) * _DRAW_BLOCK, row.size), LANES):
        before = reached
        chunk, offset = _chunk_at(row, start)
        reached = vector.accumulate(chunk, offset, top, reached, sums)
        for i in range(min(LANES, row.size - start)):
            if sums[i] > before:
                found, before = start + i, sums[i]
                if before > bar:
                    return found, np.float64(row[found]) - np.float64(top) - math.log(total)
    return found, np.float64(row[found]) - np.float64(top) - math.log(total)


def compile_steps() -> list[CompileStep]:
    """All of this file that Python calls."""
    row, ids = types.float32[::1], types.int32[::1]
    int64, float64 = types.int64, types.float64
    return [
        function_step(count_candidates, (row,)),
        function_step(survey, (row, row, ids)),
        function_step(compact, (row, ids, row, ids)),
        function_step(keep_first_largest, (row,)),
        function_step(keep_ratio, (row, float64)),
        function_step(keep_from, (row, float64, int64)),
        function_step(keep_largest, (row, int64)),
        function_step(kth_largest, (row, int64)),
        function_step(divide, (row, float64)),
        function_step(pick, (row, float64)),
    ]
