"""Vector code for choosing among candidates, as Numba intrinsics on top of `nvg.kernels.emitter`.

All of it works on whole chunks (of `CHUNK` floats where only comparisons are made, of `LANES` where weights are added)
whatever the machine's registers hold: callers see to what is left at a row's end. Sums are float64 and go to the
`LANES` elements of an array, index i to element i % `LANES`, so they depend on nothing but the row. Offsets count
elements.
"""

from __future__ import annotations

import math

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from nvg.kernels.emitter import I32, I64, Emitter
from nvg.kernels.simd import array_data
from nvg.runtime import cpu

LANES = 16
CHUNK = 32
NUM_BOUNDS = 8
_F64 = ir.DoubleType()
_WIDE = ir.VectorType(_F64, LANES)


def _for_rows(row, signature, codegen):
    """What an intrinsic gives Numba: nothing, which is a compile error, where `row` is no contiguous float32 row."""
    is_row = isinstance(row, types.Array) and (row.dtype, row.ndim, row.layout) == (types.float32, 1, "C")
    return (signature, codegen) if is_row else None


def _chunks(builder, num_chunks, size):
    """A loop whose index goes 0, size, 2 size, ... for `num_chunks` turns."""
    step = ir.Constant(I64, size)
    return cgutils.for_range_slice(
        builder, ir.Constant(I64, 0), builder.mul(num_chunks, step), step, intp=I64, inc=True
    )


def _total(builder, vector):
    """The sum of the lanes of an integer vector, as int64."""
    width = vector.type.count
    while width > 1:
        width //= 2
        undefined = ir.Constant(vector.type, ir.Undefined)
        low, high = (
            builder.shuffle_vector(vector, undefined, ir.Constant(ir.VectorType(I32, width), list(lanes)))
            for lanes in (range(width), range(width, 2 * width))
        )
        vector = builder.add(low, high)
    return builder.sext(builder.extract_element(vector, ir.Constant(I32, 0)), I64)


def _added_where(emit, accumulator, mask):
    """`accumulator` (int32 lanes) plus 1 where `mask` holds."""
    return emit.builder.sub(accumulator, emit.builder.sext(mask, emit.ivector))


def _tally(starts, step, finish, result):
    """Intrinsic (row, offset, num_chunks, bound) -> result, for float32 `row`: `step(emitter, accumulators, values,
    bound)` over chunks."""

    @intrinsic
    def tally(typingctx, row, offset, num_chunks, bound):
        def codegen(context, builder, sig, args):
            emit = Emitter(builder, CHUNK)
            data = array_data(context, builder, sig.args[0], args[0], args[1])
            slots = [cgutils.alloca_once_value(builder, start(emit)) for start in starts]
            bound = emit.splat(args[3])
            with _chunks(builder, args[2], CHUNK) as (index, _):
                values = emit.load(emit.offset(data, index))
                updated = step(emit, [builder.load(slot) for slot in slots], values, bound)
                for slot, accumulator in zip(slots, updated, strict=True):
                    builder.store(accumulator, slot)
            return finish(emit, *(builder.load(slot) for slot in slots))

        return _for_rows(row, result(row, types.int64, types.int64, types.float32), codegen)

    return tally


def _candidates(emit, accumulators, values, bound):
    b = emit.builder
    infinity = emit.constant(math.inf)
    return [
        _added_where(emit, accumulators[0], b.fcmp_ordered(">", values, b.fneg(infinity))),
        _added_where(emit, accumulators[1], b.fcmp_unordered(">=", values, infinity)),
    ]


def _candidates_or_fault(emit, left, faults):
    b = emit.builder
    none = ir.Constant(I64, 0)
    return b.select(b.icmp_signed("==", _total(b, faults), none), _total(b, left), ir.Constant(I64, -1))


count_candidates = _tally([lambda emit: emit.iconstant(0)] * 2, _candidates, _candidates_or_fault, types.int64)
"""How many are above -inf; -1 if any is NaN or +inf. `bound` is not used."""

count_reaching = _tally(
    [lambda emit: emit.iconstant(0)],
    lambda emit, acc, x, bound: [_added_where(emit, acc[0], emit.builder.fcmp_ordered(">=", x, bound))],
    lambda emit, count: _total(emit.builder, count),
    types.int64,
)
"""How many are at least `bound`."""

