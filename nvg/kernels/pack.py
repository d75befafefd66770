"""Matrices into the layout that tiles stream: panels of 32 columns, [round32(N) / 32][K][32], zero beyond N."""

from __future__ import annotations

import numba
import numpy as np
from numba import carray, types
from numba.extending import intrinsic

from nvg.kernels.attention import round32
from nvg.kernels.matmul import own_panels
from nvg.kernels.microkernels import PANEL
from nvg.kernels.simd import float32_at
from nvg.runtime.compile_cache import Job, njit

_FIELDS = ("source", "num_rows", "num_columns", "first_row", "transposed", "k", "n", "packed")
PACK_CONTEXT = np.dtype([(name, np.int64) for name in _FIELDS], align=True)
_CONTEXT_TYPE = numba.from_dtype(PACK_CONTEXT)


@intrinsic
def _context_at(typingctx, address):
    def codegen(context, builder, sig, args):
        return builder.inttoptr(args[0], context.get_value_type(sig.return_type))

    return types.CPointer(_CONTEXT_TYPE)(types.int64), codegen


@njit
def _pack_rows(source, num_rows, num_columns, first_row, k, packed, first_panel, end_panel):
    """Rows first_row .. of a (K, N) matrix, into this thread's panels."""
    for panel in range(first_panel, end_panel):
        width = min(PANEL, num_columns - panel * PANEL)
        for row in range(num_rows):
            at = (panel * k + first_row + row) * PANEL
            line, out = source[row * num_columns + panel * PANEL :], packed[at : at + PANEL]
            for c in range(width):
                out[c] = line[c]
            for c in range(width, PANEL):
                out[c] = np.float32(0)


@njit
def _pack_columns(source, num_rows, num_columns, first_row, packed, thread, num_threads):
    """Rows first_row .. of an (N, K) matrix become columns; rows are split among threads by panels of 32."""
    num_panels = (num_rows + PANEL - 1) // PANEL
    first_panel, end_panel = own_panels(num_panels, thread, num_threads)
    for panel in range(first_panel, end_panel):
        at = (first_row // PANEL + panel) * num_columns * PANEL
        width = min(PANEL, num_rows - panel * PANEL)
        for start in range(0, num_columns, 16):  # 32 x 16: what is written stays in the first-level cache
            end = min(start + 16, num_columns)
            for c in range(width):
                line = source[(panel * PANEL + c) * num_columns :]
                for row in range(start, end):
                    packed[at + row * PANEL + c] = line[row]
            for c in range(width, PANEL):
                for row in range(start, end):
                    packed[at + row * PANEL + c] = np.float32(0)


def _pack(context, thread, num_threads):
    """Job: pack some rows as `context` (the address of a PACK_CONTEXT record) describes them."""
    c = carray(_context_at(context), 1)[0]
    source = carray(float32_at(c.source), c.num_rows * c.num_columns)
    packed = carray(float32_at(c.packed), c.k * round32(c.n))
    if c.transposed != 0:
        _pack_columns(source, c.num_rows, c.num_columns, c.first_row, packed, thread, num_threads)
    else:
        first_panel, end_panel = own_panels(round32(c.n) // PANEL, thread, num_threads)
        _pack_rows(source, c.num_rows, c.num_columns, c.first_row, c.k, packed, first_panel, end_panel)


pack = Job(_pack)
