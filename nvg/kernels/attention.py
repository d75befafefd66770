"""Causal attention over the paged pool of keys and values (`nvg.kernels.kv` has its layout).

Prefill and decode are the same code: a tile of query rows of one sequence and head. Scores fit in cache (a context is
short), so the softmax makes two passes over them.

A row sees the keys up to its own position. The tile multiplies the keys up to its last row's; for a row that must not
see one, its weight is an exact 0, which leaves a sum as it is. All these keys were written in this step or before, or
cleared beside one that was, so nothing that a pool's earlier user left behind is ever multiplied (it may be anything,
and 0 times NaN is NaN). Each output is one chain in the keys' order, whatever the tile.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import carray

from nvg.kernels import simd
from nvg.kernels.formats import KEYS_PANEL, PANEL
from nvg.kernels.kv import (
    KV_ITEM_BYTES,
    KV_PAIR,
    KV_SCALE_BYTES,
    KV_TILES,
    QUERY_ITEM_BYTES,
    kv_layout,
    round32,
    store_entry,
)
from nvg.kernels.microkernels import apart_product, heights, paged_product, panel_product
from nvg.kernels.operands import store_operand
from nvg.kernels.simd import float32_at
from nvg.kernels.tiles import FROM_C
from nvg.runtime.atomics import atomic_add
from nvg.runtime.compile_cache import njit
from nvg.runtime.team import NEXT_UNIT

QUERY_ROWS = heights("float32")[0]
"""Most query rows of a tile, and most heads of a sequence with one query."""
SUM_ROWS = QUERY_ROWS + 2
"""Rows of scratch: two for a key and a value."""
_FIXED_WORK = 24
"""Of a head with one query, in keys: what is to be done however few there are."""

_FETCHED = ("int8",)
"""Keys and values whose next block is fetched while one is at work: what a head has of a block is too short for the
hardware to have begun by itself (half the time at 400 keys). Of twice or four times as many bytes it takes longer."""


@njit
def _block_at(pool, tables, index, block_bytes):
    """Where the block begins whose number is tables[index]; `pool` is what the addresses are to be relative to."""
    return pool + np.int64(tables[index]) * block_bytes


@cache
def _score_keys(kv_dtype: str) -> Any:
    """The compiled function that writes scores[rows, keys] = q[rows] . K[keys] for the first num_keys keys.

    keys: address of the head's keys in block 0. tables[table] is the number of the sequence's first block.
    """
    multiply_panel = panel_product(KV_TILES[kv_dtype], is_keys=True)
    item, pair, scale_bytes = KV_ITEM_BYTES[kv_dtype], KV_PAIR[kv_dtype], KV_SCALE_BYTES[kv_dtype]

    def score(
        q, ldq, num_rows, num_keys, keys, block_bytes, block_size, head_size, tables, table, scores, lds
    ):  # fmt: skip
        steps = (head_size + pair - 1) // pair
        for first_key in range(0, num_keys, block_size):
            at = _block_at(keys, tables, table + first_key // block_size, block_bytes)
            for key in range(0, min(block_size, num_keys - first_key), PANEL):
                to = scores + (first_key + key) * 4
                multiply_panel(
                    q, ldq, num_rows, at + key * steps * pair * item, to, lds, steps, 0, 0, 0, 0, 0
                )  # fmt: skip
                if scale_bytes > 0:
                    for row in range(num_rows):
                        scales = at + head_size * block_size * item + key * 4
                        simd.multiply_rows(to + row * lds, scales, min(PANEL, num_keys - first_key - key))

    return njit(score, name=f"score_keys_{kv_dtype}")


@cache
def _attend_tile(kv_dtype: str) -> Any:
    """The compiled function that writes out[token + r, head] for num_rows queries of one sequence, at positions
    position + r."""
    score_keys = _score_keys(kv_dtype)
    weigh_values = paged_product(KV_TILES[kv_dtype])
    layout = kv_layout(kv_dtype)
    softmax = simd.softmax_rows(kv_dtype == "bfloat16")
    item, pair, has_scales = KV_ITEM_BYTES[kv_dtype], KV_PAIR[kv_dtype], KV_SCALE_BYTES[kv_dtype] > 0

    def attend_tile(
        q, ldq, num_rows, position, table, tables, scale, shape, layer, head, pool, scores_at, lds, sums_at, ldv, out,
        ldo,
    ):  # fmt: skip
        n_layer, n_head, head_size, block_size = shape
        num_keys = position + num_rows
        to_keys, to_values, block_bytes = layout(layer, head, n_layer, n_head, head_size, block_size)
        score_keys(
            q, ldq, num_rows, num_keys, pool + to_keys, block_bytes, block_size, head_size, tables, table, scores_at,
            lds,
        )  # fmt: skip
        # the normalisers are kept where no value will be: the scores' rows are one panel wider than the keys
        softmax(scores_at, lds, num_rows, position + 1, 1, num_keys, scale)
        if has_scales:
            for row in range(num_rows):
                visible = position + row + 1
                for first_key in range(0, visible, block_size):
                    block = _block_at(pool, tables, table + first_key // block_size, block_bytes)
                    scales = block + to_values + round32(head_size) * block_size * item
                    simd.multiply_rows(
                        scores_at + row * lds + first_key * 4, scales, min(block_size, visible - first_key)
                    )  # fmt: skip
        for panel in range(round32(head_size) // PANEL):
            weigh_values(
                scores_at, lds, num_rows, pool + to_values + panel * block_size * PANEL * item,
                sums_at + panel * PANEL * 4, ldv, (num_keys + pair - 1) // pair, tables.ctypes.data + 4 * table,
                block_bytes, block_size // pair,
            )  # fmt: skip
        for row in range(num_rows):
            normaliser = carray(float32_at(scores_at + (row + 1) * lds - 4), 1)[0]
            simd.scale_row(sums_at + row * ldv, normaliser, head_size, out + row * ldo)

    return njit(attend_tile, name=f"attend_tile_{kv_dtype}")


@cache
def _attend_one(kv_dtype: str) -> Any:
    """The compiled function that writes one token's attention, of heads first_head .. end_head, QUERY_ROWS at most, and
    before that, unless `is_stored`, its keys and values.

    `row` is the token's row of queries, keys and values, all float32, or what `store_kv` left of it; `out` its row of
    the output. Goes from block to block, and in each from head to head: what lies beside each other is read in one go.
    """
    fetches = kv_dtype in _FETCHED
    multiply_values = apart_product(KV_TILES[kv_dtype], fetches)
    multiply_keys = apart_product(KV_TILES[kv_dtype], fetches, PANEL)
    multiply_few_keys = apart_product(KV_TILES[kv_dtype], fetches, KEYS_PANEL)
    store_one = store_entry(kv_dtype)
    layout = kv_layout(kv_dtype)
    softmax = simd.softmax_rows(kv_dtype == "bfloat16")
    narrow = store_operand("bfloat16")
    narrows = kv_dtype == "bfloat16"
    item, pair, has_scales = KV_ITEM_BYTES[kv_dtype], KV_PAIR[kv_dtype], KV_SCALE_BYTES[kv_dtype] > 0
    query_item = QUERY_ITEM_BYTES[kv_dtype]

    def attend_one(
        row, is_stored, position, table, tables, scale, shape, layer, first_head, end_head, pool, scores_at, lds,
        sums_at, ldv, out,
    ):  # fmt: skip
        n_layer, n_head, head_size, block_size = shape
        num_heads, num_keys = end_head - first_head, position + 1
        to_keys, to_values, block_bytes = layout(layer, first_head, n_layer, n_head, head_size, block_size)
        next_keys, next_values, _ = layout(layer, first_head + 1, n_layer, n_head, head_size, block_size)
        key_bytes, value_bytes = next_keys - to_keys, next_values - to_values
        n_embd, panels, slot = n_head * head_size, round32(head_size) // PANEL, position % block_size
        item_now = query_item if is_stored else 4
        queries, ldq = row + first_head * head_size * item_now, head_size * item_now
        block = _block_at(pool, tables, table + position // block_size, block_bytes)
        for i in range(0 if is_stored else num_heads):
            query = queries + i * ldq
            key, value = query + n_embd * 4, query + 2 * n_embd * 4
            if narrows:  # to the rows of sums, which are not needed yet
                narrow(query, panels, sums_at + i * ldv)
                narrow(key, panels, sums_at + QUERY_ROWS * ldv)
                narrow(value, panels, sums_at + (QUERY_ROWS + 1) * ldv)
                key, value = sums_at + QUERY_ROWS * ldv, sums_at + (QUERY_ROWS + 1) * ldv
            store_one(
                key, value, head_size, block_size, slot, block + to_keys + i * key_bytes,
                block + to_values + i * value_bytes,
            )  # fmt: skip
        if narrows and not is_stored:
            queries, ldq = sums_at, ldv
        steps = (head_size + pair - 1) // pair
        for first_key in range(0, num_keys, block_size):
            number, count = table + first_key // block_size, min(block_size, num_keys - first_key)
            keys, to = _block_at(pool, tables, number, block_bytes) + to_keys, scores_at + first_key * 4
            if first_key + count < num_keys:
                following = _block_at(pool, tables, number + 1, block_bytes) + to_keys
            else:
                following = _block_at(pool, tables, table, block_bytes) + to_values
            share = num_heads * key_bytes * PANEL // block_size
            for key in range(0, count, PANEL):
                at, fetch = keys + key * steps * pair * item, following + key // PANEL * share
                if count - key > KEYS_PANEL:
                    multiply_keys(
                        queries, ldq, num_heads, at, key_bytes, to + key * 4, lds, steps, 0, fetch, share
                    )  # fmt: skip
                else:
                    multiply_few_keys(
                        queries, ldq, num_heads, at, key_bytes, to + key * 4, lds, steps, 0, fetch, share
                    )  # fmt: skip
            if has_scales:
                for i in range(num_heads):
                    scales = keys + i * key_bytes + head_size * block_size * item
                    simd.multiply_rows(to + i * lds, scales, count)
        softmax(scores_at, lds, num_heads, num_keys, 0, num_keys, scale)
        for first_key in range(0, num_keys, block_size):
            number, count = table + first_key // block_size, min(block_size, num_keys - first_key)
            mode = FROM_C if first_key > 0 else 0
            values = _block_at(pool, tables, number, block_bytes) + to_values
            weights = scores_at + first_key // pair * 4
            following, share = values, 0
            if first_key + count < num_keys:
                following = _block_at(pool, tables, number + 1, block_bytes) + to_values
                share = num_heads * value_bytes // panels
            if has_scales:
                for i in range(num_heads):
                    scales = values + i * value_bytes + round32(head_size) * block_size * item
                    simd.multiply_rows(weights + i * lds, scales, count)
            for panel in range(panels):
                multiply_values(
                    weights, lds, num_heads, values + panel * block_size * PANEL * item, value_bytes,
                    sums_at + panel * PANEL * 4, ldv, (count + pair - 1) // pair, mode,
                    following + panel * share, share,
                )  # fmt: skip
        for i in range(num_heads):
            normaliser = carray(float32_at(scores_at + (i + 1) * lds - 4), 1)[0]
            simd.scale_row(sums_at + i * ldv, normaliser, head_size, out + (first_head + i) * head_size * 4)

    return njit(attend_one, name=f"attend_one_{kv_dtype}")


@cache
def _attend_ones(kv_dtype: str) -> Any:
    """The compiled function that does `tokens` one by one, some that see the keys up to their own: each thread has a
    share of all their heads, as much work as the others'. Their rows of `out` are in the order of `tokens` if these are
    `selected` of the step's, else their own."""
    attend_one = _attend_one(kv_dtype)

    def attend_ones(
        qkv, ldq, positions, query_offsets, sequence_of, tokens, selected, block_tables, tables_width, scale, shape,
        layer, pool, scores, lds, sums, ldv, out, ldo, thread, num_threads,
    ):  # fmt: skip
        n_head = shape[1]
        work = np.int64(0)
        for i in range(tokens.size):
            work += (np.int64(positions[tokens[i]]) + _FIXED_WORK) * n_head
        low, high = work * thread // num_threads, work * (thread + 1) // num_threads
        for i in range(tokens.size):
            token = np.int64(tokens[i])
            position, sequence = np.int64(positions[token]), np.int64(sequence_of[token])
            of_head = position + _FIXED_WORK
            first = min(max((low + of_head - 1) // of_head, 0), n_head)
            end = min((high + of_head - 1) // of_head, n_head)
            low, high = low - of_head * n_head, high - of_head * n_head
            if end <= first:
                continue
            is_stored = query_offsets[sequence + 1] - query_offsets[sequence] > 1
            pieces = (end - first + QUERY_ROWS - 1) // QUERY_ROWS
            for piece in range(pieces):
                attend_one(
                    qkv + token * ldq, is_stored, position, sequence * tables_width, block_tables, scale, shape, layer,
                    first + (end - first) * piece // pieces, first + (end - first) * (piece + 1) // pieces, pool,
                    scores, lds, sums, ldv, out + (i if selected else token) * ldo,
                )  # fmt: skip

    return njit(attend_ones, name=f"attend_ones_{kv_dtype}")


@cache
def attend(kv_dtype: str) -> Any:
    """The compiled function (qkv, ldq, positions, query_offsets, sequence_of, tile_offsets, num_seqs, ones, selected,
    block_tables, tables_width, scale, shape, layer, pool, scores, lds, sums, ldv, out, ldo, meeting, unit_base, thread,
    num_threads): out (T, C) = attention of all queries of the step, or out (len(ones), C) = that of the tokens `ones`
    alone if `selected`. Of the tokens `ones`, otherwise those that are their sequence's only one, each thread has its
    share; the others' (sequence, head, tile) units are taken as they come.

    qkv: address of rows ldq bytes apart, as `store_kv` left them. scores, sums, out: addresses of float32 rows lds,
    ldv, ldo bytes apart, QUERY_ROWS of scores and SUM_ROWS of sums; the pool is of `kv_dtype`. tile_offsets (S + 1,):
    tiles of QUERY_ROWS queries before each sequence, those with one token having none. Which thread computes something
    does not change its bits. `meeting[NEXT_UNIT]` must be unit_base when all threads begin; each thread takes one unit
    more than there are, so it ends at unit_base + units + threads.
    """
    attend_tile = _attend_tile(kv_dtype)
    attend_ones = _attend_ones(kv_dtype)
    query_item = QUERY_ITEM_BYTES[kv_dtype]

    def attend_all(
        qkv, ldq, positions, query_offsets, sequence_of, tile_offsets, num_seqs, ones, selected, block_tables,
        tables_width, scale, shape, layer, pool, scores, lds, sums, ldv, out, ldo, meeting, unit_base, thread,
        num_threads,
    ):  # fmt: skip
        n_head, head_size = shape[1], shape[2]
        attend_ones(
            qkv, ldq, positions, query_offsets, sequence_of, ones, selected, block_tables, tables_width, scale, shape,
            layer, pool, scores, lds, sums, ldv, out, ldo, thread, num_threads,
        )  # fmt: skip
        if selected:
            return
        num_units = np.int64(tile_offsets[num_seqs]) * n_head
        while True:
            unit = atomic_add(meeting, NEXT_UNIT, 1) - unit_base
            if unit >= num_units:
                return
            low, high = 0, num_seqs - 1  # the last sequence whose tiles begin at or before this one
            while low < high:
                middle = (low + high + 1) // 2
                if tile_offsets[middle] * n_head <= unit:
                    low = middle
                else:
                    high = middle - 1
            num_tiles = np.int64(tile_offsets[low + 1] - tile_offsets[low])
            unit -= tile_offsets[low] * n_head
            head, tile = unit // num_tiles, num_tiles - 1 - unit % num_tiles  # the longest first
            token = np.int64(query_offsets[low]) + tile * QUERY_ROWS
            num_rows = min(QUERY_ROWS, query_offsets[low + 1] - token)
            position = np.int64(positions[token])
            attend_tile(
                qkv + token * ldq + head * head_size * query_item, ldq, num_rows, position, low * tables_width,
                block_tables, scale, shape, layer, head, pool, scores, lds, sums, ldv,
                out + token * ldo + head * head_size * 4, ldo,
            )  # fmt: skip

    return njit(attend_all, name=f"attend_{kv_dtype}")
