"""Causal attention over a paged KV cache (block tables after Kwon et al. 2023, arXiv:2309.06180).

The pool is float32 [num_blocks][L][2][H] of panels that the matmul's tiles read as they are: a K block is
[D][block_size], a V block [block_size][round32(D)]. Prefill and decode are the same code: a tile of query rows of one
sequence and head. Scores fit in cache (a context is short), so the softmax makes two passes over them.

A row sees the keys up to its own position. Keys that every row of the tile sees go through the tile; the few between
the first row's position and a later row's are added to that row alone, so that no row multiplies a key it must not
see (stale keys and values may be anything). Each output is one chain in the keys' order, whatever the tile.
"""

from __future__ import annotations

import numpy as np

from nvg.kernels import simd
from nvg.kernels.microkernels import HIGH, PANEL, multiply_panel
from nvg.runtime.atomics import atomic_add
from nvg.runtime.compile_cache import njit
from nvg.runtime.team import NEXT_UNIT

QUERY_ROWS = HIGH


@njit
def round32(n):
    return (n + 31) // 32 * 32


@njit
def kv_offsets(block, layer, head, n_layer, n_head, head_size, block_size):
    """Offsets of the K and V panels of a block, layer and head in the pool."""
    k_size, v_size = head_size * block_size, block_size * round32(head_size)
    start = (block * n_layer + layer) * n_head * (k_size + v_size)
    return start + head * k_size, start + n_head * k_size + head * v_size


@njit
def store_kv(qkv, ldq, positions, block_table_of, block_tables, tables_width, first, end, shape, layer, pool):
    """Write the keys and values of tokens first .. end to their slots; columns of V beyond D are zeroed.

    qkv (T, 3C): queries, keys, values; block_table_of (T,): each token's sequence.
    """
    n_layer, n_head, head_size, block_size = shape
    n_embd, v_width = n_head * head_size, round32(head_size)
    for t in range(first, end):
        position = np.int64(positions[t])
        block = np.int64(block_tables[block_table_of[t] * tables_width + position // block_size])
        slot = position % block_size
        for head in range(n_head):
            k_at, v_at = kv_offsets(block, layer, head, n_layer, n_head, head_size, block_size)
            source = t * ldq + n_embd + head * head_size
            for d in range(head_size):
                pool[k_at + d * block_size + slot] = qkv[source + d]
            source += n_embd
            row = v_at + slot * v_width
            for d in range(head_size):
                pool[row + d] = qkv[source + d]
            for d in range(head_size, v_width):
                pool[row + d] = np.float32(0)


@njit
def _weigh_values(
    probabilities, ldp, first_row, num_rows, first_key, end_key, table, tables, shape, layer, head, pool, sums
):
    """sums[rows] += probabilities[rows, keys] @ V[keys] for keys first_key .. end_key, begun at 0 if first_key is 0."""
    n_layer, n_head, head_size, block_size = shape
    v_width = round32(head_size)
    key = first_key
    while key < end_key:
        slot = key % block_size
        count = min(block_size - slot, end_key - key)
        block = np.int64(tables[table + key // block_size])
        v_at = kv_offsets(block, layer, head, n_layer, n_head, head_size, block_size)[1]
        for column in range(0, v_width, PANEL):
            multiply_panel(
                probabilities, first_row * ldp + key, ldp, num_rows,
                pool, v_at + slot * v_width + column, v_width,
                sums, first_row * v_width + column, v_width,
                count, key > 0,
            )  # fmt: skip
        key += count


@njit
def _attend_tile(
    qkv, ldq, token, num_rows, position, table, tables, scale, shape, layer, head, pool, scores, lds, sums, out, ldo
):
    """out[token + r, head] for r in 0 .. num_rows, queries of one sequence at positions position + r."""
    n_layer, n_head, head_size, block_size = shape
    num_keys = position + num_rows
    for block_number in range((num_keys + block_size - 1) // block_size):
        block = np.int64(tables[table + block_number])
        k_at = kv_offsets(block, layer, head, n_layer, n_head, head_size, block_size)[0]
        first_key = block_number * block_size
        for column in range(0, min(block_size, num_keys - first_key), PANEL):
            multiply_panel(
                qkv, token * ldq + head * head_size, ldq, num_rows,
                pool, k_at + column, block_size,
                scores, first_key + column, lds,
                head_size, False,
            )  # fmt: skip
    for row in range(num_rows):
        visible = position + row + 1
        largest = simd.row_max(scores, row * lds, visible, np.float32(0))
        simd.exp_scaled(scores, row * lds, visible, largest, scale)
    shared_keys = position + 1
    _weigh_values(scores, lds, 0, num_rows, 0, shared_keys, table, tables, shape, layer, head, pool, sums)
    v_width = round32(head_size)
    for row in range(num_rows):
        visible = shared_keys + row
        _weigh_values(scores, lds, row, 1, shared_keys, visible, table, tables, shape, layer, head, pool, sums)
        normaliser = np.float32(1) / simd.row_sum(scores, row * lds, visible, np.float32(0))
        head_out = out[(token + row) * ldo + head * head_size : (token + row) * ldo + (head + 1) * head_size]
        head_sums = sums[row * v_width : row * v_width + head_size]
        for d in range(head_size):
            head_out[d] = head_sums[d] * normaliser


@njit
def attend(
    qkv, ldq, positions, query_offsets, tile_offsets, num_seqs, block_tables, tables_width,
    scale, shape, layer, pool, scores, lds, sums, out, ldo, meeting, unit_base,
):  # fmt: skip
    """out (T, C) = attention of all queries of the step, this thread taking (tile, head) units as they come.

    tile_offsets (S + 1,): tiles of QUERY_ROWS queries before each sequence. Which thread computes a unit does not
    change its bits. `meeting[NEXT_UNIT]` must be unit_base when all threads begin; each thread takes one unit more
    than there are, so it ends at unit_base + units + threads.
    """
    n_head = shape[1]
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
        _attend_tile(
            qkv, ldq, token, num_rows, position, low * tables_width, block_tables,
            scale, shape, layer, head, pool, scores, lds, sums, out, ldo,
        )  # fmt: skip
