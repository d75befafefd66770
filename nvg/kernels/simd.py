"""The one file that knows LLVM: vector code as Numba intrinsics.

All arithmetic on rows is written in 16 lanes whatever the machine's registers hold (LLVM splits or joins them), and
sums add lane by lane in order, so a row's result depends on nothing but the row. Rows are readable up to a multiple
of 16 floats; what is read there beyond n is masked out.
"""

from __future__ import annotations

import math

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from nvg.runtime import cpu

LANES = 16
F32, I32, I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_VECTOR = ir.VectorType(F32, LANES)
_IVECTOR = ir.VectorType(I32, LANES)


class Emitter:
    """Writes vector instructions of one width at the builder's position."""

    def __init__(self, builder, width=LANES):
        self.builder = builder
        self.width = width
        self.vector = ir.VectorType(F32, width)
        self.ivector = ir.VectorType(I32, width)

    def constant(self, value):
        return ir.Constant(self.vector, [float(value)] * self.width)

    def iconstant(self, value):
        return ir.Constant(self.ivector, [value] * self.width)

    def offset(self, pointer, index):
        return self.builder.gep(pointer, [index], source_etype=F32)

    def load(self, pointer):
        return self.builder.load(self.builder.bitcast(pointer, self.vector.as_pointer()), align=4)

    def store(self, value, pointer):
        self.builder.store(value, self.builder.bitcast(pointer, value.type.as_pointer()), align=4)

    def splat(self, scalar):
        scalar_type = ir.VectorType(scalar.type, self.width)
        undefined = ir.Constant(scalar_type, ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, ir.Constant(I32, 0))
        lanes = ir.Constant(ir.VectorType(I32, self.width), [0] * self.width)
        return self.builder.shuffle_vector(first, undefined, lanes)

    def _call(self, name, *args):
        function_type = ir.FunctionType(self.vector, [self.vector] * len(args))
        full_name = f"llvm.{name}.v{self.width}f32"
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, function_type, full_name), args)

    def fma(self, a, b, c):
        """a * b + c, rounded once where the machine can, else twice: never a call into the C library."""
        if cpu.has_fma():
            return self._call("fma", a, b, c)
        return self.builder.fadd(self.builder.fmul(a, b), c)

    def add(self, a, b):
        return self.builder.fadd(a, b)

    def sub(self, a, b):
        return self.builder.fsub(a, b)

    def mul(self, a, b):
        return self.builder.fmul(a, b)

    def div(self, a, b):
        return self.builder.fdiv(a, b)

    def select_greater(self, a, b, if_true, if_false):
        return self.builder.select(self.builder.fcmp_ordered(">", a, b), if_true, if_false)

    def max(self, a, b):
        return self.select_greater(a, b, a, b)

    def min(self, a, b):
        return self.builder.select(self.builder.fcmp_ordered("<", a, b), a, b)

    def abs(self, a):
        return self._call("fabs", a)

    def exp(self, x):
        """e^x to about 1 ulp; x below -87.3 gives 0, above 88.7 the largest finite power.

        2^n * e^f with x = n ln2 + f (ln2 in two parts, after Cody and Waite 1980), e^f by its Taylor polynomial of
        degree 7 on |f| <= ln2 / 2, whose remainder is below 2^-26.
        """
        b = self.builder
        clamped = self.max(self.min(x, self.constant(88.7)), self.constant(-87.3))
        magic = self.constant(12582912.0)  # 1.5 * 2^23: adding it rounds to an integer
        rounded = self.sub(self.fma(clamped, self.constant(1 / math.log(2)), magic), magic)
        f = self.fma(rounded, self.constant(-0.693359375), clamped)
        f = self.fma(rounded, self.constant(2.12194440e-4), f)
        power = self.constant(1 / math.factorial(7))
        for n in range(6, -1, -1):
            power = self.fma(power, f, self.constant(1 / math.factorial(n)))
        # 2^n in two factors: n reaches 128, whose single exponent field would be infinite
        n = b.fptosi(rounded, self.ivector)
        half = b.ashr(n, self.iconstant(1))
        for part in (half, b.sub(n, half)):
            bits = b.shl(b.add(part, self.iconstant(127)), self.iconstant(23))
            power = self.mul(power, b.bitcast(bits, self.vector))
        return b.select(b.fcmp_ordered("<", x, self.constant(-87.3)), self.constant(0), power)

    def sigmoid(self, x):
        """1 / (1 + e^-x)"""
        one = self.constant(1)
        return self.div(one, self.add(one, self.exp(self.sub(self.constant(0), x))))

    def lanes_below(self, base, n):
        """Mask of the lanes i with base + i < n (int64 scalars)."""
        lanes = ir.VectorType(I64, self.width)
        splat_base, splat_n = self.splat(base), self.splat(n)
        index = self.builder.add(splat_base, ir.Constant(lanes, list(range(self.width))))
        return self.builder.icmp_signed("<", index, splat_n)

    def in_order_sum(self, vector):
        """The lanes' sum, pairwise: lane i with lane i + half, and so on."""
        b, width = self.builder, self.width
        while width > 1:
            width //= 2
            undefined = ir.Constant(vector.type, ir.Undefined)
            parts = [
                b.shuffle_vector(vector, undefined, ir.Constant(ir.VectorType(I32, width), list(lanes)))
                for lanes in (range(width), range(width, 2 * width))
            ]
            vector = b.fadd(*parts)
        return b.extract_element(vector, ir.Constant(I32, 0))

    def largest(self, vector):
        b = self.builder
        result = b.extract_element(vector, ir.Constant(I32, 0))
        for lane in range(1, self.width):
            value = b.extract_element(vector, ir.Constant(I32, lane))
            result = b.select(b.fcmp_ordered(">", value, result), value, result)
        return result


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
row_max = _reduction(-math.inf, lambda emit, acc, x, _: emit.max(x, acc), Emitter.largest)


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


