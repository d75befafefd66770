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


def _softmax(values, visible, end, scale, narrow=False, room=64):
    """(weights of one row, their sum); the row has as many more elements, NaN, as `room` says."""
    row = np.full(-(-end // 16) * 16 + room, np.nan, np.float32)
    row[: len(values)] = values
    simd.softmax_rows(narrow)(row.ctypes.data, row.nbytes, 1, visible, 0, end, np.float32(scale))
    weights = (row.view(np.uint16).astype(np.uint32) << 16).view(np.float32) if narrow else row
    return weights[: -(-end // 16) * 16], 1 / row[-1]


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
    weights, _ = _softmax(x, len(x), len(x), 1)
    expected = np.exp(x.astype(np.float64))
    assert np.abs(weights[: len(x)] / expected - 1).max() < 2.5e-7


def test_exp_of_what_underflows_is_an_exact_zero_and_the_tail_is_zeroed():
    x = np.array([0, -50, -100, -1e30, -np.inf], np.float32)
    weights, _ = _softmax(x, len(x), len(x), 1)
    assert weights[0] == 1
    assert weights[1] > 0
    assert not weights[2:].any()


@pytest.mark.parametrize("visible", [1, 15, 16, 17, 40])
@pytest.mark.parametrize("narrow", [False, True])
def test_a_softmax_shifts_scales_and_leaves_exact_zeros_behind_what_is_visible(visible, narrow):
    x = np.random.default_rng(visible).normal(0, 30, visible).astype(np.float32)
    weights, total = _softmax(x, visible, 47, 0.25, narrow)
    expected = np.exp((x.astype(np.float64) - x.max()) * 0.25)
    assert total == pytest.approx(expected.sum(), rel=1e-6)
    assert weights[:visible] == pytest.approx(expected, rel=2**-8 if narrow else 1e-5)
    assert not weights[visible:].any()


@pytest.mark.parametrize("visible", [1, 14, 16, 33])
@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize("narrow", [False, True])
def test_rows_side_by_side_have_the_bits_of_a_row_alone(visible, more, narrow):
    rng = np.random.default_rng(visible)
    for num_rows in range(1, 2 * simd.SOFTMAX_ROWS + 2):
        end = visible + (num_rows - 1) * more
        rows = np.full((num_rows, 96), np.nan, np.float32)
        rows[:, :end] = rng.normal(0, 30, (num_rows, end))
        alone = rows.copy()
        softmax = simd.softmax_rows(narrow)
        softmax(rows.ctypes.data, rows.strides[0], num_rows, visible, more, end, np.float32(0.25))
        for r, row in enumerate(alone):
            softmax(row.ctypes.data, row.nbytes, 1, visible + r * more, 0, end, np.float32(0.25))
        assert np.array_equal(rows.view(np.uint32), alone.view(np.uint32))


@pytest.mark.parametrize("n", [1, 15, 16, 64, 70])
def test_a_scaled_row_ends_where_it_ends(n):
    row, out = np.arange(80, dtype=np.float32), np.full(80, 0.5, np.float32)
    _scale(row.ctypes.data, np.float32(3), n, out.ctypes.data)
    assert np.array_equal(out[:n], row[:n] * 3)
    assert (out[n:] == 0.5).all()


@njit
def _scale(source, factor, n, out):
    simd.scale_row(source, factor, n, out)


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