largest = _tally(
    [lambda emit: emit.constant(-math.inf)],
    lambda emit, acc, x, _: [emit.max(x, acc[0])],
    Emitter.largest,
    types.float32,
)
"""The largest; -inf for none. `bound` is not used."""


@intrinsic
def bits_between(typingctx, row, offset, low, high):
    """Which values of the chunk at `offset` have low <= value < high: bit i for element i."""

    def codegen(context, builder, sig, args):
        emit = Emitter(builder, CHUNK)
        values = emit.load(array_data(context, builder, sig.args[0], args[0], args[1]))
        inside = builder.and_(
            builder.fcmp_ordered(">=", values, emit.splat(args[2])),
            builder.fcmp_ordered("<", values, emit.splat(args[3])),
        )
        return builder.bitcast(inside, ir.IntType(CHUNK))

    return _for_rows(row, types.uint32(row, types.int64, types.float32, types.float32), codegen)


@intrinsic
def bits_left(typingctx, row, offset):
    """Of the chunk at `offset`: bit i for element i above -inf, and bit 32 + i if it is NaN or +inf."""

    def codegen(context, builder, sig, args):
        emit = Emitter(builder, CHUNK)
        values = emit.load(array_data(context, builder, sig.args[0], args[0], args[1]))
        infinity = emit.constant(math.inf)
        left = builder.fcmp_ordered(">", values, builder.fneg(infinity))
        faults = builder.fcmp_unordered(">=", values, infinity)
        left, faults = (builder.zext(builder.bitcast(mask, I32), I64) for mask in (left, faults))
        return builder.or_(left, builder.shl(faults, ir.Constant(I64, 32)))

    return _for_rows(row, types.uint64(row, types.int64), codegen)


@intrinsic
def count_bits(typingctx, bits):
    """How many bits are set."""

    def codegen(context, builder, sig, args):
        return builder.zext(builder.ctpop(args[0]), I64)

    return types.int64(types.uint32), codegen


@intrinsic
def lowest_bit(typingctx, bits):
    """Index of the lowest bit that is set; there must be one."""

    def codegen(context, builder, sig, args):
        return builder.zext(builder.cttz(args[0], ir.Constant(ir.IntType(1), 1)), I64)

    return types.int64(types.uint32), codegen


@intrinsic
def compress(typingctx, row, ids, offset, low, out, out_ids, size):
    """Write those of `LANES` values from `offset` on that are at least `low`, and their ids, to `out` and `out_ids`
    from `size` on, which have room for `LANES` more; returns where they end."""

    def codegen(context, builder, sig, args):
        emit = Emitter(builder, LANES)

        def at(number, offset):
            return array_data(context, builder, sig.args[number], args[number], offset)

        offset, size = args[2], args[6]
        values, numbers = emit.load(at(0, offset)), emit.load_words(at(1, offset))
        mask = builder.fcmp_ordered(">=", values, emit.splat(args[3]))
        for number, lanes, kind in ((4, values, "f32"), (5, numbers, "i32")):
            function_type = ir.FunctionType(lanes.type, [lanes.type, mask.type, lanes.type])
            name = f"llvm.experimental.vector.compress.v{LANES}{kind}"
            function = cgutils.get_or_insert_function(builder.module, function_type, name)
            packed = builder.call(function, (lanes, mask, ir.Constant(lanes.type, ir.Undefined)))
            emit.store(packed, at(number, size))
        count = builder.ctpop(builder.bitcast(mask, ir.IntType(LANES)))
        return builder.add(size, builder.zext(count, I64))

    signature = types.int64(row, ids, types.int64, types.float32, out, out_ids, types.int64)
    return _for_rows(row, signature, codegen)


def _load_wide(builder, pointer):
    return builder.load(builder.bitcast(pointer, _WIDE.as_pointer()), align=8)


def _store_wide(builder, value, pointer):
    builder.store(value, builder.bitcast(pointer, _WIDE.as_pointer()), align=8)


class _Sums:
    """The running sums of a loop, begun at what the array `sums` holds and written back to it at the end."""

    def __init__(self, context, builder, array_type, array):
        self._builder = builder
        self._pointer = array_data(context, builder, array_type, array, ir.Constant(I64, 0))
        self._slot = cgutils.alloca_once_value(builder, _load_wide(builder, self._pointer))

    def add(self, weights):
        self.add_wide(self._builder.fpext(weights, _WIDE))

    def add_wide(self, weights):
        b = self._builder
        b.store(b.fadd(b.load(self._slot), weights), self._slot)

    def write(self):
        _store_wide(self._builder, self._builder.load(self._slot), self._pointer)


