"""Packing, operands and register tiles of every precision, against plain NumPy; code for other machines."""

import os
import re
import subprocess
import sys
from pathlib import Path

import formats
import numpy as np
import pytest
from llvmlite import binding, ir

from nvg.kernels.formats import operand_bytes, panel_bytes, steps_of
from nvg.kernels.microkernels import apart_product, heights, paged_product, panel_product
from nvg.kernels.operands import store_operand
from nvg.kernels.pack import BLOCK_BYTES, PACK_CONTEXT, pack
from nvg.kernels.tiles import ADD_BIAS, FROM_C, Tile, tile_function
from nvg.runtime.compile_cache import njit, prepare
from nvg.runtime.cpu import features_of
from nvg.runtime.team import Team, compile_steps

DTYPES = ("float32", "bfloat16", "int8", "int4")


def packed(dtype, weights, transposed=False, piece=64):
    """A (K, N) matrix, or an (N, K) one, packed by a team of two in pieces of rows."""
    prepare([*compile_steps(), pack(dtype).step()])
    k, n = weights.shape[::-1] if transposed else weights.shape
    out = np.full(-(-n // 32) * panel_bytes(dtype, k), 0xAA, np.uint8)
    blocks = np.empty(2 * BLOCK_BYTES, np.uint8)
    team = Team(2)
    try:
        for first in range(0, len(weights), piece):
            rows = np.ascontiguousarray(weights[first : first + piece], np.float32)
            context = np.zeros(1, PACK_CONTEXT)
            context[0] = (
                rows.ctypes.data, len(rows), weights.shape[1], first, transposed, k, n, out.ctypes.data,
                blocks.ctypes.data,
            )  # fmt: skip
            team.run(pack(dtype).address, context.ctypes.data)
    finally:
        team.close()
    return out


def operands(dtype, rows):
    """Float32 rows (M, K) as operands."""
    store = store_operand(dtype)

    def convert(source, groups, out):
        store(source, groups, out)

    convert = njit(convert, name=f"convert_{dtype}")
    m, k = rows.shape
    padded = np.zeros((m, -(-k // 32) * 32), np.float32)
    padded[:, :k] = rows
    out = np.zeros((m, operand_bytes(dtype, k)), np.uint8)
    for row in range(m):
        convert(padded[row].ctypes.data, padded.shape[1] // 32, out[row].ctypes.data)
    return out


def product(dtype, a, b, c, k, mode=0, bias=None):
    """C = A B for one panel."""
    multiply = panel_product(dtype, prefetches=True)
    bias_at = 0 if bias is None else bias.ctypes.data
    multiply(
        a.ctypes.data, a.strides[0], len(a), b.ctypes.data, c.ctypes.data, c.strides[0], steps_of(dtype, k), mode,
        bias_at, b.ctypes.data, b.ctypes.data + b.nbytes, 3,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("k", "n"), [(64, 96), (33, 5), (1, 40)])
@pytest.mark.parametrize("transposed", [False, True])
def test_weights_are_packed_as_the_layout_says(dtype, k, n, transposed):
    weights = np.random.default_rng(k).normal(0, 0.05, (k, n)).astype(np.float32)
    weights[:, 0] = 0
    kept = formats.decode_weights(dtype, packed(dtype, weights.T if transposed else weights, transposed), k, n)
    if dtype in ("float32", "bfloat16"):
        assert np.array_equal(kept, formats.round_weights(dtype, weights))
        return
    # a group's error is at most half a step, but for what lies beyond the last level
    steps = {"int8": (1 / 127, 0.51), "int4": (28 / 125, 0.56)}
    step, half = steps[dtype]
    for first in range(0, k, 32):
        group, error = weights[first : first + 32], np.abs(kept - weights)[first : first + 32]
        assert (error <= half * 1.35 * step * np.abs(group).max(0) + 1e-12).all()
    assert not kept[:, 0].any()


@pytest.mark.parametrize(("dtype", "bound"), [("int8", 3.0e-5), ("int4", 5.9e-3)])
def test_quantised_weights_lose_no_more_than_a_good_quantiser(dtype, bound):
    """Mean squared error relative to the weights', on normal values: Q8_0 has 2.9e-5, Q4_0 7.4e-3."""
    weights = np.random.default_rng(0).normal(0, 0.02, (256, 512)).astype(np.float32)
    kept = formats.decode_weights(dtype, packed(dtype, weights), *weights.shape)
    assert ((kept - weights) ** 2).mean() / (weights.astype(np.float64) ** 2).mean() < bound


@pytest.mark.parametrize("dtype", DTYPES)
def test_operands_are_rounded_group_by_group(dtype):
    rows = np.random.default_rng(1).normal(0, 3, (3, 70)).astype(np.float32)
    rows[1, 32:64] = 0
    kept = formats.decode_operands(dtype, operands(dtype, rows), 70)
    if dtype in ("float32", "bfloat16"):
        assert np.array_equal(kept, formats.round_weights(dtype, rows))
        return
    for first in range(0, 70, 32):
        group = rows[:, first : first + 32]
        error = np.abs(kept[:, first : first + 32] - group)
        assert (error <= np.abs(group).max(1, keepdims=True) / 127 * 0.501).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [32, 160])
def test_a_panel_is_the_product_of_what_operands_and_weights_mean(dtype, k):
    rng = np.random.default_rng(k)
    most = 2 * heights(dtype)[0] + 3
    rows, weights = rng.normal(size=(most, k)).astype(np.float32), rng.normal(size=(k, 32)).astype(np.float32)
    a, b = operands(dtype, rows), packed(dtype, weights)
    expected = formats.decode_operands(dtype, a, k) @ formats.decode_weights(dtype, b, k, 32)
    bias = rng.normal(size=32).astype(np.float32)
    for num_rows in range(1, most + 1):
        c = np.full((num_rows, 37), np.nan, np.float32)
        product(dtype, a[:num_rows], b, c, k)
        assert np.abs(c[:, :32] - expected[:num_rows]).max() < 2e-5 * np.sqrt(k)
        assert np.isnan(c[:, 32:]).all(), "columns beyond the panel are not touched"
        before = c.copy()
        product(dtype, a[:num_rows], b, c, k, FROM_C | ADD_BIAS, bias)
        assert np.abs(c[:, :32] - before[:, :32] - bias - expected[:num_rows]).max() < 4e-5 * np.sqrt(k)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_in_any_tile_and_with_k_in_any_pieces(dtype):
    rng = np.random.default_rng(0)
    k, num_rows = 192, 2 * heights(dtype)[0] + 1
    rows, weights = rng.normal(size=(num_rows, k)).astype(np.float32), rng.normal(size=(k, 32)).astype(np.float32)
    a, b = operands(dtype, rows), packed(dtype, weights)
    together = np.empty((num_rows, 32), np.float32)
    product(dtype, a, b, together, k)
    group_bytes = panel_bytes(dtype, 32)
    operand_group = {"float32": 128, "bfloat16": 64}.get(dtype, 40)
    for row in range(num_rows):
        alone = np.empty((1, 32), np.float32)
        for first, end in ((0, 1), (1, 4), (4, 6)):
            part = a[row : row + 1, first * operand_group :]
            product(dtype, part, b[first * group_bytes :], alone, 32 * (end - first), FROM_C if first else 0)
        assert np.array_equal(alone[0], together[row])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("k", [150, 32, 2])
def test_a_panel_in_blocks_of_a_pool_gives_the_bits_of_a_whole_one(dtype, k):
    rng = np.random.default_rng(k)
    most = 2 * heights(dtype)[0] + 3
    a = operands(dtype, rng.normal(size=(most, k)).astype(np.float32))
    whole = packed(dtype, rng.normal(size=(k, 32)).astype(np.float32))
    block_bytes, table = panel_bytes(dtype, 32), np.array([3, 0, 5, 1, 4], np.int32)
    pool = np.full(64 + 6 * block_bytes, 0xFF, np.uint8)  # every float a NaN
    for number, block in enumerate(whole.reshape(-1, block_bytes)):
        pool[64 + table[number] * block_bytes :][:block_bytes] = block
    steps = k if dtype == "float32" else k // 2
    for num_rows in range(1, most + 1):
        c = np.full((num_rows, 32), np.nan, np.float32)
        paged_product(dtype)(
            a.ctypes.data, a.strides[0], num_rows, pool.ctypes.data + 64, c.ctypes.data, c.strides[0], steps,
            table.ctypes.data, block_bytes, steps_of(dtype, 32),
        )  # fmt: skip
        expected = np.full((num_rows, 32), np.nan, np.float32)
        product(dtype, a[:num_rows], whole, expected, k)
        assert np.array_equal(c, expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("k", [64, 2])
@pytest.mark.parametrize("prefetches", [False, True])
def test_rows_apart_give_the_bits_of_rows_alone(dtype, k, prefetches):
    rng = np.random.default_rng(k)
    a = operands(dtype, rng.normal(size=(9, k)).astype(np.float32))
    panels = np.stack([packed(dtype, rng.normal(size=(k, 32)).astype(np.float32)) for _ in range(9)])
    steps = k if dtype == "float32" else k // 2
    for num_rows in range(1, 10):
        c = np.full((num_rows, 37), 0.5, np.float32)
        expected = c.copy()
        for mode in (0, FROM_C):
            apart_product(dtype, prefetches)(
                a.ctypes.data, a.strides[0], num_rows, panels.ctypes.data, panels.strides[0], c.ctypes.data,
                c.strides[0], steps, mode, panels.ctypes.data, num_rows * panels.strides[0],
            )  # fmt: skip
            for row in range(num_rows):
                product(dtype, a[row : row + 1], panels[row], expected[row : row + 1], k, mode)
            assert np.array_equal(c, expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_panels_of_16_keys_give_the_bits_of_a_panel_of_32(dtype):
    k, rng = 64, np.random.default_rng(2)
    a = operands(dtype, rng.normal(size=(9, k)).astype(np.float32))
    panels = np.stack([packed(dtype, rng.normal(size=(k, 32)).astype(np.float32)).reshape(-1) for _ in range(9)])
    steps = k if dtype == "float32" else k // 2
    keys = panels.view(np.uint32).reshape(9, steps, 2, 16).transpose(0, 2, 1, 3).copy()
    for num_rows in range(1, 10):
        expected = np.full((num_rows, 32), np.nan, np.float32)
        product(dtype, a[:num_rows], panels[0], expected, k)
        c = np.full((num_rows, 37), 0.5, np.float32)
        panel_product(dtype, is_keys=True)(
            a.ctypes.data, a.strides[0], num_rows, keys.ctypes.data, c.ctypes.data, c.strides[0], steps, 0, 0, 0, 0, 0
        )
        assert np.array_equal(c[:, :32], expected)
        for row in range(num_rows):
            product(dtype, a[row : row + 1], panels[row], expected[row : row + 1], k)
        for num_keys in (16, 32):
            c[:] = 0.5
            apart_product(dtype, num_keys=num_keys)(
                a.ctypes.data, a.strides[0], num_rows, keys.ctypes.data, keys.strides[0], c.ctypes.data, c.strides[0],
                steps, 0, 0, 0,
            )  # fmt: skip
            assert np.array_equal(c[:, :num_keys], expected[:, :num_keys])
            assert (c[:, num_keys:] == 0.5).all()


def test_a_tile_of_a_machine_that_is_not_here_compiles_to_its_vector_instructions():
    """aarch64 with NEON and dotprod, cross-compiled: multiply-adds by lanes, sdot and table look-ups."""
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    triple = "aarch64-unknown-linux-gnu"
    module = ir.Module("tiles")
    module.triple = triple
    features = features_of(triple, frozenset({"neon", "dotprod"}))
    for kind in ("float32", "int8_rows", "bfloat16", "int8", "int4"):
        tile_function(module, features, Tile(kind, 4, 8, prefetches=True))
    for kind in ("float32", "int8_rows", "bfloat16"):
        tile_function(module, features, Tile(kind, 4, 8, is_paged=True))
        tile_function(module, features, Tile(kind, 4, 8, is_keys=True))
        tile_function(module, features, Tile(kind, 2, 32, prefetches=kind == "int8_rows", is_apart=True))
    for function in module.functions:
        if not function.is_declaration:
            function.linkage = ""  # or it would be dropped
    machine = binding.Target.from_triple(triple).create_target_machine(cpu="generic", features="+neon,+dotprod", opt=3)
    assembly = machine.emit_assembly(binding.parse_assembly(str(module)))
    bodies = dict(re.findall(r"^(nvg_tile_\w+):(.*?)^\.Lfunc_end", assembly, re.S | re.M))
    assert len(bodies) == 14
    for name, body in bodies.items():
        assert ("prfm" in body) == (name[-4] == "1")
        assert not re.search(r"\bbl\t", body), f"{name} calls something"
        assert "fmla" in body
        assert ("sdot" in body) == ("_int8_4x" in name or "_int4_" in name)
    assert "tbl" in bodies["nvg_tile_int4_4x8_1000"]


BITS = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_kernels_tiles as tests
import test_kernels_roofline as roofline
from nvg.runtime import cpu
roofline.test_byte_dots_are_made_as_often_as_counted(9)
tests.test_a_row_has_the_same_bits_in_any_tile_and_with_k_in_any_pieces("bfloat16")
for dtype in tests.DTYPES:
    tests.test_a_panel_is_the_product_of_what_operands_and_weights_mean(dtype, 160)
for dtype in ("float32", "bfloat16"):
    tests.test_panels_of_16_keys_give_the_bits_of_a_panel_of_32(dtype)
print(cpu.features().vector_floats, cpu.features().int8_dot)
"""


SSE = "+sse4.2,+sse4.1,+ssse3,+sse3,+sse2,+sse,+popcnt,+cx16,+64bit,+cmov"
AVX2 = f"{SSE},+avx2,+avx,+fma,+f16c,+bmi,+bmi2"


@pytest.mark.skipif(sys.platform == "win32" or os.uname().machine != "x86_64", reason="for x86-64")
@pytest.mark.parametrize(
    ("name", "features", "needed", "shown"),
    [
        ("nehalem", SSE, "ssse3", "4 pmaddwd"),
        ("haswell", AVX2, "avx2", "8 pmaddwd"),
        ("sierraforest", f"{AVX2},+avxvnni", "avx_vnni", "8 vnni"),
    ],
)
def test_every_precision_is_right_without_avx512(name, features, needed, shown):
    if needed not in Path("/proc/cpuinfo").read_text().split():
        pytest.skip(f"needs {needed}")
    environment = {**os.environ, "NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features}
    done = subprocess.run(
        [sys.executable, "-c", BITS, os.path.dirname(__file__)], env=environment, capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == shown
