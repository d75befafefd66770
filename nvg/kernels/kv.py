"""Keys and values in the paged pool (block tables after Kwon et al. 2023, arXiv:2309.06180): layout and writing.

A block holds, for each layer, the keys of all heads, then their values: what the tiles of attention read as it is. A
head's keys are panels of 16 keys, block_size / 16 of them, its values panels of 32 columns, round32(D) / 32 of them:

    float32     keys [D][16], values [block_size][32]
    bfloat16    keys [D / 2][16][2], two elements of a key beside each other (a 0 after an odd last one); values
                [block_size / 2][32][2], a column of two keys beside each other
    int8        keys [D][16], values [block_size][32], and behind each head's keys, and behind its values, a float32
                scale for each entry, [block_size]

Writing the value of an even slot clears that of the odd slot after it, so a pair never holds what a pool's earlier user
left behind.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import carray

from nvg.kernels.formats import KEYS_PANEL, PANEL
from nvg.kernels.operands import store_operand
from nvg.kernels.simd import float32_at, int8_at, row_abs_max, uint8_at, uint16_at, uint32_at
from nvg.runtime.compile_cache import njit

KV_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
KV_PAIR = {"float32": 1, "bfloat16": 2, "int8": 1}
"""Elements of a key, and keys of a column of values, that lie beside each other: what a step of a tile covers."""
KV_SCALE_BYTES = {"float32": 0, "bfloat16": 0, "int8": 4}
KV_TILES = {"float32": "float32", "bfloat16": "bfloat16", "int8": "int8_rows"}
QUERY_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "int8": 4}
"""Of an element of a query, key or value that is ready to be used."""


@njit
def round32(n):
    return (n + 31) // 32 * 32


@cache
def kv_layout(kv_dtype: str) -> Any:
    """The compiled function (layer, head, n_layer, n_head, head_size, block_size) -> bytes from a block's begin to a
    head's keys, to its values, and to the next block."""
    item, pair, scale = KV_ITEM_BYTES[kv_dtype], KV_PAIR[kv_dtype], KV_SCALE_BYTES[kv_dtype]

    def layout(layer, head, n_layer, n_head, head_size, block_size):
        k_size = ((head_size + pair - 1) // pair * pair * item + scale) * block_size
        v_size = (round32(head_size) * item + scale) * block_size
        start = layer * n_head * (k_size + v_size)
        return start + head * k_size, start + n_head * k_size + head * v_size, n_layer * n_head * (k_size + v_size)

    return njit(layout, name=f"kv_layout_{kv_dtype}")


def kv_bytes_per_entry(kv_dtype: str, n_layer: int, n_head: int, head_size: int) -> int:
    """Bytes of one token's keys and values in all layers."""
    pair = KV_PAIR[kv_dtype]
    width = -(-head_size // pair) * pair + -(-head_size // PANEL) * PANEL
    return n_layer * n_head * (width * KV_ITEM_BYTES[kv_dtype] + 2 * KV_SCALE_BYTES[kv_dtype])


@njit
def own_tokens(positions, sequence_of, num_tokens, thread, num_threads):
    """(first, end) of the tokens that are this thread's: no two threads have both tokens of a pair of slots."""
    first, end = num_tokens * thread // num_threads, num_tokens * (thread + 1) // num_threads
    return _between_pairs(positions, sequence_of, first, num_tokens), _between_pairs(
        positions, sequence_of, end, num_tokens
    )


@njit
def _between_pairs(positions, sequence_of, token, num_tokens):
    if 0 < token < num_tokens and positions[token] % 2 == 1 and sequence_of[token] == sequence_of[token - 1]:
        return token + 1
    return token


@cache
def store_entry(kv_dtype: str) -> Any:
    """The compiled function (key, value, head_size, block_size, slot, keys, values): write one head's key and value to
    their slot; columns of V beyond D are zeroed.

    key, value: addresses of head_size elements of QUERY_ITEM_BYTES, which become scratch. keys, values: addresses of
    the head's keys and values in the block.
    """
    put_key, put_value = {
        "float32": (_put_float32_key, _put_float32_value),
        "bfloat16": (_put_bfloat16_key, _put_bfloat16_value),
        "int8": (_put_int8_key, _put_int8_value),
    }[kv_dtype]

    def store(key, value, head_size, block_size, slot, keys, values):
        put_key(key, head_size, block_size, slot, keys)
        put_value(value, head_size, block_size, slot, values)

    return njit(store, name=f"store_entry_{kv_dtype}")


@cache
def store_kv(kv_dtype: str) -> Any:
    """The compiled function (qkv, ldq, positions, query_offsets, sequence_of, block_tables, tables_width, first, end,
    shape, layer, pool): write the keys and values of tokens first .. end to their slots, but for those that are their
    sequence's only token of the step: `nvg.kernels.attention` stores them when it needs them.

    qkv (T, 3C): queries, keys, values, float32, at an address, rows ldq bytes apart; becomes scratch, but for the
    queries, which with bfloat16 are rounded to it and moved together, [C] from the row's begin. sequence_of (T,): each
    token's sequence. shape: (n_layer, n_head, head_size, block_size). pool: an address. The tokens must be
    `own_tokens`.
    """
    layout = kv_layout(kv_dtype)
    narrow = store_operand("bfloat16")
    store_one = store_entry(kv_dtype)
    narrows = kv_dtype == "bfloat16"
    row_item = QUERY_ITEM_BYTES[kv_dtype]

    def store(
        qkv, ldq, positions, query_offsets, sequence_of, block_tables, tables_width, first, end, shape, layer, pool
    ):  # fmt: skip
        n_layer, n_head, head_size, block_size = shape
        n_embd = n_head * head_size
        for t in range(first, end):
            sequence = np.int64(sequence_of[t])
            if query_offsets[sequence + 1] - query_offsets[sequence] == 1:
                continue
            row = qkv + t * ldq
            if narrows:
                narrow(row, round32(3 * n_embd) // PANEL, row)
            position = np.int64(positions[t])
            block = np.int64(block_tables[sequence * tables_width + position // block_size])
            for head in range(n_head):
                keys, values, block_bytes = layout(layer, head, n_layer, n_head, head_size, block_size)
                start = pool + block * block_bytes
                key = row + (n_embd + head * head_size) * row_item
                store_one(
                    key, key + n_embd * row_item, head_size, block_size, position % block_size, start + keys,
                    start + values,
                )  # fmt: skip

    return njit(store, name=f"store_kv_{kv_dtype}")


# Each writes the `head_size` elements of one key or value from address `source` to the slot of a head's keys or values
# at address `out`.


@njit
def _put_float32_key(source, head_size, block_size, slot, out):
    words = carray(uint32_at(source), head_size)
    at = out + (slot // KEYS_PANEL * head_size * KEYS_PANEL + slot % KEYS_PANEL) * 4
    column = carray(uint32_at(at), head_size * KEYS_PANEL)
    for d in range(head_size):
        column[d * KEYS_PANEL] = words[d]


@njit
def _put_float32_value(source, head_size, block_size, slot, out):
    for first in range(0, head_size, PANEL):
        values = carray(float32_at(source + first * 4), PANEL)
        row = carray(float32_at(out + (first * block_size + slot * PANEL) * 4), PANEL)
        count = min(PANEL, head_size - first)
        for d in range(count):
            row[d] = values[d]
        for d in range(count, PANEL):
            row[d] = np.float32(0)


@njit
def _put_bfloat16_key(source, head_size, block_size, slot, out):
    pairs = (head_size + 1) // 2
    at = out + (slot // KEYS_PANEL * pairs * KEYS_PANEL + slot % KEYS_PANEL) * 4
    column = carray(uint32_at(at), pairs * KEYS_PANEL)
    if head_size % 2 == 0:  # so a pair is a word, and begins like one
        words = carray(uint32_at(source), pairs)
        for i in range(pairs):
            column[i * KEYS_PANEL] = words[i]
        return
    halves = carray(uint16_at(source), head_size)
    for i in range(head_size // 2):
        column[i * KEYS_PANEL] = np.uint32(halves[2 * i]) | np.uint32(halves[2 * i + 1]) << np.uint32(16)
    column[(pairs - 1) * KEYS_PANEL] = np.uint32(halves[head_size - 1])


@njit
def _put_bfloat16_value(source, head_size, block_size, slot, out):
    for first in range(0, head_size, PANEL):
        halves = carray(uint16_at(source + first * 2), PANEL)
        pairs = carray(uint32_at(out + (first * block_size // 2 + slot // 2 * PANEL) * 4), PANEL)
        count = min(PANEL, head_size - first)
        if slot % 2 == 0:
            for d in range(count):
                pairs[d] = np.uint32(halves[d])
            for d in range(count, PANEL):
                pairs[d] = np.uint32(0)
        else:
            for d in range(count):
                pairs[d] = (pairs[d] & np.uint32(0xFFFF)) | np.uint32(halves[d]) << np.uint32(16)


@njit
def _to_int8(source, head_size, scale_at):
    """Codes of float32 values, from the same address on, and their scale."""
    values, codes = carray(float32_at(source), head_size), carray(int8_at(source), head_size)
    largest = row_abs_max(values, 0, head_size, np.float32(0))
    carray(float32_at(scale_at), 1)[0] = largest * np.float32(1 / 127)
    inverse = np.float32(127) / largest if largest > 0 else np.float32(0)
    for d in range(head_size):
        # adding 1.5 * 2^23 rounds to an integer
        codes[d] = np.int8((values[d] * inverse + np.float32(12582912)) - np.float32(12582912))


@njit
def _put_int8_key(source, head_size, block_size, slot, out):
    _to_int8(source, head_size, out + head_size * block_size + 4 * slot)
    codes = carray(uint8_at(source), head_size)
    at = out + slot // KEYS_PANEL * head_size * KEYS_PANEL + slot % KEYS_PANEL
    column = carray(uint8_at(at), head_size * KEYS_PANEL)
    for d in range(head_size):
        column[d * KEYS_PANEL] = codes[d]


@njit
def _put_int8_value(source, head_size, block_size, slot, out):
    _to_int8(source, head_size, out + round32(head_size) * block_size + 4 * slot)
    for first in range(0, head_size, PANEL):
        codes = carray(uint8_at(source + first), PANEL)
        row = carray(uint8_at(out + first * block_size + slot * PANEL), PANEL)
        count = min(PANEL, head_size - first)
        for d in range(count):
            row[d] = codes[d]
        for d in range(count, PANEL):
            row[d] = np.uint8(0)
