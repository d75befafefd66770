"""Causal attention over the paged pool of keys and values (`nvg.kernels.kv` has its layout).

Prefill and decode are the same code: a tile of query rows of one sequence and head. Scores fit in cache (a context is
short), so the softmax makes two passes over them.

A row sees the keys up to its own position. Keys that every row of the tile sees go through the tile; the few between
the first row's position and a later row's are added to that row alone, so that no row multiplies a key it must not
see (stale keys and values may be anything). Each output is one chain in the keys' order, whatever the tile.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import carray

from nvg.kernels import simd
from nvg.kernels.formats import PANEL
from nvg.kernels.kv import KV_ITEM_BYTES, KV_SCALE_BYTES, KV_TILES, kv_offsets, round32
from nvg.kernels.microkernels import heights, panel_product
from nvg.kernels.simd import float32_at
from nvg.kernels.tiles import FROM_C
from nvg.runtime.atomics import atomic_add
from nvg.runtime.compile_cache import njit
from nvg.runtime.team import NEXT_UNIT

QUERY_ROWS = heights("float32")[0]
"""Most query rows of a tile."""


@cache
def _weigh_values(kv_dtype: str) -> Any:
    """The compiled function that adds probabilities[rows, keys] @ V[keys] to sums[rows], for keys first_key .. end_key,
    begun at 0 if first_key is 0. Addresses; rows of probabilities and sums are lds and ldv bytes apart."""
    multiply_panel = panel_product(KV_TILES[kv_dtype])
    offsets = kv_offsets(kv_dtype)
    item = KV_ITEM_BYTES[kv_dtype]

    def weigh(probabilities, lds, num_rows, first_key, end_key, table, tables, shape, layer, head, pool, sums, ldv):
        n_layer, n_head, head_size, block_size = shape
        key = first_key
        while key < end_key:
            slot = key % block_size
            count = min(block_size - slot, end_key - key)
            block = np.int64(tables[table + key // block_size])
            v_at = pool + offsets(block, layer, head, n_layer, n_head, head_size, block_size)[1]
            for panel in range(round32(head_size) // PANEL):
                multiply_panel(
                    probabilities + key * 4, lds, num_rows, v_at + (panel * block_size + slot) * PANEL * item,
                    sums + panel * PANEL * 4, ldv, count, FROM_C if key > 0 else 0, 0, 0, 0, 0,
                )  # fmt: skip
            key += count

    return njit(weigh, name=f"weigh_values_{kv_dtype}")


@cache
def _attend_tile(kv_dtype: str) -> Any:
    """The compiled function that writes out[token + r, head] for num_rows queries of one sequence, at positions
    position + r."""
    multiply_panel = panel_product(KV_TILES[kv_dtype])
    weigh_values = _weigh_values(kv_dtype)
    offsets = kv_offsets(kv_dtype)
    item, has_scales = KV_ITEM_BYTES[kv_dtype], KV_SCALE_BYTES[kv_dtype] > 0

    def attend_tile(
        q, ldq, num_rows, position, table, tables, scale, shape, layer, head, pool, scores_at, lds, sums_at, ldv, out,
        ldo,
    ):  # fmt: skip
        n_layer, n_head, head_size, block_size = shape
        v_width = round32(head_size)
        num_keys = position + num_rows
        num_blocks = (num_keys + block_size - 1) // block_size
        for block_number in range(num_blocks):
            block = np.int64(tables[table + block_number])
            k_at = pool + offsets(block, layer, head, n_layer, n_head, head_size, block_size)[0]
            first_key = block_number * block_size
            for key in range(0, min(block_size, num_keys - first_key), PANEL):
                to = scores_at + (first_key + key) * 4
                multiply_panel(
                    q, ldq, num_rows, k_at + key * head_size * item, to, lds, head_size, 0, 0, 0, 0, 0
                )  # fmt: skip
                if has_scales:
                    for row in range(num_rows):
                        k_scales = k_at + head_size * block_size * item + key * 4
                        simd.multiply_rows(to + row * lds, k_scales, min(PANEL, num_keys - first_key - key))
        sums = carray(float32_at(sums_at), num_rows * ldv // 4)
        scores = carray(float32_at(scores_at), num_rows * lds // 4)
        results = carray(float32_at(out), num_rows * ldo // 4)
        for row in range(num_rows):
            visible = position + row + 1
            first = row * lds // 4
            largest = simd.row_max(scores, first, visible, np.float32(0))
            simd.exp_scaled(scores, first, visible, largest, scale)
            # the normaliser is kept where no value will be: the scores' rows are one panel wider than the keys
            scores[(row + 1) * lds // 4 - 1] = np.float32(1) / simd.row_sum(scores, first, visible, np.float32(0))
            if has_scales:
                for block_number in range((visible + block_size - 1) // block_size):
                    block = np.int64(tables[table + block_number])
                    v_at = pool + offsets(block, layer, head, n_layer, n_head, head_size, block_size)[1]
                    first_key = block_number * block_size
                    simd.multiply_rows(
                        scores_at + row * lds + first_key * 4, v_at + v_width * block_size * item,
                        min(block_size, visible - first_key),
                    )  # fmt: skip
        shared_keys = position + 1
        weigh_values(
            scores_at, lds, num_rows, 0, shared_keys, table, tables, shape, layer, head, pool, sums_at, ldv
        )  # fmt: skip
        for row in range(num_rows):
            visible = shared_keys + row
            weigh_values(
                scores_at + row * lds, lds, 1, shared_keys, visible, table, tables, shape, layer, head, pool,
                sums_at + row * ldv, ldv,
            )  # fmt: skip
            normaliser = scores[(row + 1) * lds // 4 - 1]
            head_out = results[row * ldo // 4 : row * ldo // 4 + head_size]
            head_sums = sums[row * ldv // 4 : row * ldv // 4 + head_size]
            for d in range(head_size):
                head_out[d] = head_sums[d] * normaliser

    return njit(attend_tile, name=f"attend_tile_{kv_dtype}")


@cache
def attend(kv_dtype: str) -> Any:
    """The compiled function (qkv, ldq, positions, query_offsets, tile_offsets, num_seqs, block_tables, tables_width,
    scale, shape, layer, pool, scores, lds, sums, ldv, out, ldo, meeting, unit_base): out (T, C) = attention of all
    queries of the step, this thread taking (tile, head) units as they come.

    qkv, pool, scores, sums, out: addresses of float32 rows ldq, lds, ldv, ldo bytes apart; the pool is of `kv_dtype`.
    tile_offsets (S + 1,): tiles of QUERY_ROWS queries before each sequence. Which thread computes a unit does not
    change its bits. `meeting[NEXT_UNIT]` must be unit_base when all threads begin; each thread takes one unit more
    than there are, so it ends at unit_base + units + threads.
    """
    attend_tile = _attend_tile(kv_dtype)

    def attend_all(
        qkv, ldq, positions, query_offsets, tile_offsets, num_seqs, block_tables, tables_width,
        scale, shape, layer, pool, scores, lds, sums, ldv, out, ldo, meeting, unit_base,
    ):  # fmt: skip
        n_head, head_size = shape[1], shape[2]
        num_tiles = np.int64(tile_offsets[num_seqs])
        num_units = num_tiles * n_head
        while True:
            unit = atomic_add(meeting, NEXT_UNIT, 1) - unit_base
            if unit >= num_units:
                return
            head, tile = unit // num_tiles, unit % num_tiles
            low, high = 0, num_seqs - 1  # the last sequence whose tiles begin at or before this one
            while low < high:
                middle = (low + high + 1) // 2
                if tile_offsets[middle] <= tile:
                    low = middle
                else:
                    high = middle - 1
            token = np.int64(query_offsets[low]) + (tile - tile_offsets[low]) * QUERY_ROWS
            num_rows = min(QUERY_ROWS, query_offsets[low + 1] - token)
            position = np.int64(positions[token])
            head_at = head * head_size * 4
            attend_tile(
                qkv + token * ldq + head_at, ldq, num_rows, position, low * tables_width, block_tables,
                scale, shape, layer, head, pool, scores, lds, sums, ldv, out + token * ldo + head_at, ldo,
            )  # fmt: skip

    return njit(attend_all, name=f"attend_{kv_dtype}")
