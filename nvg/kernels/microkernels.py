"""Any number of rows times one panel of 32 columns: tiles of four heights, whose accumulators stay in registers.

With 16 registers, 6 x 2 float accumulators leave room for two columns and one broadcast. With 32, 8 x 2 is enough for
the full rate, and 8 divides the batches that people use (at 12 x 2 LLVM loads broadcasts so early that it spills three
accumulators: a third slower). Tiles of int8 and int4 codes need integer and float accumulators: 6 x 2 of each fit 32
registers. Where a vector is computed in two halves, as in Zen 4, spilling a few float accumulators, used once in a
group, is cheaper than loading weights more often: 8 x 2 is 6 % faster there, and 4 % slower in Zen 5. One row alone
takes the whole panel of 32 columns, so that weights are read once, in order.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from nvg.kernels.formats import PANEL
from nvg.kernels.tiles import Tile, make_tile
from nvg.runtime import cpu
from nvg.runtime.compile_cache import njit

TILE_COLUMNS = min(PANEL, 2 * cpu.features().vector_floats)


def heights(kind: str) -> tuple[int, int, int]:
    """Rows of the high, the middle and the low tile of a kind."""
    if kind in ("int8", "int4"):
        if cpu.features().vector_registers < 32:
            return 3, 2, 2
        return (8, 4, 2) if cpu.target()[1] == "znver4" else (6, 4, 2)
    return (8, 4, 2) if cpu.features().vector_registers == 32 else (6, 4, 2)


def _tiles(kind: str, **options: bool) -> list[Any]:
    """The tiles of the three heights, and the one of a row."""
    sizes = [(rows, TILE_COLUMNS) for rows in heights(kind)]
    return [make_tile(Tile(kind, rows, columns, **options)) for rows, columns in [*sizes, (1, PANEL)]]


@cache
def panel_product(kind: str, prefetches: bool = False, is_keys: bool = False) -> Any:
    """The compiled function (a, lda, num_rows, b, c, ldc, steps, mode, bias, prefetch, prefetch_end, lines):
    C = A B in tiles of a kind, begun as `mode` says (see `nvg.kernels.tiles`), for any number of rows and one panel of
    32 columns, or two of 16 keys.

    Arguments are int64, addresses and distances in bytes. If it prefetches, each tile fetches `lines` cache lines a
    step, the first tile from `prefetch` on and each further one where the one before ended, up to `prefetch_end`.
    """
    high_rows, middle_rows, low_rows = heights(kind)
    high, middle, low, one = _tiles(kind, prefetches=prefetches, is_keys=is_keys)
    # of eight rows that are left, two tiles of four are faster than six and two (measured with int8 and int4)
    halved = 2 * middle_rows if 2 * middle_rows > high_rows else 0

    def multiply_panel(a, lda, num_rows, b, c, ldc, steps, mode, bias, prefetch, prefetch_end, lines):
        row = 0
        while num_rows - row >= low_rows:
            left = num_rows - row
            is_high = left >= high_rows and left != halved
            for column in range(0, PANEL, TILE_COLUMNS):
                c_at, bias_at = c + row * ldc + column * 4, bias + column * 4
                if is_high:
                    high(a + row * lda, lda, b, column, c_at, ldc, steps, mode, bias_at, prefetch, lines)
                elif left >= middle_rows:
                    middle(a + row * lda, lda, b, column, c_at, ldc, steps, mode, bias_at, prefetch, lines)
                else:
                    low(a + row * lda, lda, b, column, c_at, ldc, steps, mode, bias_at, prefetch, lines)
                prefetch += lines * steps * 64
                lines = lines if prefetch < prefetch_end else 0
            row += high_rows if is_high else middle_rows if left >= middle_rows else low_rows
        while row < num_rows:
            one(a + row * lda, lda, b, 0, c + row * ldc, ldc, steps, mode, bias, prefetch, lines)
            prefetch += lines * steps * 64
            lines = lines if prefetch < prefetch_end else 0
            row += 1

    return njit(multiply_panel, name=f"multiply_panel_{kind}_{int(prefetches)}{int(is_keys)}")


@cache
def apart_product(kind: str, prefetches: bool = False, num_keys: int = 0) -> Any:
    """The compiled function (a, lda, num_rows, b, ldb, c, ldc, steps, mode, prefetch, num_bytes): each row of C = its
    row of A times its own panel, ldb bytes apart. Some rows at a time: their chains and their panels' lines come side
    by side. If it prefetches, about num_bytes from `prefetch` on are fetched meanwhile. Panels have 32 columns, or are
    num_keys keys, 16 or 32."""
    most = max(1, cpu.features().vector_floats // 4)
    middle_rows = max(1, most // 2)
    high, middle, one = (
        make_tile(Tile(kind, rows, num_keys or PANEL, prefetches, is_apart=True, is_keys=num_keys > 0))
        for rows in (most, middle_rows, 1)
    )

    def multiply_apart(a, lda, num_rows, b, ldb, c, ldc, steps, mode, prefetch, num_bytes):
        end = prefetch + num_bytes
        row = 0
        while row < num_rows:
            left = num_rows - row
            rows = most if left >= most else middle_rows if left >= middle_rows else 1
            lines = 0
            if prefetches and prefetch < end:
                lines = (num_bytes * rows + num_rows * steps * 32) // (num_rows * steps * 64)
            a_at, b_at, c_at = a + row * lda, b + row * ldb, c + row * ldc
            if rows == most:
                high(a_at, lda, b_at, ldb, c_at, ldc, steps, mode, prefetch, lines)
            elif rows == middle_rows:
                middle(a_at, lda, b_at, ldb, c_at, ldc, steps, mode, prefetch, lines)
            else:
                one(a_at, lda, b_at, ldb, c_at, ldc, steps, mode, prefetch, lines)
            prefetch += lines * steps * 64
            row += rows

    return njit(multiply_apart, name=f"multiply_apart_{kind}_{int(prefetches)}_{num_keys}")


@cache
def paged_product(kind: str) -> Any:
    """The compiled function (a, lda, num_rows, b, c, ldc, steps, table, block_bytes, block_steps): C = A B like
    `panel_product`, where the panel's rows lie in blocks of a pool (see `nvg.kernels.tiles`)."""
    high_rows, middle_rows, low_rows = heights(kind)
    high, middle, low, one = _tiles(kind, is_paged=True)

    def multiply_paged(a, lda, num_rows, b, c, ldc, steps, table, block_bytes, block_steps):
        row = 0
        while num_rows - row >= low_rows:
            left = num_rows - row
            for column in range(0, PANEL, TILE_COLUMNS):
                c_at = c + row * ldc + column * 4
                if left >= high_rows:
                    high(a + row * lda, lda, b, column, c_at, ldc, steps, table, block_bytes, block_steps)
                elif left >= middle_rows:
                    middle(a + row * lda, lda, b, column, c_at, ldc, steps, table, block_bytes, block_steps)
                else:
                    low(a + row * lda, lda, b, column, c_at, ldc, steps, table, block_bytes, block_steps)
            row += high_rows if left >= high_rows else middle_rows if left >= middle_rows else low_rows
        while row < num_rows:
            one(a + row * lda, lda, b, 0, c + row * ldc, ldc, steps, table, block_bytes, block_steps)
            row += 1

    return njit(multiply_paged, name=f"multiply_paged_{kind}")
