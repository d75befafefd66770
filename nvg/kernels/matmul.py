"""Rows times a packed matrix, split among threads by panels of columns, never by the inner length."""

from __future__ import annotations

from functools import cache
from typing import Any

from nvg.kernels.formats import GROUP, OPERAND_GROUP_BYTES, PANEL, STEP_K, panel_bytes
from nvg.kernels.microkernels import TILE_COLUMNS, heights, panel_product
from nvg.kernels.tiles import FROM_C
from nvg.runtime.compile_cache import njit

ROW_BLOCK = 512
"""Rows that pass a panel before the next one. Their operands may come from the last-level cache each time: that is fast
enough, and weights are read once for all rows of a usual step."""
_FEW_ROWS = 4
"""Up to so many rows are done as fast as weights come, and these come fastest where only the hardware fetches ahead."""
_PIECE_BYTES = 16 << 10  # of a panel, in the first-level cache while rows pass


@njit
def own_panels(num_panels, thread, num_threads):
    """(first, end) of the panels that are this thread's."""
    return num_panels * thread // num_threads, num_panels * (thread + 1) // num_threads


@cache
def row_block_product(dtype: str) -> Any:
    """The compiled function (a, lda, num_rows, b, c, ldc, steps, mode, bias, next_panel): up to ROW_BLOCK rows times
    one whole panel of `dtype`, all arguments int64, addresses and distances in bytes.

    Few rows stream the panel. Of more rows all pass a piece of it, which stays in the first-level cache, while the next
    piece is fetched, at last that of `next_panel` (0: nothing is fetched).
    """
    multiply_panel = panel_product(dtype, prefetches=True)
    high = heights(dtype)[0]
    steps_per_group = GROUP // STEP_K[dtype]
    b_step = panel_bytes(dtype, GROUP) // steps_per_group
    a_step = {"float32": 4, "bfloat16": 4}.get(dtype, OPERAND_GROUP_BYTES)
    step_lines = -(-b_step // 64)
    piece_steps = max(1, _PIECE_BYTES // b_step)

    def multiply(a, lda, num_rows, b, c, ldc, steps, mode, bias, next_panel):
        num_tiles = (num_rows + high - 1) // high * (PANEL // TILE_COLUMNS)
        lines = 0 if next_panel == 0 or num_rows <= _FEW_ROWS else (step_lines + num_tiles - 1) // num_tiles
        num_pieces = 1 if num_rows <= _FEW_ROWS else (steps + piece_steps - 1) // piece_steps
        piece = (steps + num_pieces - 1) // num_pieces
        for start in range(0, steps, piece):
            count = min(piece, steps - start)
            fetch = b + (start + piece) * b_step if start + piece < steps else next_panel
            multiply_panel(
                a + start * a_step, lda, num_rows, b + start * b_step, c, ldc,
                count, mode if start == 0 else FROM_C, bias, fetch, fetch + count * b_step, lines,
            )  # fmt: skip

    return njit(multiply, name=f"row_block_product_{dtype}")


@cache
def matmul(dtype: str) -> Any:
    """The compiled function (a, lda, num_rows, weights, k_bytes, steps, out, ldo, first_panel, end_panel, mode, bias,
    next_weights): out[:, own columns] = a @ weights[:, own columns], begun as `mode` says (see `nvg.kernels.tiles`).

    a: operand rows lda bytes apart. weights: panels of k_bytes bytes. steps: of K. out: float32, rows ldo bytes apart;
    columns 32 * first_panel up to 32 * end_panel are written. bias: float32. out must not overlap a. next_weights: what
    this thread reads after these weights, fetched with the last panel.
    """
    multiply = row_block_product(dtype)

    def product(a, lda, num_rows, weights, k_bytes, steps, out, ldo, first_panel, end_panel, mode, bias, next_weights):
        for row in range(0, num_rows, ROW_BLOCK):
            rows = min(ROW_BLOCK, num_rows - row)
            for panel in range(first_panel, end_panel):
                at = weights + panel * k_bytes
                multiply(
                    a + row * lda, lda, rows, at, out + row * ldo + panel * PANEL * 4, ldo, steps, mode,
                    bias + panel * PANEL * 4, at + k_bytes if panel + 1 < end_panel else next_weights,
                )  # fmt: skip

    return njit(product, name=f"matmul_{dtype}")