@intrinsic
def exp_scaled(typingctx, row, offset, n, largest, scale):
    """row = e^((row - largest) * scale) for the first n, in place, and exact zeros from there to a multiple of 16."""

    def codegen(context, builder, sig, args):
        emit = Emitter(builder)
        data = array_data(context, builder, sig.args[0], args[0], args[1])
        largest, scale = emit.splat(args[3]), emit.splat(args[4])
        with _chunks(builder, args[2]) as (index, _):
            pointer = emit.offset(data, index)
            value = emit.exp(emit.mul(emit.sub(emit.load(pointer), largest), scale))
            emit.store(builder.select(emit.lanes_below(index, args[2]), value, emit.constant(0)), pointer)
        return context.get_dummy_value()

    return types.void(row, types.int64, types.int64, types.float32, types.float32), codegen


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


def make_tile(num_rows, num_columns):
    """Intrinsic for a register tile of a matmul, C = A B or C += A B.

    (a, a_offset, lda, b, b_offset, ldb, c, c_offset, ldc, k, accumulate): A is num_rows x k with rows lda apart, B is
    k x num_columns with rows ldb apart, C is num_rows x num_columns with rows ldc apart; all float32, in elements.
    Each of C's elements is one chain of fused multiply-adds in k's order, begun at 0 or, if `accumulate`, at what C
    holds: the same bits however rows are grouped into tiles and k into pieces. C must not overlap A or B.
    """
    width = min(cpu.vector_floats(), num_columns)
    num_vectors = num_columns // width

    @intrinsic
    def tile(typingctx, a, a_offset, lda, b, b_offset, ldb, c, c_offset, ldc, k, accumulate):
        int64 = types.int64
        sig = types.void(a, int64, int64, b, int64, int64, c, int64, int64, int64, types.boolean)

        def codegen(context, builder, sig, args):
            a, a_offset, lda, b, b_offset, ldb, c, c_offset, ldc, k, accumulate = args
            emit = Emitter(builder, width)
            zero, one = ir.Constant(I64, 0), ir.Constant(I64, 1)
            a_data = array_data(context, builder, sig.args[0], a, a_offset)
            b_data = array_data(context, builder, sig.args[3], b, b_offset)
            c_data = array_data(context, builder, sig.args[6], c, c_offset)
            a_rows = [emit.offset(a_data, builder.mul(lda, ir.Constant(I64, r))) for r in range(num_rows)]
            c_tiles = [
                emit.offset(c_data, builder.add(builder.mul(ldc, ir.Constant(I64, r)), ir.Constant(I64, v * width)))
                for r in range(num_rows)
                for v in range(num_vectors)
            ]
            before, function = builder.block, builder.function
            from_c, loop, done = (function.append_basic_block(name) for name in ("from_c", "k_loop", "k_done"))
            must_load = builder.icmp_signed("!=", accumulate, ir.Constant(accumulate.type, 0))
            builder.cbranch(must_load, from_c, loop)

            builder.position_at_end(from_c)
            loaded = [emit.load(pointer) for pointer in c_tiles]
            builder.branch(loop)

            builder.position_at_end(loop)
            index, b_row = builder.phi(I64), builder.phi(b_data.type)
            accumulators = [builder.phi(emit.vector) for _ in c_tiles]
            for block, values in ((before, [emit.constant(0)] * len(c_tiles)), (from_c, loaded)):
                index.add_incoming(zero, block)
                b_row.add_incoming(b_data, block)
                for accumulator, value in zip(accumulators, values, strict=True):
                    accumulator.add_incoming(value, block)
            columns = [emit.load(emit.offset(b_row, ir.Constant(I64, v * width))) for v in range(num_vectors)]
            updated = []
            for r in range(num_rows):
                element = emit.splat(builder.load(emit.offset(a_rows[r], index), typ=F32))
                for v in range(num_vectors):
                    updated.append(emit.fma(element, columns[v], accumulators[r * num_vectors + v]))
            following = builder.add(index, one)
            index.add_incoming(following, loop)
            b_row.add_incoming(emit.offset(b_row, ldb), loop)
            for accumulator, value in zip(accumulators, updated, strict=True):
                accumulator.add_incoming(value, loop)
            builder.cbranch(builder.icmp_signed("<", following, k), loop, done)

            builder.position_at_end(done)
            for value, pointer in zip(updated, c_tiles, strict=True):
                emit.store(value, pointer)
            return context.get_dummy_value()

        return sig, codegen

    return tile


def _address_of(element):
    @intrinsic
    def pointer(typingctx, address):
        def codegen(context, builder, sig, args):
            return builder.inttoptr(args[0], context.get_value_type(sig.return_type))

        return types.CPointer(element)(types.int64), codegen

    return pointer


float32_at = _address_of(types.float32)
int32_at = _address_of(types.int32)
int64_at = _address_of(types.int64)
