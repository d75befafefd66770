"""Rows of float32 as Numba intrinsics: sums, softmax, activations; and pointers to what lies at an address.

All arithmetic on rows is written in 16 lanes whatever the machine's registers hold (LLVM splits or joins them), and
sums add lane by lane in order, so a row's result depends on nothing but the row. Rows are readable up to a multiple
of 16 floats; what is read there beyond n is masked out.
"""

from __future__ import annotations

import math
from functools import cache

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from nvg.kernels.emitter import F32, I64, LANES, Emitter
from nvg.runtime.compile_cache import njit


def array_data(context, builder, array_type, array, offset):
    """Pointer to element `offset` of a contiguous array."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [offset], source_etype=context.get_data_type(array_type.dtype))


def _chunks(builder, n):
    """A loop over 0, 16, 32, ... below n."""
    return cgutils.for_range_slice(builder, ir.Constant(I64, 0), n, ir.Constant(I64, LANES), intp=I64, inc=True)


def _whole_and_all(builder, whole, n):
    """How many chunks of 16 there are in `whole`, and how many in n, the last one as far as it goes."""
    four = ir.Constant(I64, 4)
    return builder.ashr(whole, four), builder.ashr(builder.add(n, ir.Constant(I64, LANES - 1)), four)


def _reduction(start, step, finish):
    """Intrinsic (row, offset, n, scalar) -> float32: `step(emitter, accumulator, values, scalar)` over chunks of 16."""

    @intrinsic
    def reduce(typingctx, row, offset, n, scalar):
        def codegen(context, builder, sig, args):
            emit = Emitter(builder)
            data = array_data(context, builder, sig.args[0], args[0], args[1])
            n, scalar = args[2], emit.splat(args[3])
            whole, chunks = _whole_and_all(builder, n, n)

            def whole_chunk(index, values):
                return [step(emit, values[0], emit.load(emit.offset(data, emit.times(index, LANES))), scalar)]

            def last_chunk(index, values):
                index = emit.times(builder.add(whole, index), LANES)
                new = step(emit, values[0], emit.load(emit.offset(data, index)), scalar)
                return [builder.select(emit.lanes_below(index, n), new, values[0])]

            total = emit.loop(whole, [emit.constant(start)], whole_chunk)
            return finish(emit, emit.loop(builder.sub(chunks, whole), total, last_chunk)[0])

        return types.float32(row, types.int64, types.int64, types.float32), codegen

    return reduce


def _squared_deviation(emit, accumulator, values, mean):
    deviation = emit.sub(values, mean)
    return emit.fma(deviation, deviation, accumulator)


row_sum = _reduction(0.0, lambda emit, acc, x, _: emit.add(acc, x), Emitter.in_order_sum)
row_squared_deviation = _reduction(0.0, _squared_deviation, Emitter.in_order_sum)
row_abs_max = _reduction(0.0, lambda emit, acc, x, _: emit.max(emit.abs(x), acc), Emitter.largest)


def _map(function):
    """Intrinsic (row, offset, n): row = function(emitter, row), in place; what lies beyond n up to the next multiple
    of 16 is overwritten too."""

    @intrinsic
    def apply(typingctx, row, offset, n):
        def codegen(context, builder, sig, args):
            emit = Emitter(builder)
            data = array_data(context, builder, sig.args[0], args[0], args[1])
            with _chunks(builder, args[2]) as (index, _):
                pointer = emit.offset(data, index)
                emit.store(function(emit, emit.load(pointer)), pointer)
            return context.get_dummy_value()

        return types.void(row, types.int64, types.int64), codegen

    return apply


SOFTMAX_ROWS = 4
"""Rows that are done side by side, if there are as many: their loops end together."""


def _softmax(is_narrow, num_rows):
    """Intrinsic (scores, row_bytes, visible, more, end, scale): of num_rows rows at address `scores`, row_bytes apart,
    the first visible + r * more > 0 float32 of row r become e^((score - largest) * scale), those from there up to
    `end`, rounded up to a multiple of 16, exact zeros; if `is_narrow`, as bfloat16 from the same address on. The row's
    last float32 becomes 1 / their sum, before they were narrowed. scale > 0, more >= 0, all other arguments int64."""

    @intrinsic
    def softmax(typingctx, scores, row_bytes, visible, more, end, scale):
        def codegen(context, builder, sig, args):
            emit = Emitter(builder)
            scores, row_bytes, visible, more, end, scale = args
            rows = range(num_rows)
            starts = [builder.add(scores, emit.times(row_bytes, r)) for r in rows]
            counts = [builder.add(visible, emit.times(more, r)) for r in rows]
            whole, chunks = _whole_and_all(builder, visible, end)
            num_last = builder.sub(chunks, whole)

            def at(row, index):
                return emit.address(starts[row], emit.times(index, 4 * LANES))

            def masked(row, index, value, otherwise):
                return builder.select(emit.lanes_below(emit.times(index, LANES), counts[row]), value, otherwise)

            def larger(index, values):
                return [emit.max(emit.load(at(r, index)), values[r]) for r in rows]

            def larger_of_last(index, values):
                index = builder.add(whole, index)
                nothing = emit.constant(-math.inf)
                return [emit.max(masked(r, index, emit.load(at(r, index)), nothing), values[r]) for r in rows]

            greatest = emit.loop(whole, [emit.constant(-math.inf)] * num_rows, larger)
            greatest = emit.loop(num_last, greatest, larger_of_last)
            greatest, scale = [emit.splat(emit.largest(values)) for values in greatest], emit.splat(scale)

            def power(row, index, is_last):
                value = emit.exp_below_0(emit.mul(emit.sub(emit.load(at(row, index)), greatest[row]), scale))
                if is_last:
                    value = masked(row, index, value, emit.constant(0))
                if is_narrow:
                    narrow = emit.narrow_bfloat16(value)
                    emit.store(narrow, emit.address(starts[row], emit.times(index, 2 * LANES)))
                else:
                    emit.store(value, at(row, index))
                return value

            def add(index, values):
                return [emit.add(values[r], power(r, index, False)) for r in rows]

            def add_last(index, values):
                return [emit.add(values[r], power(r, builder.add(whole, index), True)) for r in rows]

            totals = emit.loop(num_last, emit.loop(whole, [emit.constant(0)] * num_rows, add), add_last)
            last = builder.sub(row_bytes, ir.Constant(I64, 4))
            for start, total in zip(starts, totals, strict=True):
                place = builder.bitcast(emit.address(start, last), F32.as_pointer())
                builder.store(builder.fdiv(ir.Constant(F32, 1), emit.in_order_sum(total)), place, align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5, types.float32), codegen

    return softmax


@cache
def softmax_rows(is_narrow):
    """The compiled function (scores, row_bytes, num_rows, visible, more, end, scale) that does `_softmax` for any
    number of rows."""
    some, one = _softmax(is_narrow, SOFTMAX_ROWS), _softmax(is_narrow, 1)

    def softmax(scores, row_bytes, num_rows, visible, more, end, scale):
        row = 0
        while num_rows - row >= SOFTMAX_ROWS:
            some(scores + row * row_bytes, row_bytes, visible + row * more, more, end, scale)
            row += SOFTMAX_ROWS
        while row < num_rows:
            one(scores + row * row_bytes, row_bytes, visible + row * more, more, end, scale)
            row += 1

    return njit(softmax, name=f"softmax_{int(is_narrow)}")


@intrinsic
def scale_row(typingctx, source, factor, n, out):
    """out[i] = source[i] * factor for n float32 at two addresses; source is readable up to a multiple of 16."""

    def codegen(context, builder, sig, args):
        emit = Emitter(builder)
        source, scalar, n, out = args
        factor = emit.splat(scalar)
        whole = builder.ashr(n, ir.Constant(I64, 4))

        def chunk(index, values):
            at = emit.times(index, 4 * LANES)
            emit.store(emit.mul(emit.load(emit.address(source, at)), factor), emit.address(out, at))
            return values

        def rest(index, values):
            at = emit.times(builder.add(emit.times(whole, LANES), index), 4)
            place, to = (builder.bitcast(emit.address(base, at), F32.as_pointer()) for base in (source, out))
            builder.store(builder.fmul(builder.load(place, typ=F32, align=4), scalar), to, align=4)
            return values

        emit.loop(whole, [], chunk)
        emit.loop(builder.and_(n, ir.Constant(I64, LANES - 1)), [], rest)
        return context.get_dummy_value()

    return types.void(types.int64, types.float32, types.int64, types.int64), codegen


@intrinsic
def multiply_rows(typingctx, row, other, n):
    """row *= other for n float32 at two addresses; what lies beyond n up to the next multiple of 16 too."""

    def codegen(context, builder, sig, args):
        emit = Emitter(builder)
        with _chunks(builder, args[2]) as (index, _):
            at = emit.times(index, 4)
            pointer = emit.address(args[0], at)
            emit.store(emit.mul(emit.load(pointer), emit.load(emit.address(args[1], at))), pointer)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


def _gelu_tanh(emit, x):
    # 0.5 x (1 + tanh(z)) = x sigmoid(2 z), z = sqrt(2 / pi) (x + 0.044715 x^3)   (Hendrycks and Gimpel 2016)
    cubic = emit.fma(emit.mul(emit.mul(x, x), x), emit.constant(0.044715), x)
    return emit.mul(x, emit.sigmoid(emit.mul(cubic, emit.constant(2 * math.sqrt(2 / math.pi)))))


def _gelu_erf(emit, x):
    # x (1 + erf(x / sqrt 2)) / 2; erf after Abramowitz and Stegun 7.1.26, absolute error below 1.5e-7
    z = emit.mul(emit.abs(x), emit.constant(math.sqrt(0.5)))
    t = emit.div(emit.constant(1), emit.fma(z, emit.constant(0.3275911), emit.constant(1)))
    series = emit.constant(1.061405429)
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series = emit.fma(series, t, emit.constant(coefficient))
    tail = emit.mul(emit.mul(series, t), emit.exp(emit.sub(emit.constant(0), emit.mul(z, z))))  # 1 - erf(|x| / sqrt 2)
    half_tail = emit.mul(tail, emit.constant(0.5))
    zero = emit.constant(0)
    return emit.mul(x, emit.select_greater(x, zero, emit.sub(emit.constant(1), half_tail), half_tail))


def _tanh(emit, x):
    # 2 sigmoid(2 x) - 1 cancels near 0: there x - x^3/3 + 2 x^5/15 - 17 x^7/315 is exact to an ulp
    square = emit.mul(x, x)
    series = emit.constant(-17 / 315)
    for coefficient in (2 / 15, -1 / 3, 1.0):
        series = emit.fma(series, square, emit.constant(coefficient))
    two = emit.constant(2)
    far = emit.sub(emit.mul(emit.sigmoid(emit.mul(x, two)), two), emit.constant(1))
    return emit.select_greater(emit.abs(x), emit.constant(0.25), far, emit.mul(x, series))


gelu_tanh = _map(_gelu_tanh)
gelu_erf = _map(_gelu_erf)
relu = _map(lambda emit, x: emit.max(x, emit.constant(0)))
silu = _map(lambda emit, x: emit.mul(x, emit.sigmoid(x)))
tanh = _map(_tanh)


def address_of(element):
    """Intrinsic: an address, int64, as a pointer to elements of that type, a scalar or a record."""

    @intrinsic
    def pointer(typingctx, address):
        def codegen(context, builder, sig, args):
            return builder.inttoptr(args[0], context.get_value_type(sig.return_type))

        return types.CPointer(element)(types.int64), codegen

    return pointer


float32_at = address_of(types.float32)
int8_at = address_of(types.int8)
uint8_at = address_of(types.uint8)
uint16_at = address_of(types.uint16)
int32_at = address_of(types.int32)
uint32_at = address_of(types.uint32)
int64_at = address_of(types.int64)
float64_at = address_of(types.float64)


@intrinsic
def float32_of_bits(typingctx, bits):
    """The float32 with these bits (uint32 or wider)."""

    def codegen(context, builder, sig, args):
        return builder.bitcast(args[0], F32)

    return types.float32(types.uint32), codegen
