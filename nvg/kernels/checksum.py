"""A checksum at the speed of memory: it notices damage, it does not keep out a forger."""

from __future__ import annotations

import numpy as np
from numba.core import types

from nvg.runtime.compile_cache import CompileStep, function_step, njit

CHUNK_BYTES = 1 << 20
_LANES = 64
_CHUNK_WORDS = CHUNK_BYTES // 8
_MIX = 0x9E3779B97F4A7C15  # odd: multiplying by it loses nothing


@njit
def _add_row(row, sums, sums_of_sums):
    for lane in range(row.size):
        sums[lane] += row[lane]
        sums_of_sums[lane] += sums[lane]


@njit(cached=True)
def checksum_chunks(words, out):
    """out[c] = the sums of chunk c (CHUNK_BYTES, the last one may be shorter) of `words`: of the words, and of all sums
    so far, so that order counts (Fletcher 1982, doi:10.1109/TCOM.1982.1095369), in 64 lanes of 64 bits.

    words: uint64; out: uint64 (chunks, 2), overwritten.
    """
    sums, sums_of_sums = np.empty(_LANES, np.uint64), np.empty(_LANES, np.uint64)
    for chunk in range(out.shape[0]):
        part = words[chunk * _CHUNK_WORDS : (chunk + 1) * _CHUNK_WORDS]
        sums[:] = 0
        sums_of_sums[:] = 0
        for start in range(0, part.size, _LANES):
            _add_row(part[start : start + _LANES], sums, sums_of_sums)
        first, second = np.uint64(part.size), np.uint64(0)
        for lane in range(_LANES):
            first = first * np.uint64(_MIX) + sums[lane]
            second = second * np.uint64(_MIX) + sums_of_sums[lane]
        out[chunk, 0], out[chunk, 1] = first, second


def compile_steps() -> list[CompileStep]:
    """What must be compiled before memory can be checked."""
    words = types.Array(types.uint64, 1, "C", readonly=True)
    return [function_step(checksum_chunks, (words, types.Array(types.uint64, 2, "C")))]
