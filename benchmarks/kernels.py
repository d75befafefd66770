"""The matmul kernels alone, beside the machine's ceilings: every kind of weights, number of rows and shape of GPT-2.

    python benchmarks/kernels.py

A matrix is multiplied again and again, and each time another copy of it, so many that no cache holds them: weights come
from memory, as in a decode step. Threads split the columns as in the forward pass, without meeting in between. The same
threads read memory and repeat the fastest instruction for the kind just before; the bound is the longer of the times
that weights and operations take at these rates, and `of bound` says how much of the measured time that is.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from numba import carray
from report import Spread, facts, print_facts, print_table, write_json

from nvg.bench.ceilings import Ceilings, buffer_bytes, ceilings
from nvg.errors import NvgError
from nvg.kernels import pack as pack_module
from nvg.kernels.formats import PANEL, operand_bytes, panel_bytes, steps_of
from nvg.kernels.matmul import ROW_BLOCK, own_panels, row_block_product
from nvg.kernels.operands import store_operand
from nvg.kernels.roofline import instruction_for
from nvg.kernels.simd import int64_at
from nvg.params import DTYPES
from nvg.runtime import team as team_module
from nvg.runtime.compile_cache import prepare
from nvg.runtime.cores import default_threads
from nvg.runtime.team import Team

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

SHAPES = {
    "c_attn": (768, 2304), "attn c_proj": (768, 768), "c_fc": (768, 3072), "mlp c_proj": (3072, 768),
    "head": (768, 50257),
}  # fmt: skip
"""Of GPT-2 124M: name -> (K, N)."""
ROWS = (1, 2, 4, 8, 16, 32, 64, 512)
MOST_HEAD_ROWS = 64  # logits are wanted of a prompt's last token only
LEAST_S = 0.02  # of one measurement

_FIELDS = (
    "operand", "operand_bytes", "num_rows", "weights", "matrix_bytes", "num_copies", "first_copy", "num_products",
    "num_panels", "panel_bytes", "steps", "out", "out_bytes",
)  # fmt: skip


def make_job(dtype: str) -> Any:
    """The compiled job: `num_products` products with one copy of the matrix after the other; its context is the int64
    of _FIELDS."""
    multiply = row_block_product(dtype)

    def job(context, thread, num_threads):
        c = carray(int64_at(context), len(_FIELDS))
        operand, operand_bytes, num_rows, weights, matrix_bytes, num_copies = c[0], c[1], c[2], c[3], c[4], c[5]
        first_copy, num_products, num_panels, panel_bytes, steps = c[6], c[7], c[8], c[9], c[10]
        out, out_bytes = c[11], c[12]
        first, end = own_panels(num_panels, thread, num_threads)
        for number in range(first_copy, first_copy + num_products):
            matrix = weights + number % num_copies * matrix_bytes
            following = weights + (number + 1) % num_copies * matrix_bytes + first * panel_bytes
            for row in range(0, num_rows, ROW_BLOCK):
                rows = min(ROW_BLOCK, num_rows - row)
                for panel in range(first, end):
                    at = matrix + panel * panel_bytes
                    multiply(
                        operand + row * operand_bytes, operand_bytes, rows, at,
                        out + row * out_bytes + panel * PANEL * 4, out_bytes, steps, 0, 0,
                        at + panel_bytes if panel + 1 < end else following,
                    )  # fmt: skip

    signature = numba.void(numba.int64, numba.int64, numba.int64)
    return numba.cfunc(signature, nopython=True, nogil=True, error_model="numpy")(job)


def make_operands(dtype: str, rows: Floats) -> Bytes:
    """Float32 rows (M, K), K a multiple of 32, as the kernels read them."""
    store = store_operand(dtype)

    @numba.njit
    def convert(source, groups, out):
        store(source, groups, out)

    out = np.zeros((len(rows), operand_bytes(dtype, rows.shape[1])), np.uint8)
    for row, converted in zip(rows, out, strict=True):
        convert(row.ctypes.data, len(row) // 32, converted.ctypes.data)
    return out


def pack(dtype: str, weights: Floats, out: Bytes, team: Team) -> None:
    """A matrix (K, N) as the kernels read it."""
    blocks = np.empty(pack_module.BLOCK_BYTES * team.num_threads, np.uint8)
    context = np.zeros(1, pack_module.PACK_CONTEXT)
    k, n = weights.shape
    context[0] = (weights.ctypes.data, k, n, 0, False, k, n, out.ctypes.data, blocks.ctypes.data)
    team.run(pack_module.pack(dtype).address, context.ctypes.data)


@dataclass(frozen=True)
class Measured:
    """A kernel's rates, in each repetition."""

    dtype: str
    shape: str
    num_rows: int
    seconds: list[float]
    gflop_s: list[float]
    gb_s: list[float]
    """Of weights."""
    of_bound: list[float]
    bounds: list[str]
    """Which of the ceilings it is: memory or arithmetic."""


