"""From float32 to what tiles read: rows of activations to operands, blocks of weights to packed groups.

Activations are rounded row by row, each group of 32 by itself, so a row's operand depends on nothing but the row.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from nvg.kernels.emitter import F32, I8, I32, I64, LANES, Emitter
from nvg.kernels.formats import GROUP, GROUP_BYTES, INT4_LEVELS, OPERAND_GROUP_BYTES, PANEL

_HALVES = (0, LANES)  # 32 columns or values as two vectors
_INT8_SCALES = (1 / 128, 1 / 128.4, 1 / 127.5)
"""Scales that are tried for a group of int8 weights, times the negative of its largest value: rounded to bfloat16, any
of them can be the one that fits best."""
_INT4_SCALES = tuple(1 / divisor for divisor in (132, 127, 122, 117, 112, 107, 102, 96))
"""The same for int4, whose levels end at -125: the best scale often lets the largest value fall short."""


@cache
def store_operand(dtype: str) -> Any:
    """Intrinsic (source, num_groups, out), all int64: the float32 row at address `source`, of num_groups * 32 values,
    as an operand of `dtype` (float32 is copied) at address `out`."""
    write = {"float32": _copy_group, "bfloat16": _bfloat16_group, "int8": _int8_group, "int4": _int8_group}[dtype]
    size = {"float32": 4 * GROUP, "bfloat16": 2 * GROUP}.get(dtype, OPERAND_GROUP_BYTES)

    @intrinsic
    def store(typingctx, source, num_groups, out):
        def codegen(context, builder, sig, args):
            emit = Emitter(builder)

            def one(index, values):
                from_ = emit.address(args[0], emit.times(index, 4 * GROUP))
                parts = [emit.load(emit.move(from_, 4 * half)) for half in _HALVES]
                write(emit, parts, emit.address(args[2], emit.times(index, size)))
                return values

            emit.loop(args[1], [], one)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), codegen

    return store


def _copy_group(emit, parts, out):
    for half, values in zip(_HALVES, parts, strict=True):
        emit.store(values, emit.move(out, 4 * half))


def _bfloat16_group(emit, parts, out):
    for half, values in zip(_HALVES, parts, strict=True):
        emit.store(emit.narrow_bfloat16(values), emit.move(out, 2 * half))


def _int8_group(emit, parts, out):
    """Codes are x * 127 / max|x| to the nearest integer."""
    b = emit.builder
    largest = emit.largest(emit.max(*[emit.abs(values) for values in parts]))
    zero = ir.Constant(F32, 0)
    inverse = b.select(b.fcmp_ordered(">", largest, zero), b.fdiv(ir.Constant(F32, 127), largest), zero)
    total = None
    for half, values in zip(_HALVES, parts, strict=True):
        codes = b.fptosi(emit.to_nearest(emit.mul(values, emit.splat(inverse))), emit.ivector)
        emit.store(b.trunc(codes, ir.VectorType(I8, LANES)), emit.move(out, half))
        total = codes if total is None else b.add(total, codes)
    scale = b.fmul(largest, ir.Constant(F32, 1 / 127))
    b.store(scale, b.bitcast(emit.move(out, GROUP), F32.as_pointer()), align=4)
    correction = b.mul(emit.integer_sum(total), ir.Constant(I32, -128))
    b.store(correction, b.bitcast(emit.move(out, GROUP + 4), I32.as_pointer()), align=4)


@cache
def store_block(dtype: str) -> Any:
    """Intrinsic (source, out), both int64: the block of 32 (k) x 32 (columns) float32 weights at address `source` as
    packed weights of `dtype` at address `out` (see `nvg.kernels.formats`)."""
    write = {"float32": _copy_block, "bfloat16": _bfloat16_block, "int8": _int8_block, "int4": _int4_block}[dtype]

    @intrinsic
    def store(typingctx, source, out):
        def codegen(context, builder, sig, args):
            emit = Emitter(builder)
            for half in _HALVES:
                write(emit, emit.address(args[0], ir.Constant(I64, 4 * half)), emit.address(args[1]), half)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), codegen

    return store


def _weights(emit, source, k):
    """Half a row of the block."""
    return emit.load(emit.move(source, emit.times(k, 4 * PANEL)))


def _copy_block(emit, source, out, half):
    def row(k, values):
        emit.store(_weights(emit, source, k), emit.move(emit.move(out, emit.times(k, 4 * PANEL)), 4 * half))
        return values

    emit.loop(GROUP, [], row)


def _bfloat16_block(emit, source, out, half):
    b = emit.builder

    def pair(index, values):
        k = emit.times(index, 2)
        first, second = (
            b.zext(emit.narrow_bfloat16(_weights(emit, source, at)), emit.ivector)
            for at in (k, b.add(k, ir.Constant(I64, 1)))
        )
        words = b.or_(first, b.shl(second, emit.iconstant(16)))
        emit.store(words, emit.move(emit.move(out, emit.times(index, 4 * PANEL)), 4 * half))
        return values

    emit.loop(GROUP // 2, [], pair)


def _largest_values(emit, source):
    """Each column's value of largest magnitude, with its sign."""

    def larger(k, values):
        weights = _weights(emit, source, k)
        return [emit.select_greater(emit.abs(weights), emit.abs(values[0]), weights, values[0])]

    return emit.loop(GROUP, [emit.constant(0)], larger)[0]


