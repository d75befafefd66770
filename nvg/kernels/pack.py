"""Matrices into the layout that tiles stream (`nvg.kernels.formats`): panels of 32 columns, quantised if asked for."""

from __future__ import annotations

from functools import cache
from typing import Any

import numba
import numpy as np
from numba import carray

from nvg.kernels.formats import GROUP, PANEL, panel_bytes
from nvg.kernels.kv import round32
from nvg.kernels.matmul import own_panels
from nvg.kernels.operands import store_block
from nvg.kernels.simd import address_of, float32_at
from nvg.runtime.compile_cache import Job, njit

_FIELDS = ("source", "num_rows", "num_columns", "first_row", "transposed", "k", "n", "packed", "blocks")
PACK_CONTEXT = np.dtype([(name, np.int64) for name in _FIELDS], align=True)
_context_at = address_of(numba.from_dtype(PACK_CONTEXT))
BLOCK_BYTES = 4 * GROUP * PANEL
"""What each thread needs at `blocks`."""


@njit
def _take_block(source, num_columns, row, column, rows, columns, block):
    """block [32][32] = the rows x columns values from (row, column) on, zeros elsewhere."""
    for r in range(rows):
        line = source[(row + r) * num_columns + column :]
        out = block[r * PANEL : (r + 1) * PANEL]
        for c in range(columns):
            out[c] = line[c]
        for c in range(columns, PANEL):
            out[c] = np.float32(0)
    for i in range(rows * PANEL, GROUP * PANEL):
        block[i] = np.float32(0)


@njit
def _take_transposed(source, num_columns, row, column, rows, columns, block):
    """block [32][32] = the transpose of the rows x columns values from (row, column) on, zeros elsewhere."""
    for c in range(columns):
        out = block[c * PANEL : (c + 1) * PANEL]
        line = source[row * num_columns + column + c :]
        for r in range(rows):
            out[r] = line[r * num_columns]
        for r in range(rows, PANEL):
            out[r] = np.float32(0)
    for i in range(columns * PANEL, GROUP * PANEL):
        block[i] = np.float32(0)


def _pack(dtype: str) -> Any:
    store = store_block(dtype)
    block_bytes = panel_bytes(dtype, GROUP)

    def pack(context, thread, num_threads):
        """Job: pack some rows as `context` (the address of a PACK_CONTEXT record) describes them: rows first_row .. (a
        multiple of 32) of a (K, N) matrix or, `transposed`, of an (N, K) one. Threads share out the panels."""
        c = carray(_context_at(context), 1)[0]
        source = carray(float32_at(c.source), c.num_rows * c.num_columns)
        block_at = c.blocks + thread * BLOCK_BYTES
        block = carray(float32_at(block_at), GROUP * PANEL)
        k_bytes = round32(c.k) // GROUP * block_bytes
        if c.transposed != 0:
            first, end = own_panels(round32(c.num_rows) // PANEL, thread, num_threads)
            for panel in range(first, end):
                at = c.packed + (c.first_row // PANEL + panel) * k_bytes
                rows = min(PANEL, c.num_rows - panel * PANEL)
                for group in range(round32(c.k) // GROUP):
                    columns = min(GROUP, c.k - group * GROUP)
                    _take_transposed(source, c.num_columns, panel * PANEL, group * GROUP, rows, columns, block)
                    store(block_at, at + group * block_bytes)
        else:
            first, end = own_panels(round32(c.n) // PANEL, thread, num_threads)
            for group in range(round32(c.num_rows) // GROUP):
                rows = min(GROUP, c.num_rows - group * GROUP)
                for panel in range(first, end):
                    at = c.packed + panel * k_bytes + (c.first_row // GROUP + group) * block_bytes
                    columns = min(PANEL, c.n - panel * PANEL)
                    _take_block(source, c.num_columns, group * GROUP, panel * PANEL, rows, columns, block)
                    store(block_at, at)

    return pack


@cache
def pack(dtype: str) -> Job:
    """The job that packs for `dtype`."""
    return Job(_pack(dtype), f"pack_{dtype}")
