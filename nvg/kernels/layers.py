"""Everything of a layer but matmuls and attention: embedding, layer norm, activations, biases, residuals.

Buffers of activations are float32 with rows `ld` floats apart, ld a multiple of 32.
"""

from __future__ import annotations

import numpy as np

from nvg.kernels import simd
from nvg.kernels.microkernels import PANEL
from nvg.runtime.compile_cache import njit

GELU_TANH, GELU_ERF, RELU, SILU, TANH = range(5)


@njit
def embed(token_ids, positions, first, end, rows_packed, wpe, n_embd, x, ldx):
    """x[t] = wte[token_ids[t]] + wpe[positions[t]] for t in first .. end.

    rows_packed is wte as the head has it, [round32(V) / 32][C][32]: a token's row is a column of a panel.
    """
    for t in range(first, end):
        token, position = np.int64(token_ids[t]), np.int64(positions[t])
        column = token // PANEL * n_embd * PANEL + token % PANEL
        for c in range(n_embd):
            x[t * ldx + c] = rows_packed[column + c * PANEL] + wpe[position * n_embd + c]


@njit
def layer_norm(x, x_offset, n_embd, weight, bias, epsilon, out, out_offset):
    """out = (x - mean) / sqrt(variance + epsilon) * weight + bias, one row (Ba et al. 2016, arXiv:1607.06450)."""
    mean = simd.row_sum(x, x_offset, n_embd, np.float32(0)) / np.float32(n_embd)
    variance = simd.row_squared_deviation(x, x_offset, n_embd, mean) / np.float32(n_embd)
    scale = np.float32(1) / np.sqrt(variance + epsilon)
    row, result = x[x_offset : x_offset + n_embd], out[out_offset : out_offset + n_embd]
    for c in range(n_embd):
        result[c] = (row[c] - mean) * scale * weight[c] + bias[c]


@njit
def add_bias(out, ldo, num_rows, bias, first, end):
    """out[:, first:end] += bias[first:end]"""
    own_bias = bias[first:end]
    for row in range(num_rows):
        own = out[row * ldo + first : row * ldo + end]
        for c in range(own.shape[0]):
            own[c] += own_bias[c]


@njit
def add_to_residual(x, ldx, projected, ldp, num_rows, bias, first, end):
    """x[:, first:end] += projected[:, first:end] + bias[first:end]"""
    own_bias = bias[first:end]
    for row in range(num_rows):
        own, added = x[row * ldx + first : row * ldx + end], projected[row * ldp + first : row * ldp + end]
        for c in range(own.shape[0]):
            own[c] += added[c] + own_bias[c]


@njit
def activate(kind, h, ldh, num_rows, first, end):
    """h[:, first:end] = activation(h[:, first:end]); first is a multiple of 32, end too or the end of the row."""
    for row in range(num_rows):
        offset, n = row * ldh + first, end - first
        if kind == GELU_TANH:
            simd.gelu_tanh(h, offset, n)
        elif kind == GELU_ERF:
            simd.gelu_erf(h, offset, n)
        elif kind == RELU:
            simd.relu(h, offset, n)
        elif kind == SILU:
            simd.silu(h, offset, n)
        else:
            simd.tanh(h, offset, n)
