"""Keys and values in the paged pool (block tables after Kwon et al. 2023, arXiv:2309.06180): layout and writing.

A block holds, for each layer, the keys of all heads, then their values. A head's keys are panels of 32 keys
[block_size / 32][D][32], its values panels of 32 columns [round32(D) / 32][block_size][32], both float32, bfloat16 or
int8: what the tiles of attention read as they are. int8 has behind each head's keys, and behind its values, a float32
scale for each entry, [block_size].
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import carray

from nvg.kernels.formats import PANEL
from nvg.kernels.simd import float32_at, int8_at, row_abs_max, uint16_at, uint32_at
from nvg.runtime.compile_cache import njit

KV_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
KV_SCALE_BYTES = {"float32": 0, "bfloat16": 0, "int8": 4}
KV_TILES = {"float32": "float32", "bfloat16": "bfloat16_rows", "int8": "int8_rows"}


@njit
def round32(n):
    return (n + 31) // 32 * 32


@cache
def kv_offsets(kv_dtype: str) -> Any:
    """The compiled function (block, layer, head, n_layer, n_head, head_size, block_size) -> offsets in bytes of a
    head's keys and values in the pool."""
    item, scale = KV_ITEM_BYTES[kv_dtype], KV_SCALE_BYTES[kv_dtype]

    def offsets(block, layer, head, n_layer, n_head, head_size, block_size):
        k_size = (head_size * item + scale) * block_size
        v_size = (round32(head_size) * item + scale) * block_size
        start = (block * n_layer + layer) * n_head * (k_size + v_size)
        return start + head * k_size, start + n_head * k_size + head * v_size

    return njit(offsets, name=f"kv_offsets_{kv_dtype}")


def kv_bytes_per_entry(kv_dtype: str, n_layer: int, n_head: int, head_size: int) -> int:
    """Bytes of one token's keys and values in all layers."""
    width = head_size + -(-head_size // PANEL) * PANEL
    return n_layer * n_head * (width * KV_ITEM_BYTES[kv_dtype] + 2 * KV_SCALE_BYTES[kv_dtype])


@cache
def store_kv(kv_dtype: str) -> Any:
    """The compiled function (qkv, ldq, positions, sequence_of, block_tables, tables_width, first, end, shape, layer,
    pool): write the keys and values of tokens first .. end to their slots; columns of V beyond D are zeroed.

    qkv (T, 3C): queries, keys, values, float32, at an address, rows ldq bytes apart. sequence_of (T,): each token's
    sequence. shape: (n_layer, n_head, head_size, block_size). pool: an address.
    """
    offsets = kv_offsets(kv_dtype)
    put = {"float32": _put_float32, "bfloat16": _put_bfloat16, "int8": _put_int8}[kv_dtype]
    item = KV_ITEM_BYTES[kv_dtype]

    def store(qkv, ldq, positions, sequence_of, block_tables, tables_width, first, end, shape, layer, pool):
        n_layer, n_head, head_size, block_size = shape
        n_embd, v_width = n_head * head_size, round32(head_size)
        for t in range(first, end):
            position = np.int64(positions[t])
            block = np.int64(block_tables[sequence_of[t] * tables_width + position // block_size])
            slot = position % block_size
            for head in range(n_head):
                k_at, v_at = offsets(block, layer, head, n_layer, n_head, head_size, block_size)
                source = qkv + t * ldq + 4 * (n_embd + head * head_size)
                # a key is a column of its panel of 32 keys, a value a piece of a row in each panel of 32 columns
                panel = pool + k_at + (slot // PANEL * head_size * PANEL + slot % PANEL) * item
                scale = pool + k_at + head_size * block_size * item + 4 * slot
                put(source, head_size, head_size, panel, PANEL, 0, scale)
                row = pool + v_at + slot * PANEL * item
                scale = pool + v_at + v_width * block_size * item + 4 * slot
                put(source + 4 * n_embd, head_size, v_width, row, 1, block_size * PANEL, scale)

    return njit(store, name=f"store_kv_{kv_dtype}")


# Each writes `count` float32 values from address `source`, and zeros up to `width`, to address `out`: element d is
# d * step items on, or where panel_step is given, d % 32 * step in the panel d // 32, which are panel_step items apart.


@njit
def _place(d, step, panel_step):
    return d * step if panel_step == 0 else d // PANEL * panel_step + d % PANEL * step


@njit
def _put_float32(source, count, width, out, step, panel_step, scale_at):
    values, items = carray(float32_at(source), count), carray(float32_at(out), 1 << 40)
    for d in range(count):
        items[_place(d, step, panel_step)] = values[d]
    for d in range(count, width):
        items[_place(d, step, panel_step)] = np.float32(0)


@njit
def _put_bfloat16(source, count, width, out, step, panel_step, scale_at):
    bits, items = carray(uint32_at(source), count), carray(uint16_at(out), 1 << 40)
    for d in range(count):
        word = bits[d]
        items[_place(d, step, panel_step)] = np.uint16((word + np.uint32(0x7FFF) + ((word >> 16) & 1)) >> 16)
    for d in range(count, width):
        items[_place(d, step, panel_step)] = np.uint16(0)


@njit
def _put_int8(source, count, width, out, step, panel_step, scale_at):
    values, items = carray(float32_at(source), count), carray(int8_at(out), 1 << 40)
    largest = row_abs_max(values, 0, count, np.float32(0))
    carray(float32_at(scale_at), 1)[0] = largest * np.float32(1 / 127)
    inverse = np.float32(127) / largest if largest > 0 else np.float32(0)
    for d in range(count):
        # adding 1.5 * 2^23 rounds to an integer
        rounded = (values[d] * inverse + np.float32(12582912)) - np.float32(12582912)
        items[_place(d, step, panel_step)] = np.int8(rounded)
    for d in range(count, width):
        items[_place(d, step, panel_step)] = np.int8(0)
