"""How weights, activations, keys and values are stored: sizes in bytes, and the levels of int4.

Every matrix is packed in panels of 32 columns, and K is filled with zeros up to a multiple of 32. A panel holds

    float32     [K][32] float32
    bfloat16    [K / 2][32][2] bfloat16: two k of a column beside each other
    int8        a group for each 32 of K: codes [8][32][4] uint8, four k of a column beside each other, value + 128,
                then [32] scales in bfloat16; a weight is value * scale, value from -128 to 127
    int4        a group for each 32 of K: codes [4][32][4] uint8, the low nibbles being the four k of an even quad and
                the high ones those of the following quad, then [32] scales in bfloat16; a weight is
                INT4_LEVELS[code] * scale

A row of activations, the operand of a matmul, holds float32, bfloat16, or (for int8 and int4 weights) groups of 32
int8 codes, a float32 scale, and -128 times the sum of the codes as int32, which undoes the weights' + 128.
"""

from __future__ import annotations

PANEL = 32
KEYS_PANEL = 16
"""Columns of a panel, and those of a panel of keys."""
GROUP = 32
GROUP_BYTES = {"int8": GROUP * PANEL + 2 * PANEL, "int4": GROUP * PANEL // 2 + 2 * PANEL}
"""Of a group of 32 x 32 weights with its scales."""
OPERAND_GROUP_BYTES = GROUP + 8
"""Of a group of 32 activations with its scale and its correction."""

INT4_LEVELS = (-125, -99, -79, -62, -47, -34, -21, -9, 3, 15, 27, 40, 55, 71, 89, 112)
"""What a 4-bit code stands for, times the group's scale: Lloyd's quantiser (Lloyd 1982, doi:10.1109/TIT.1982.1056489)
of normal values divided by the largest of 32, rounded to int8. One of its ends is farther out than the other; the sign
of the scale puts it where the group's largest value is."""


def panel_bytes(dtype: str, k: int) -> int:
    """Bytes of a panel of K = k rows, padding included."""
    groups = -(-k // GROUP)
    if dtype in GROUP_BYTES:
        return groups * GROUP_BYTES[dtype]
    return groups * GROUP * PANEL * {"float32": 4, "bfloat16": 2}[dtype]


def operand_bytes(dtype: str, k: int) -> int:
    """Bytes of a row of k activations, padding included: a whole number of cache lines, and an odd one, so that rows
    beside each other do not fall into the same sets of a cache."""
    groups = -(-k // GROUP)
    size = groups * {"float32": 4 * GROUP, "bfloat16": 2 * GROUP}.get(dtype, OPERAND_GROUP_BYTES)
    lines = -(-size // 64)
    return 64 * (lines + (lines + 1) % 2)


def steps_of(dtype: str, k: int) -> int:
    """Steps of a matmul's tile over K = k: see `STEP_K`."""
    return -(-k // GROUP) * GROUP // STEP_K[dtype]


STEP_K = {"float32": 1, "bfloat16": 2, "int8": GROUP, "int4": GROUP}
"""How many k one step of a matmul's tile covers."""