def _best_scale(emit, source, fractions, nearest):
    """(scale, 1 / scale), rounded to bfloat16: that of -fraction * largest value, for one of `fractions`, which leaves
    the least sum of squared errors; 0 and 0 for a column of zeros."""
    b = emit.builder
    largest = _largest_values(emit, source)
    best: list[Any] = []
    for fraction in fractions:
        scale = emit.widen_bfloat16(emit.narrow_bfloat16(emit.mul(largest, emit.constant(-fraction))))
        is_zero = b.fcmp_ordered("==", scale, emit.constant(0))
        inverse = b.select(is_zero, emit.constant(0), emit.div(emit.constant(1), scale))

        def error(k, values, scale=scale, inverse=inverse):
            weights = _weights(emit, source, k)
            difference = emit.sub(weights, emit.mul(nearest(emit.mul(weights, inverse)), scale))
            return [emit.fma(difference, difference, values[0])]

        total = emit.loop(GROUP, [emit.constant(0)], error)[0]
        if not best:
            best = [total, scale, inverse]
        else:
            is_better = b.fcmp_ordered("<", total, best[0])
            best = [b.select(is_better, new, old) for new, old in zip((total, scale, inverse), best, strict=True)]
    return best[1], best[2]


def _store_scales(emit, scale, out, half, group_bytes):
    emit.store(emit.narrow_bfloat16(scale), emit.move(out, group_bytes - 2 * PANEL + 2 * half))


def _int8_block(emit, source, out, half):
    b = emit.builder

    def nearest(values):
        return emit.max(emit.min(emit.to_nearest(values), emit.constant(127)), emit.constant(-128))

    scale, inverse = _best_scale(emit, source, _INT8_SCALES, nearest)
    _store_scales(emit, scale, out, half, GROUP_BYTES["int8"])

    def quad(index, values):
        words = emit.iconstant(0)
        for i in range(4):
            k = b.add(emit.times(index, 4), ir.Constant(I64, i))
            code = emit.add(nearest(emit.mul(_weights(emit, source, k), inverse)), emit.constant(128))
            words = b.or_(words, b.shl(b.fptosi(code, emit.ivector), emit.iconstant(8 * i)))
        emit.store(words, emit.move(emit.move(out, emit.times(index, 4 * PANEL)), 4 * half))
        return values

    emit.loop(GROUP // 4, [], quad)


def _int4_block(emit, source, out, half):
    b = emit.builder
    bounds = [(low + high) / 2 for low, high in pairwise(INT4_LEVELS)]

    def nearest(values):
        level = emit.constant(INT4_LEVELS[0])
        for bound, above in zip(bounds, INT4_LEVELS[1:], strict=True):
            level = emit.select_greater(values, emit.constant(bound), emit.constant(above), level)
        return level

    def code_of(values):
        code = emit.iconstant(0)
        for number, bound in enumerate(bounds, 1):
            code = b.select(b.fcmp_ordered(">", values, emit.constant(bound)), emit.iconstant(number), code)
        return code

    scale, inverse = _best_scale(emit, source, _INT4_SCALES, nearest)
    _store_scales(emit, scale, out, half, GROUP_BYTES["int4"])

    def two_quads(index, values):
        def code(i, words):
            k = b.add(emit.times(index, 8), i)
            # k of the even quad fill the low nibbles of bytes 0 .. 3, those of the odd one the high nibbles
            byte, is_odd = b.and_(i, ir.Constant(I64, 3)), b.lshr(i, ir.Constant(I64, 2))
            shift = b.trunc(b.add(emit.times(byte, 8), emit.times(is_odd, 4)), I32)
            found = code_of(emit.mul(_weights(emit, source, k), inverse))
            return [b.or_(words[0], b.shl(found, emit.splat(shift)))]

        words = emit.loop(8, [emit.iconstant(0)], code)[0]
        emit.store(words, emit.move(emit.move(out, emit.times(index, 4 * PANEL)), 4 * half))
        return values

    emit.loop(GROUP // 8, [], two_quads)
