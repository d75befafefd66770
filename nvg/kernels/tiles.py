"""Register tiles of a matmul as vector code: some rows of A times a panel of 32 columns of B, accumulated into C.

A tile's kind says how A and B are stored (B always as a panel; `nvg.kernels.formats` has the layouts):

    float32          A float32, B float32 [k][32]
    int8_rows        A float32, B int8 [k][32], without scales: keys and values, whose scales are applied outside
    bfloat16         A bfloat16, B bfloat16 [k / 2][32][2]
    int8, int4       A int8 in groups of 32 with a scale each, B groups of 32 x 32 codes with a scale for each column

A paged tile finds B's rows in blocks of a pool: values of keys, whose tables say where each block is. A tile of rows
apart has a B for each row: queries of several heads, and each head's keys. Keys lie in panels of 16 columns instead of
32, [steps][16] behind each other, so that as few as possible are read of a block that is not full.

Each element of C is one chain of fused multiply-adds in the order of k, begun at 0, at a bias or at what C holds; the
chain is the same in every tile of a kind, so a row's bits do not depend on the rows beside it, nor on the pieces that k
is cut into. In a group the products of codes are summed in integers, which is exact, and the group is one multiply-add.

Nothing here asks which machine it runs on: `features` says what code is written for, so a test can cross-compile it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from nvg.kernels.dots import integer_dot, pair_dot
from nvg.kernels.emitter import F32, I32, I64, Emitter
from nvg.kernels.formats import GROUP, GROUP_BYTES, INT4_LEVELS, KEYS_PANEL, OPERAND_GROUP_BYTES, PANEL
from nvg.runtime import cpu
from nvg.runtime.cpu import Features

FROM_C, ADD_BIAS = 1, 2  # what C's chains begin with: bits of `mode`
ARGUMENTS = ("a", "lda", "b", "column", "c", "ldc", "steps", "mode", "bias", "prefetch", "lines")
PAGED_ARGUMENTS = ("a", "lda", "b", "column", "c", "ldc", "steps", "table", "block_bytes", "block_steps")
APART_ARGUMENTS = ("a", "lda", "b", "ldb", "c", "ldc", "steps", "mode", "prefetch", "lines")
STEP_BYTES = {"float32": 4 * PANEL, "bfloat16": 4 * PANEL, "int8_rows": PANEL, **GROUP_BYTES}
"""Of a panel, for one step."""


@dataclass(frozen=True)
class Tile:
    """A tile to be written: its kind and its size."""

    kind: str
    num_rows: int
    num_columns: int
    prefetches: bool = False
    is_paged: bool = False
    is_apart: bool = False
    is_keys: bool = False

    @property
    def name(self) -> str:
        """Unique among tiles."""
        chosen = self.prefetches, self.is_paged, self.is_apart, self.is_keys
        options = "".join(str(int(option)) for option in chosen)
        return f"nvg_tile_{self.kind}_{self.num_rows}x{self.num_columns}_{options}"

    @property
    def arguments(self) -> tuple[str, ...]:
        """Names of what it is called with, all int64."""
        return PAGED_ARGUMENTS if self.is_paged else APART_ARGUMENTS if self.is_apart else ARGUMENTS


def emit_tile(builder: ir.IRBuilder, features: Features, tile: Tile, **args: Any) -> None:
    """Write the tile's code at the builder's position; `args` are int64 values named as in `tile.arguments`.

    Addresses are in bytes. a: first row of A, rows lda bytes apart, at the first k. b: the panel, at the first k.
    column: first of the panel's columns. c: C's row and column where the tile begins, rows ldc bytes apart. steps: > 0.
    bias: float32, at the tile's first column. prefetch: `lines` cache lines from here on are fetched in each step, and
    the address moves on by as many.

    A paged tile begins at 0. table: numbers (int32) of the blocks that hold block_steps steps each, block_bytes bytes
    apart; b: where the panel's rows begin in block 0.

    In a tile of rows apart the panel of row r begins at b + r * ldb, and the mode has no ADD_BIAS. A tile of keys makes
    all steps of its panels at once: that tells where the second panel begins.
    """
    width = min(features.vector_floats, tile.num_columns)
    emit = Emitter(builder, width, features)
    num_vectors = tile.num_columns // width
    core = _CORES[tile.kind](emit, tile, num_vectors, args["steps"])
    c_tiles = [
        emit.address(args["c"], builder.add(emit.times(args["ldc"], r), ir.Constant(I64, v * width * 4)))
        for r in range(tile.num_rows)
        for v in range(num_vectors)
    ]

    if tile.is_apart:
        each = [
            _Rows(emit, builder.add(args["a"], emit.times(args["lda"], r)), args["lda"], 1)
            for r in range(tile.num_rows)
        ]
        panels = [emit.times(args["ldb"], r) for r in range(tile.num_rows)]

        def step(b_address: Any, index: Any, accumulators: list[Any]) -> list[Any]:
            updated: list[Any] = []
            for r, row in enumerate(each):
                of_row = accumulators[r * num_vectors : (r + 1) * num_vectors]
                updated += core(row, builder.add(b_address, panels[r]), ir.Constant(I64, 0), index, of_row)
            return updated

    else:
        rows = _Rows(emit, args["a"], args["lda"], tile.num_rows)

        def step(b_address: Any, index: Any, accumulators: list[Any]) -> list[Any]:
            return core(rows, b_address, args["column"], index, accumulators)

    if tile.is_paged:
        step_bytes = ir.Constant(I64, STEP_BYTES[tile.kind])
        updated = _paged_steps(emit, args, step, step_bytes, [emit.constant(0)] * len(c_tiles))
    else:
        fetch = (args["prefetch"], args["lines"]) if tile.prefetches else None
        updated = _steps(emit, args["b"], args["steps"], step, fetch, _initial(emit, args, c_tiles, num_vectors))
    for value, pointer in zip(updated, c_tiles, strict=True):
        emit.store(value, pointer)


Step = Callable[[Any, Any, list[Any]], list[Any]]


def _steps(emit: Emitter, b: Any, steps: Any, step: Step, fetch: Any, initial: list[Any]) -> list[Any]:
    """All steps, one or more."""
    builder, before = emit.builder, emit.builder.block
    loop, done = (builder.function.append_basic_block(name) for name in ("step", "done"))
    builder.branch(loop)
    builder.position_at_end(loop)
    index = builder.phi(I64)
    index.add_incoming(ir.Constant(I64, 0), before)
    accumulators = [builder.phi(emit.vector) for _ in initial]
    for accumulator, value in zip(accumulators, initial, strict=True):
        accumulator.add_incoming(value, before)
    if fetch:
        _prefetch(emit, fetch[0], index, fetch[1])
    updated = step(b, index, accumulators)
    following = builder.add(index, ir.Constant(I64, 1))
    index.add_incoming(following, builder.block)
    for accumulator, value in zip(accumulators, updated, strict=True):
        accumulator.add_incoming(value, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, steps), loop, done)
    builder.position_at_end(done)
    return updated


def _paged_steps(emit: Emitter, args: dict[str, Any], step: Step, step_bytes: Any, initial: list[Any]) -> list[Any]:
    """All steps, block by block."""
    b, steps, block_steps = emit.builder, args["steps"], args["block_steps"]
    num_blocks = b.sdiv(b.sub(b.add(steps, block_steps), ir.Constant(I64, 1)), block_steps)

    def block(number: Any, accumulators: list[Any]) -> list[Any]:
        first = b.mul(number, block_steps)
        left = b.sub(steps, first)
        count = b.select(b.icmp_signed("<", left, block_steps), left, block_steps)
        which = b.sext(b.load(emit.address(args["table"], emit.times(number, 4)), typ=I32, align=4), I64)
        # A's index goes on from block to block, and B's address begins as far before the block
        start = b.sub(b.add(args["b"], b.mul(which, args["block_bytes"])), b.mul(first, step_bytes))
        return _loop(emit, count, accumulators, lambda i, values: step(start, b.add(first, i), values))

    return _loop(emit, num_blocks, initial, block)


def _loop(emit: Emitter, count: Any, initial: list[Any], body: Callable[[Any, list[Any]], list[Any]]) -> list[Any]:
    """`Emitter.loop` with its types."""
    values: list[Any] = emit.loop(count, initial, body)
    return values


def _initial(emit: Emitter, args: dict[str, Any], c_tiles: list[Any], num_vectors: int) -> list[Any]:
    """What the accumulators begin with."""
    b = emit.builder
    values: list[Any] = [emit.constant(0)] * len(c_tiles)
    for bit in (FROM_C, ADD_BIAS) if "bias" in args else (FROM_C,):
        before = b.block
        then, after = (b.function.append_basic_block(name) for name in ("begin_with", "begun"))
        is_set = b.icmp_signed("!=", b.and_(args["mode"], ir.Constant(I64, bit)), ir.Constant(I64, 0))
        b.cbranch(is_set, then, after)
        b.position_at_end(then)
        if bit == FROM_C:
            changed = [emit.load(pointer) for pointer in c_tiles]
        else:
            places = [emit.address(args["bias"], ir.Constant(I64, v * emit.width * 4)) for v in range(num_vectors)]
            columns = [emit.load(place) for place in places]
            changed = [emit.add(value, columns[i % num_vectors]) for i, value in enumerate(values)]
        b.branch(after)
        b.position_at_end(after)
        merged = []
        for old, new in zip(values, changed, strict=True):
            phi = b.phi(emit.vector)
            phi.add_incoming(old, before)
            phi.add_incoming(new, then)
            merged.append(phi)
        values = merged
    return values


def _prefetch(emit: Emitter, base: Any, step: Any, lines: Any) -> None:
    """Ask for `lines` cache lines from base + step * lines * 64 on."""
    start = emit.builder.add(base, emit.builder.mul(step, emit.times(lines, 64)))

    def fetch(line: Any, values: list[Any]) -> list[Any]:
        emit.prefetch(emit.builder.add(start, emit.times(line, 64)))
        return values

    emit.loop(lines, [], fetch)


class _Rows:
    """Pointers to places in A's rows. x86 adds a register times 1, 2 or 4 to another, so a pointer for every third row
    is enough: a pointer for each of many rows would be spilled."""

    def __init__(self, emit: Emitter, a: Any, lda: Any, num_rows: int) -> None:
        self._emit = emit
        self._lda = lda
        self._bases = [emit.address(a, emit.times(lda, r)) for r in range(0, num_rows, 3)]
        self.num_rows = num_rows

    def at(self, offset: Any) -> list[Any]:
        """A pointer into each row, `offset` bytes (int64) from its first."""
        emit = self._emit
        pointers: list[Any] = []
        for base in self._bases:
            place = emit.move(base, offset)
            for r in range(min(3, self.num_rows - len(pointers))):
                pointers.append(emit.move(place, emit.times(self._lda, r)) if r else place)
        return pointers


def _column_places(emit: Emitter, tile: Tile, num_vectors: int, steps: Any) -> Callable[..., list[Any]]:
    """(address of the panel, first column, index of the step) -> pointers to what each vector of columns is loaded
    from."""
    b, item_bytes = emit.builder, STEP_BYTES[tile.kind] // PANEL

    def places(panel: Any, column: Any, index: Any) -> list[Any]:
        if not tile.is_keys:
            row = b.add(panel, b.add(emit.times(index, PANEL * item_bytes), emit.times(column, item_bytes)))
            return [emit.address(row, ir.Constant(I64, v * emit.width * item_bytes)) for v in range(num_vectors)]
        row = b.add(panel, emit.times(index, KEYS_PANEL * item_bytes))
        pointers = []
        for v in range(num_vectors):
            at = b.add(column, ir.Constant(I64, v * emit.width))
            before = b.mul(b.sdiv(at, ir.Constant(I64, KEYS_PANEL)), emit.times(steps, KEYS_PANEL * item_bytes))
            inside = emit.times(b.and_(at, ir.Constant(I64, KEYS_PANEL - 1)), item_bytes)
            pointers.append(emit.address(row, b.add(before, inside)))
        return pointers

    return places


Core = Callable[..., list[Any]]


def _multiply_add_core(emit: Emitter, tile: Tile, num_vectors: int, steps: Any) -> Core:
    """A float32 times B rows that are widened to float32 as they are loaded; a step is one k."""
    load = {"float32": emit.load, "int8_rows": emit.load_int8}[tile.kind]
    places = _column_places(emit, tile, num_vectors, steps)

    def step(rows: _Rows, b_address: Any, column: Any, index: Any, accumulators: list[Any]) -> list[Any]:
        b = emit.builder
        columns = [load(place) for place in places(b_address, column, index)]
        updated = []
        for r, place in enumerate(rows.at(emit.times(index, 4))):
            element = emit.splat(b.load(place, typ=F32, align=4))
            for v in range(num_vectors):
                updated.append(emit.fma(element, columns[v], accumulators[r * num_vectors + v]))
        return updated

    return step


def _pair_core(emit: Emitter, tile: Tile, num_vectors: int, steps: Any) -> Core:
    """bfloat16 times bfloat16, two k at a time; a step is such a pair."""
    dot = pair_dot(emit)
    places = _column_places(emit, tile, num_vectors, steps)

    def step(rows: _Rows, b_address: Any, column: Any, index: Any, accumulators: list[Any]) -> list[Any]:
        b = emit.builder
        columns = [dot.prepare(emit.load_words(place)) for place in places(b_address, column, index)]
        updated = []
        for r, place in enumerate(rows.at(emit.times(index, 4))):
            element = dot.prepare(emit.splat(b.load(place, typ=I32, align=2)))
            for v in range(num_vectors):
                updated.append(dot.accumulate(accumulators[r * num_vectors + v], element, columns[v]))
        return updated

    return step


def _group_core(emit: Emitter, tile: Tile, num_vectors: int, steps: Any) -> Core:
    """int8 activations times int8 or int4 codes; a step is a group of 32 k."""
    dot = integer_dot(emit)
    is_int4 = tile.kind == "int4"
    group_bytes = GROUP_BYTES[tile.kind]
    quads = GROUP // 4
    decode = _int4_decoder(emit) if is_int4 else None

    def step(rows: _Rows, b_address: Any, column: Any, index: Any, accumulators: list[Any]) -> list[Any]:
        b = emit.builder
        group = b.add(b_address, emit.times(index, group_bytes))
        codes = b.add(group, emit.times(column, 4))
        scales = b.add(group, b.add(emit.times(column, 2), ir.Constant(I64, group_bytes - 2 * PANEL)))
        places = rows.at(emit.times(index, OPERAND_GROUP_BYTES))
        sums = []
        for place in places:
            start = dot.start(emit, b.load(emit.move(place, GROUP + 4), typ=I32, align=4))
            sums += [start] * num_vectors
        upper: list[Any] = []
        for quad in range(quads):
            if decode is None:
                words = _words(emit, codes, quad, num_vectors)
            elif quad % 2 == 0:
                both = [decode(word) for word in _words(emit, codes, quad // 2, num_vectors)]
                words, upper = [low for low, _ in both], [high for _, high in both]
            else:
                words = upper
            columns = [dot.weights(word) for word in words]
            for r, place in enumerate(places):
                element = dot.activations(emit.splat(b.load(emit.move(place, quad * 4), typ=I32, align=4)))
                for v in range(num_vectors):
                    i = r * num_vectors + v
                    sums[i] = dot.accumulate(sums[i], columns[v], element)
        column_scales = [
            emit.load_bfloat16(emit.address(scales, ir.Constant(I64, v * emit.width * 2))) for v in range(num_vectors)
        ]
        updated = []
        for r, place in enumerate(places):
            row_scale = emit.splat(b.load(emit.move(place, GROUP), typ=F32, align=4))
            for v in range(num_vectors):
                i = r * num_vectors + v
                scale = emit.mul(column_scales[v], row_scale)
                updated.append(emit.fma(b.sitofp(sums[i], emit.vector), scale, accumulators[i]))
        return updated

    return step


def _words(emit: Emitter, codes: Any, quad: int, num_vectors: int) -> list[Any]:
    """Four codes of each column, as int32 lanes."""
    return [
        emit.load_words(emit.address(codes, ir.Constant(I64, (quad * PANEL + v * emit.width) * 4)))
        for v in range(num_vectors)
    ]


def _int4_decoder(emit: Emitter) -> Callable[[Any], tuple[Any, Any]]:
    """From words of eight int4 codes a column to (four levels of the even quad, four of the odd), each plus 128."""
    b = emit.builder
    nibbles = emit.iconstant(0x0F0F0F0F)
    levels = [level + 128 for level in INT4_LEVELS]

    def decode(words: Any) -> tuple[Any, Any]:
        low = b.and_(words, nibbles)
        high = b.and_(b.lshr(words, emit.iconstant(4)), nibbles)
        return emit.look_up(low, levels), emit.look_up(high, levels)

    return decode


_CORES: dict[str, Callable[[Emitter, Tile, int, Any], Core]] = {
    "float32": _multiply_add_core,
    "int8_rows": _multiply_add_core,
    "bfloat16": _pair_core,
    "int8": _group_core,
    "int4": _group_core,
}


def tile_function(module: ir.Module, features: Features, tile: Tile) -> ir.Function:
    """The tile as a function of its own in `module`, written once: (its arguments, all int64) -> void."""
    if tile.name in module.globals:
        found: ir.Function = module.globals[tile.name]
        return found
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * len(tile.arguments)), tile.name)
    function.linkage = "linkonce_odr"
    function.attributes.add("noinline")
    function.attributes.add("nounwind")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    emit_tile(builder, features, tile, **dict(zip(tile.arguments, function.args, strict=True)))
    builder.ret_void()
    return function


def _code_of(tile: Tile) -> Any:
    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        builder.call(tile_function(builder.module, cpu.features(), tile), args)
        return context.get_dummy_value()

    return types.void(*[types.int64] * len(tile.arguments)), codegen


def make_tile(tile: Tile) -> Any:
    """Intrinsic that calls the tile with `tile.arguments`, all int64."""

    @intrinsic
    def call(typingctx, a, lda, b, column, c, ldc, steps, mode, bias, prefetch, lines):
        return _code_of(tile)

    @intrinsic
    def call_paged(typingctx, a, lda, b, column, c, ldc, steps, table, block_bytes, block_steps):
        return _code_of(tile)

    @intrinsic
    def call_apart(typingctx, a, lda, b, ldb, c, ldc, steps, mode, prefetch, lines):
        return _code_of(tile)

    return call_paged if tile.is_paged else call_apart if tile.is_apart else call
