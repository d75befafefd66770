"""Register tiles for the machine at hand: four heights, chosen so that accumulators stay in registers.

A tile is two vectors wide; with 16 registers, 6 x 2 accumulators leave room for two columns and one broadcast; with
32, 12 x 2. One row alone takes the whole panel of 32 columns, so that weights are read once, in order.
"""

from __future__ import annotations

from nvg.kernels.simd import make_tile
from nvg.runtime import cpu
from nvg.runtime.compile_cache import njit

PANEL = 32
TILE_COLUMNS = 2 * cpu.vector_floats()
HIGH, MIDDLE, LOW = (12, 4, 2) if cpu.vector_registers() == 32 else (6, 4, 2)

_high = make_tile(HIGH, TILE_COLUMNS)
_middle = make_tile(MIDDLE, TILE_COLUMNS)
_low = make_tile(LOW, TILE_COLUMNS)
_one = make_tile(1, PANEL)


@njit
def multiply_panel(a, a_offset, lda, num_rows, b, b_offset, ldb, c, c_offset, ldc, k, accumulate):
    """C = A B, or C += A B, for any number of rows and one panel of 32 columns (see `make_tile`)."""
    row = 0
    while num_rows - row >= LOW:
        left = num_rows - row
        a_row, c_row = a_offset + row * lda, c_offset + row * ldc
        if left >= HIGH:
            for column in range(0, PANEL, TILE_COLUMNS):
                _high(a, a_row, lda, b, b_offset + column, ldb, c, c_row + column, ldc, k, accumulate)
            row += HIGH
        elif left >= MIDDLE:
            for column in range(0, PANEL, TILE_COLUMNS):
                _middle(a, a_row, lda, b, b_offset + column, ldb, c, c_row + column, ldc, k, accumulate)
            row += MIDDLE
        else:
            for column in range(0, PANEL, TILE_COLUMNS):
                _low(a, a_row, lda, b, b_offset + column, ldb, c, c_row + column, ldc, k, accumulate)
            row += LOW
    if row < num_rows:
        _one(a, a_offset + row * lda, lda, b, b_offset, ldb, c, c_offset + row * ldc, ldc, k, accumulate)