class Product:
    """One shape and kind of weights, with as many copies in `memory` as it holds."""

    def __init__(self, dtype: str, shape: str, most_rows: int, memory: Bytes, job: Any, team: Team) -> None:
        self.dtype, self.shape = dtype, shape
        self._job, self._team = job, team
        k, n = SHAPES[shape]
        rng = np.random.default_rng(0)
        rows = rng.standard_normal((most_rows, k), np.float32)
        weights = rng.standard_normal((k, n), np.float32) * np.float32(0.02)
        num_panels = -(-n // PANEL)
        self.matrix_bytes = num_panels * panel_bytes(dtype, k)
        copies = memory[: len(memory) // self.matrix_bytes * self.matrix_bytes].reshape(-1, self.matrix_bytes)
        pack(dtype, weights, copies[0], team)
        copies[1:] = copies[0]
        self._operands = make_operands(dtype, rows)
        self._out = np.zeros((most_rows, operand_bytes("float32", n) // 4), np.float32)
        self._num_products = 0
        self._context = np.array([
            self._operands.ctypes.data, self._operands.strides[0], 0, copies.ctypes.data, self.matrix_bytes,
            len(copies), 0, 0, num_panels, panel_bytes(dtype, k), steps_of(dtype, k), self._out.ctypes.data,
            self._out.strides[0],
        ], np.int64)  # fmt: skip
        self._check(rows, weights)

    def _check(self, rows: Floats, weights: Floats) -> None:
        """Raise RuntimeError if what is computed is another product."""
        self.run(len(rows), 1)
        expected = rows @ weights
        error = self._out[:, : weights.shape[1]] - expected
        of_deviation = float(np.sqrt((error**2).mean()) / expected.std())
        if not of_deviation < 0.2:  # int4 rounds that much
            raise RuntimeError(f"{self.dtype} {self.shape}: the result is off by {of_deviation} of its deviation")

    def run(self, num_rows: int, num_products: int) -> float:
        """Seconds of a product."""
        for name, value in (("num_rows", num_rows), ("first_copy", self._num_products), ("num_products", num_products)):
            self._context[_FIELDS.index(name)] = value
        self._num_products += num_products
        start = time.perf_counter()
        self._team.run(self._job.address, self._context.ctypes.data)
        return (time.perf_counter() - start) / num_products

    def operations(self, num_rows: int) -> int:
        """Of a product; a multiply-add counts as two."""
        k, n = SHAPES[self.shape]
        return 2 * num_rows * k * n


def measure(product: Product, rows: list[int], machine: Ceilings, repetitions: int) -> list[Measured]:
    """All numbers of rows of a shape; they take turns."""
    results = [Measured(product.dtype, product.shape, num_rows, [], [], [], [], []) for num_rows in rows]
    for repetition in range(repetitions + 1):
        read, peak = machine.read_bytes_s(), machine.operations_s(instruction_for(product.dtype))
        for result in results:
            operations = product.operations(result.num_rows)
            bounds = {"memory": product.matrix_bytes / read, "arithmetic": operations / peak}
            bound = max(bounds, key=lambda name: bounds[name])
            seconds = product.run(result.num_rows, max(1, round(LEAST_S / bounds[bound])))
            if repetition:  # the first one warms up
                result.seconds.append(_rounded(seconds))
                result.gflop_s.append(_rounded(operations / seconds / 1e9))
                result.gb_s.append(_rounded(product.matrix_bytes / seconds / 1e9))
                result.of_bound.append(_rounded(bounds[bound] / seconds))
                result.bounds.append(bound)
    return results


def _rounded(value: float) -> float:
    """To as many digits as a measurement has."""
    return float(f"{value:.4g}")


def print_results(results: list[Measured]) -> None:
    k, n = SHAPES[results[0].shape]
    rows = [[f"{results[0].dtype}, {results[0].shape} {k} x {n}", "us", "GFLOP/s", "GB/s", "of bound", "which is"]]
    for result in results:
        bound = max(result.bounds, key=result.bounds.count)
        values = Spread.of([1e6 * s for s in result.seconds]).text(0), Spread.of(result.gflop_s).text(0)
        rates = Spread.of(result.gb_s).text(1), Spread.of(result.of_bound).text(2)
        rows.append([f"  {result.num_rows} rows", *values, *rates, bound])
    print_table(rows)
    print()


def run(args: argparse.Namespace) -> list[Measured]:
    results = []
    prepare([*team_module.compile_steps(), *(pack_module.pack(dtype).step() for dtype in args.dtype)])
    team = Team(args.threads)
    try:
        with ceilings(args.threads) as machine:
            for dtype in args.dtype:
                job = make_job(dtype)
                for shape in args.shape:
                    rows = [num for num in args.rows if shape != "head" or num <= MOST_HEAD_ROWS]
                    if not rows:
                        continue
                    k, n = SHAPES[shape]
                    least = 2 * -(-n // PANEL) * panel_bytes(dtype, k)
                    memory = _aligned(max(args.memory or buffer_bytes(), least))
                    product = Product(dtype, shape, max(rows), memory, job, team)
                    results += measure(product, rows, machine, args.repetitions)
                    print_results(results[-len(rows) :])
    finally:
        team.close()
    return results


def _aligned(num_bytes: int) -> Bytes:
    """Bytes whose address is a multiple of 64: panels begin with a cache line."""
    buffer = np.empty(num_bytes + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    return buffer[start : start + num_bytes]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--dtype", type=_listed(DTYPES), default=list(DTYPES), help="default: all of %(default)s")
    parser.add_argument("--shape", type=_listed(SHAPES), default=list(SHAPES), help="default: all of %(default)s")
    parser.add_argument("--rows", type=_numbers, default=list(ROWS), help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=default_threads(), help="default: %(default)s")
    parser.add_argument("--memory", type=int, help="bytes of copies (default: four times the caches)")
    parser.add_argument("--repetitions", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    args = parser.parse_args()
    for name in ("threads", "repetitions"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} is {getattr(args, name)}; it must be at least 1")
    machine = facts()
    print_facts(machine)
    print(f"{args.threads} threads; median (least-greatest) of {args.repetitions}; int8 and int4: integer operations\n")
    results = run(args)
    settings = {"threads": args.threads, "repetitions": args.repetitions}
    write_json(args.json, {"machine": machine, "settings": settings, "kernels": [vars(result) for result in results]})
    return 0


def _listed(known: Any) -> Any:
    """An argument's type: names of `known` with commas between."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"no {name!r}; there are {', '.join(known)}")
        return names

    return parse


def _numbers(text: str) -> list[int]:
    """An argument's type: numbers of rows with commas between."""
    words = text.split(",")
    for word in words:
        if not (word.isascii() and word.isdigit() and int(word) > 0):
            raise argparse.ArgumentTypeError(f"{word!r} is no number of rows; it must be an integer from 1")
    return [int(word) for word in words]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except NvgError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