@intrinsic
def weigh(typingctx, row, num_chunks, top, sums):
    """row = e^(row - top), float32, in place, for `num_chunks` times `LANES` elements; they are added to `sums`."""

    def codegen(context, builder, sig, args):
        emit = Emitter(builder, LANES)
        data = array_data(context, builder, sig.args[0], args[0], ir.Constant(I64, 0))
        top = emit.splat(args[2])
        totals = _Sums(context, builder, sig.args[3], args[3])
        with _chunks(builder, args[1], LANES) as (index, _):
            pointer = emit.offset(data, index)
            weights = emit.exp(emit.sub(emit.load(pointer), top))
            emit.store(weights, pointer)
            totals.add(weights)
        totals.write()
        return context.get_dummy_value()

    return _for_rows(row, types.void(row, types.int64, types.float32, sums), codegen)


@intrinsic
def add_reaching(typingctx, row, weights, num_chunks, bound, sums):
    """Add the float32 weights of the values that are at least `bound` to `sums`: `num_chunks` times `LANES` elements
    from the beginning."""

    def codegen(context, builder, sig, args):
        emit = Emitter(builder, LANES)
        zero = ir.Constant(I64, 0)
        data = array_data(context, builder, sig.args[0], args[0], zero)
        weight_data = array_data(context, builder, sig.args[1], args[1], zero)
        bound = emit.splat(args[3])
        totals = _Sums(context, builder, sig.args[4], args[4])
        with _chunks(builder, args[2], LANES) as (index, _):
            values, weights = emit.load(emit.offset(data, index)), emit.load(emit.offset(weight_data, index))
            totals.add(builder.select(builder.fcmp_ordered(">=", values, bound), weights, emit.constant(0)))
        totals.write()
        return context.get_dummy_value()

    return _for_rows(row, types.void(row, weights, types.int64, types.float32, sums), codegen)


@intrinsic
def masses_reaching(typingctx, row, weights, num_chunks, bounds, masses):
    """Write to the float32 array `masses`, `LANES` for each of `NUM_BOUNDS` bounds, the sums of the weights of the
    values that are at least that bound: of `num_chunks` times `LANES` elements from the beginning, one sum a lane."""

    def codegen(context, builder, sig, args):
        emit = Emitter(builder, LANES)
        zero = ir.Constant(I64, 0)
        data, weight_data, bound_data = (array_data(context, builder, sig.args[i], args[i], zero) for i in (0, 1, 3))
        indices = [ir.Constant(I64, i) for i in range(NUM_BOUNDS)]
        floats = ir.FloatType()
        bounds = [emit.splat(builder.load(builder.gep(bound_data, [i], source_etype=floats))) for i in indices]
        totals = [cgutils.alloca_once_value(builder, emit.constant(0)) for _ in indices]
        with _chunks(builder, args[2], LANES) as (index, _):
            values, weights = emit.load(emit.offset(data, index)), emit.load(emit.offset(weight_data, index))
            for bound, total in zip(bounds, totals, strict=True):
                reaches = builder.fcmp_ordered(">=", values, bound)
                before = builder.load(total)
                builder.store(builder.select(reaches, builder.fadd(before, weights), before), total)
        for i, total in enumerate(totals):
            offset = ir.Constant(I64, i * LANES)
            emit.store(builder.load(total), array_data(context, builder, sig.args[4], args[4], offset))
        return context.get_dummy_value()

    return _for_rows(row, types.void(row, weights, types.int64, bounds, masses), codegen)


@intrinsic
def add_products(typingctx, row, weights, num_chunks, origin, sums):
    """Add weight * (value - origin), in float64, of the values above -inf to `sums`: `num_chunks` times `LANES`
    elements from the beginning."""

    def codegen(context, builder, sig, args):
        emit = Emitter(builder, LANES)
        zero = ir.Constant(I64, 0)
        data = array_data(context, builder, sig.args[0], args[0], zero)
        weight_data = array_data(context, builder, sig.args[1], args[1], zero)
        origin = builder.fpext(emit.splat(args[3]), _WIDE)
        totals = _Sums(context, builder, sig.args[4], args[4])
        with _chunks(builder, args[2], LANES) as (index, _):
            values, weights = emit.load(emit.offset(data, index)), emit.load(emit.offset(weight_data, index))
            products = builder.fmul(builder.fpext(weights, _WIDE), builder.fsub(builder.fpext(values, _WIDE), origin))
            is_left = builder.fcmp_ordered(">", values, emit.constant(-math.inf))
            totals.add_wide(builder.select(is_left, products, _wide(0.0)))
        totals.write()
        return context.get_dummy_value()

    return _for_rows(row, types.void(row, weights, types.int64, types.float32, sums), codegen)


