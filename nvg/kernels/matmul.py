"""Rows times a packed matrix, split among threads by panels of columns, never by the inner length."""

from __future__ import annotations

from nvg.kernels.microkernels import HIGH, PANEL, multiply_panel
from nvg.runtime.compile_cache import njit

ROW_BLOCK = 20 * HIGH  # rows that stay in the second-level cache while panels pass
K_BLOCK = 256  # of a panel: 32 KB, the first-level cache


@njit
def own_panels(num_panels, thread, num_threads):
    """(first, end) of the panels that are this thread's."""
    return num_panels * thread // num_threads, num_panels * (thread + 1) // num_threads


@njit
def matmul(x, ldx, num_rows, weights, k, out, ldo, first_panel, end_panel):
    """out[:, own columns] = x @ weights[:, own columns].

    x float32, rows ldx apart, (M, K); weights float32 [panels][K][32]; out float32, rows ldo apart. Writes columns
    32 * first_panel up to 32 * end_panel. out must not overlap x.
    """
    k_block = K_BLOCK if num_rows > HIGH else k
    for row in range(0, num_rows, ROW_BLOCK):
        rows = min(ROW_BLOCK, num_rows - row)
        for panel in range(first_panel, end_panel):
            for start in range(0, k, k_block):
                multiply_panel(
                    x, row * ldx + start, ldx, rows,
                    weights, (panel * k + start) * PANEL, PANEL,
                    out, row * ldo + panel * PANEL, ldo,
                    min(k_block, k - start), start > 0,
                )  # fmt: skip
