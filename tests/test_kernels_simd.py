"""Vector intrinsics against float64 NumPy: accuracy, masked tails, and activations by their formulas."""

import math

import numpy as np
import pytest

from nvg.kernels import layers, simd
from nvg.kernels.kv import round32
from nvg.runtime.compile_cache import njit


@njit
def _reduce(row, n, mean):
    zero = np.float32(0)
    return (
        simd.row_sum(row, 0, n, zero),
        simd.row_squared_deviation(row, 0, n, mean),
        simd.row_abs_max(row, 0, n, zero),
    )


@njit
def _softmax_float32(scores, visible, end, scale):
    return simd.softmax_float32(scores, visible, end, scale)


@njit
def _softmax_bfloat16(scores, visible, end, scale):
    return simd.softmax_bfloat16(scores, visible, end, scale)


def _row(values):
    """The values, then NaN up to a multiple of 16: what lies beyond a row's end must not matter."""
    row = np.full(-(-len(values) // 16) * 16, np.nan, np.float32)
    row[: len(values)] = values
    return row


@pytest.mark.parametrize("n", [1, 5, 15, 16, 17, 64, 1000])
def test_reductions_are_exact_enough_and_ignore_what_lies_beyond(n):
    values = np.random.default_rng(n).normal(3, 2, n).astype(np.float32)
    wide = values.astype(np.float64)
    total, deviation, largest = _reduce(_row(values), n, np.float32(3))
    assert total == pytest.approx(wide.sum(), rel=1e-6)
    assert deviation == pytest.approx(((wide - 3) ** 2).sum(), rel=1e-5)
    assert largest == np.abs(values).max()


def test_exp_is_accurate_over_the_whole_range():
    x = np.concatenate([np.linspace(-87, 0, 100_000), -np.logspace(-30, 1, 1000), [0.0]]).astype(np.float32)
    row = _row(x)
    _softmax_float32(row.ctypes.data, len(x), len(x), np.float32(1))
    expected = np.exp(x.astype(np.float64))
    assert np.abs(row[: len(x)] / expected - 1).max() < 2.5e-7


def test_exp_of_what_underflows_is_an_exact_zero_and_the_tail_is_zeroed():
    x = np.array([0, -50, -100, -1e30, -np.inf], np.float32)
    row = _row(x)
    _softmax_float32(row.ctypes.data, len(x), len(x), np.float32(1))
    assert row[0] == 1
    assert row[1] > 0
    assert not row[2:].any()


@pytest.mark.parametrize("visible", [1, 15, 16, 17, 40])
@pytest.mark.parametrize("narrow", [False, True])
def test_a_softmax_shifts_scales_and_leaves_exact_zeros_behind_what_is_visible(visible, narrow):
    x = np.random.default_rng(visible).normal(0, 30, visible).astype(np.float32)
    row = np.full(64, np.nan, np.float32)
    row[:visible] = x
    softmax = _softmax_bfloat16 if narrow else _softmax_float32
    total = softmax(row.ctypes.data, visible, 47, np.float32(0.25))
    weights = (row.view(np.uint16)[:48].astype(np.uint32) << 16).view(np.float32) if narrow else row[:48]
    expected = np.exp((x.astype(np.float64) - x.max()) * 0.25)
    assert total == pytest.approx(expected.sum(), rel=1e-6)
    assert weights[:visible] == pytest.approx(expected, rel=2**-8 if narrow else 1e-5)
    assert not weights[visible:].any()


def _gelu_erf(x):
    return np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x])


_FORMULAS = {
    layers.GELU_TANH: lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    layers.GELU_ERF: _gelu_erf,
    layers.RELU: lambda x: np.maximum(x, 0),
    layers.SILU: lambda x: x / (1 + np.exp(-x)),
    layers.TANH: np.tanh,
}


@pytest.mark.parametrize("kind", _FORMULAS)
def test_activations_follow_their_formulas(kind):
    x = np.concatenate([np.linspace(-30, 30, 6001), np.linspace(-0.3, 0.3, 1001)]).astype(np.float32)
    row = np.zeros(round32(len(x)), np.float32)
    row[: len(x)] = x
    layers.activate(kind, row.ctypes.data, len(x))
    expected = _FORMULAS[kind](x.astype(np.float64))
    assert (np.abs(row[: len(x)] - expected) / np.maximum(1, np.abs(x))).max() < 4e-7
