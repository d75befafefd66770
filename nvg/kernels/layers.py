"""Everything of a layer but matmuls and attention: embedding, layer norm, activations."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import carray

from nvg.kernels import simd
from nvg.kernels.formats import GROUP, GROUP_BYTES, INT4_LEVELS, PANEL
from nvg.kernels.simd import float32_at, float32_of_bits, uint8_at, uint16_at
from nvg.runtime.compile_cache import njit

GELU_TANH, GELU_ERF, RELU, SILU, TANH = range(5)
_LEVELS = np.array(INT4_LEVELS, np.float32)


@cache
def add_token_row(dtype: str) -> Any:
    """The compiled function (token, packed, k_bytes, n_embd, x): add a row of wte to the n_embd values of x.

    packed: address of wte as the head has it, panels of k_bytes bytes: a token's row is a column of a panel. x: address
    of float32.
    """
    group_bytes = GROUP_BYTES.get(dtype, 0)

    def add_float32(token, packed, k_bytes, n_embd, x):
        column = carray(float32_at(packed + token // PANEL * k_bytes), n_embd * PANEL)[token % PANEL :]
        out = carray(float32_at(x), n_embd)
        for c in range(n_embd):
            out[c] += column[c * PANEL]

    def add_bfloat16(token, packed, k_bytes, n_embd, x):
        words = carray(uint16_at(packed + token // PANEL * k_bytes), (n_embd + 1) * PANEL)[token % PANEL * 2 :]
        out = carray(float32_at(x), n_embd)
        for c in range(n_embd):
            out[c] += float32_of_bits(np.uint32(words[c // 2 * 2 * PANEL + c % 2]) << 16)

    def add_codes(token, packed, k_bytes, n_embd, x):
        out = carray(float32_at(x), n_embd)
        column = token % PANEL
        for group in range((n_embd + GROUP - 1) // GROUP):
            at = packed + token // PANEL * k_bytes + group * group_bytes
            scale_bits = carray(uint16_at(at + group_bytes - 2 * PANEL), PANEL)[column]
            scale = float32_of_bits(np.uint32(scale_bits) << 16)
            codes = carray(uint8_at(at), GROUP * PANEL)[column * 4 :]
            for c in range(min(GROUP, n_embd - group * GROUP)):
                if group_bytes > GROUP * PANEL:
                    level = np.float32(np.int64(codes[c // 4 * 4 * PANEL + c % 4]) - 128)
                else:
                    level = _LEVELS[(codes[c // 8 * 4 * PANEL + c % 4] >> (c // 4 % 2 * 4)) & 15]
                out[group * GROUP + c] += level * scale

    add = {"float32": add_float32, "bfloat16": add_bfloat16}.get(dtype, add_codes)
    return njit(add, name=f"add_token_row_{dtype}")


@njit
def copy_row(source, n, target):
    """Copy n float32 from one address to another."""
    row, out = carray(float32_at(source), n), carray(float32_at(target), n)
    for c in range(n):
        out[c] = row[c]


@njit
def layer_norm(x_at, n_embd, weight_at, bias_at, epsilon, out_at):
    """out = (x - mean) / sqrt(variance + epsilon) * weight + bias, one row (Ba et al. 2016, arXiv:1607.06450).

    All float32 at addresses; out may be x.
    """
    row, result = carray(float32_at(x_at), n_embd), carray(float32_at(out_at), n_embd)
    weight, bias = carray(float32_at(weight_at), n_embd), carray(float32_at(bias_at), n_embd)
    mean = simd.row_sum(row, 0, n_embd, np.float32(0)) / np.float32(n_embd)
    variance = simd.row_squared_deviation(row, 0, n_embd, mean) / np.float32(n_embd)
    scale = np.float32(1) / np.sqrt(variance + epsilon)
    for c in range(n_embd):
        result[c] = (row[c] - mean) * scale * weight[c] + bias[c]


@njit
def activate(kind, values, n):
    """values = activation(values) for n float32 at an address; values up to the next multiple of 16 change too."""
    row = carray(float32_at(values), n)
    if kind == GELU_TANH:
        simd.gelu_tanh(row, 0, n)
    elif kind == GELU_ERF:
        simd.gelu_erf(row, 0, n)
    elif kind == RELU:
        simd.relu(row, 0, n)
    elif kind == SILU:
        simd.silu(row, 0, n)
    else:
        simd.tanh(row, 0, n)