def _wide(value):
    return ir.Constant(_WIDE, [value] * LANES)


def _wide_fma(builder, a, b, c):
    """a * b + c, rounded once where the machine can, as `Emitter.fma`."""
    if not cpu.features().fma:
        return builder.fadd(builder.fmul(a, b), c)
    function_type = ir.FunctionType(_WIDE, [_WIDE] * 3)
    name = f"llvm.fma.v{LANES}f64"
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), (a, b, c))


def _wide_exp(builder, x):
    """e^x for x <= 0 in float64, to about 1 ulp; below -708 an exact 0.

    2^n * e^f with x = n ln2 + f (ln2 in two parts), e^f by its Taylor polynomial of degree 13 on |f| <= ln2 / 2, whose
    remainder is below 2^-57.
    """
    integers = ir.VectorType(I64, LANES)
    too_small = builder.fcmp_ordered("<", x, _wide(-708.0))
    clamped = builder.select(too_small, _wide(-708.0), x)
    magic = _wide(6755399441055744.0)  # 1.5 * 2^52: adding it rounds to an integer, left in the lowest bits
    shifted = _wide_fma(builder, clamped, _wide(1 / math.log(2)), magic)
    n = builder.fsub(shifted, magic)
    f = _wide_fma(builder, n, _wide(-0.693147180369123816490), clamped)  # 33 bits of ln2: n times it is exact
    f = _wide_fma(builder, n, _wide(-1.90821492927058770002e-10), f)
    power = _wide(1 / math.factorial(13))
    for degree in range(12, -1, -1):
        power = _wide_fma(builder, power, f, _wide(1 / math.factorial(degree)))
    exponent = builder.add(builder.bitcast(shifted, integers), ir.Constant(integers, [1023] * LANES))
    scale = builder.bitcast(builder.shl(exponent, ir.Constant(integers, [52] * LANES)), _WIDE)
    return builder.select(too_small, _wide(0.0), builder.fmul(power, scale))


@intrinsic
def total_weight(typingctx, row, offset, num_chunks, top):
    """The sum of e^(row - top), float64, of `num_chunks` times `LANES` elements."""

    def codegen(context, builder, sig, args):
        emit = Emitter(builder, LANES)
        data = array_data(context, builder, sig.args[0], args[0], args[1])
        top = builder.fpext(emit.splat(args[3]), _WIDE)
        slot = cgutils.alloca_once_value(builder, _wide(0.0))
        with _chunks(builder, args[2], LANES) as (index, _):
            values = builder.fpext(emit.load(emit.offset(data, index)), _WIDE)
            builder.store(builder.fadd(builder.load(slot), _wide_exp(builder, builder.fsub(values, top))), slot)
        lanes, total = builder.load(slot), ir.Constant(_F64, 0.0)
        for lane in range(LANES):
            total = builder.fadd(total, builder.extract_element(lanes, ir.Constant(I32, lane)))
        return total

    return _for_rows(row, types.float64(row, types.int64, types.int64, types.float32), codegen)


@intrinsic
def accumulate(typingctx, row, offset, top, total, sums):
    """Add e^(row - top) of `LANES` elements to `total`, one after the other, in float64; `sums` gets the total after
    each, and the last is returned."""

    def codegen(context, builder, sig, args):
        emit = Emitter(builder, LANES)
        values = builder.fpext(emit.load(array_data(context, builder, sig.args[0], args[0], args[1])), _WIDE)
        weights = _wide_exp(builder, builder.fsub(values, builder.fpext(emit.splat(args[2]), _WIDE)))
        out = array_data(context, builder, sig.args[4], args[4], ir.Constant(I64, 0))
        total = args[3]
        for lane in range(LANES):
            total = builder.fadd(total, builder.extract_element(weights, ir.Constant(I32, lane)))
            builder.store(total, builder.gep(out, [ir.Constant(I64, lane)], source_etype=_F64))
        return total

    float64, int64 = types.float64, types.int64
    return _for_rows(row, float64(row, int64, types.float32, float64, sums), codegen)
