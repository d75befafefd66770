"""Rows of float32 as Numba intrinsics: sums, softmax, activations; and pointers to what lies at an address.

All arithmetic on rows is written in 16 lanes whatever the machine's registers hold (LLVM splits or joins them), and
sums add lane by lane in order, so a row's result depends on nothing but the row. Rows are readable up to a multiple
of 16 floats; what is read there beyond n is masked out.
"""

from __future__ import annotations

import math

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from nvg.kernels.emitter import F32, I64, LANES, Emitter


def array_data(context, builder, array_type, array, offset):
    """Pointer to element `offset` of a contiguous array."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [offset], source_etype=context.get_data_type(array_type.dtype))


def _chunks(builder, n):
    """A loop over 0, 16, 32, ... below n."""
    return cgutils.for_range_slice(builder, ir.Constant(I64, 0), n, ir.Constant(I64, LANES), intp=I64, inc=True)


def _reduction(start, step, finish):
    """Intrinsic (row, offset, n, scalar) -> float32: `step(emitter, accumulator, values, scalar)` over chunks of 16."""

    @intrinsic
    def reduce(typingctx, row, offset, n, scalar):
        def codegen(context, builder, sig, args):
            emit = Emitter(builder)
            data = array_data(context, builder, sig.args[0], args[0], args[1])
            accumulator = cgutils.alloca_once_value(builder, emit.constant(start))
            scalar = emit.splat(args[3])
            with _chunks(builder, args[2]) as (index, _):
                values = emit.load(emit.offset(data, index))
                old = builder.load(accumulator)
                new = step(emit, old, values, scalar)
                builder.store(builder.select(emit.lanes_below(index, args[2]), new, old), accumulator)
            return finish(emit, builder.load(accumulator))

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


def _softmax(is_narrow):
    """Intrinsic (scores, visible, end, scale) -> float32: the first `visible` > 0 of the float32 at address `scores`
    become e^((score - largest) * scale), those from there up to `end`, rounded up to a multiple of 16, exact zeros; if
    `is_narrow`, as bfloat16 from the same address on. The result is their sum, before they were narrowed. scale > 0."""

    @intrinsic
    def softmax(typingctx, scores, visible, end, scale):
        def codegen(context, builder, sig, args):
            emit = Emitter(builder)
            scores, visible, end, scale = args
            whole = builder.ashr(visible, ir.Constant(I64, 4))
            rest = builder.icmp_signed("<", builder.shl(whole, ir.Constant(I64, 4)), visible)

            def at(index):
                return emit.address(scores, emit.times(index, 4 * LANES))

            def larger(index, values):
                return [emit.max(emit.load(at(index)), values[0])]

            greatest = emit.loop(whole, [emit.constant(-math.inf)], larger)[0]

            def masked(index, value, otherwise):
                return builder.select(emit.lanes_below(emit.times(index, LANES), visible), value, otherwise)

            def larger_of_rest(index, values):
                last = builder.add(whole, index)
                return [emit.max(masked(last, emit.load(at(last)), emit.constant(-math.inf)), values[0])]

            greatest = emit.loop(builder.zext(rest, I64), [greatest], larger_of_rest)[0]
            greatest, scale = emit.splat(emit.largest(greatest)), emit.splat(scale)

            def power(index, mask):
                value = emit.exp_below_0(emit.mul(emit.sub(emit.load(at(index)), greatest), scale))
                if mask:
                    value = masked(index, value, emit.constant(0))
                if is_narrow:
                    emit.store(emit.narrow_bfloat16(value), emit.address(scores, emit.times(index, 2 * LANES)))
                else:
                    emit.store(value, at(index))
                return value

            total = emit.loop(whole, [emit.constant(0)], lambda i, values: [emit.add(values[0], power(i, False))])
            chunks = builder.ashr(builder.add(end, ir.Constant(I64, LANES - 1)), ir.Constant(I64, 4))
            total = emit.loop(
                builder.sub(chunks, whole),
                total,
                lambda i, values: [emit.add(values[0], power(builder.add(whole, i), True))],
            )
            return emit.in_order_sum(total[0])

        return types.float32(types.int64, types.int64, types.int64, types.float32), codegen

    return softmax


softmax_float32, softmax_bfloat16 = _softmax(False), _softmax(True)


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


@intrinsic
def prefetch(typingctx, address, num_bytes):
    """Ask for the bytes from `address` on, which need not exist, in the second-level cache."""

    def codegen(context, builder, sig, args):
        emit = Emitter(builder)
        lines = builder.ashr(builder.add(args[1], ir.Constant(I64, 63)), ir.Constant(I64, 6))

        def fetch(line, values):
            emit.prefetch(builder.add(args[0], emit.times(line, 64)))
            return values

        emit.loop(lines, [], fetch)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


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
