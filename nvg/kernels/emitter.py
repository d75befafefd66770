"""What writes LLVM vector code of one width: loads and stores, arithmetic, loops, exp and reductions."""

from __future__ import annotations

import math

from llvmlite import ir
from numba.core import cgutils

from nvg.runtime import cpu
from nvg.runtime.instructions import instruction

LANES = 16
F32, I8, I16, I32, I64 = ir.FloatType(), ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)


class Emitter:
    """Writes vector instructions of one width at the builder's position, for a machine with `features`."""

    def __init__(self, builder, width=LANES, features=None):
        self.builder = builder
        self.width = width
        self.features = features or cpu.features()
        self.vector = ir.VectorType(F32, width)
        self.ivector = ir.VectorType(I32, width)

    def times(self, value, factor):
        """value * factor, int64."""
        return self.builder.mul(value, ir.Constant(I64, factor))

    def address(self, base, offset=None):
        """Pointer to the address base + offset (int64, in bytes)."""
        return self.builder.inttoptr(base if offset is None else self.builder.add(base, offset), I8.as_pointer())

    def move(self, pointer, offset):
        """The pointer `offset` bytes further on."""
        offset = offset if isinstance(offset, ir.Value) else ir.Constant(I64, offset)
        return self.builder.gep(pointer, [offset], source_etype=I8)

    def load_words(self, pointer):
        """int32 lanes, from any address."""
        return self.builder.load(pointer, typ=self.ivector, align=1)

    def load_bfloat16(self, pointer):
        """bfloat16 as float32 lanes."""
        halves = self.builder.load(pointer, typ=ir.VectorType(I16, self.width), align=2)
        return self.widen_bfloat16(halves)

    def widen_bfloat16(self, halves):
        """int16 lanes that hold bfloat16, as float32."""
        words = self.builder.shl(self.builder.zext(halves, self.ivector), self.iconstant(16))
        return self.builder.bitcast(words, self.vector)

    def narrow_bfloat16(self, values):
        """float32 lanes to bfloat16 in int16 lanes, to nearest, ties to even; a NaN may become infinite."""
        b = self.builder
        bits = b.bitcast(values, self.ivector)
        lowest = b.and_(b.lshr(bits, self.iconstant(16)), self.iconstant(1))
        rounded = b.add(bits, b.add(lowest, self.iconstant(0x7FFF)))
        return b.trunc(b.lshr(rounded, self.iconstant(16)), ir.VectorType(I16, self.width))

    def load_int8(self, pointer):
        """int8 as float32 lanes."""
        codes = self.builder.load(pointer, typ=ir.VectorType(I8, self.width), align=1)
        return self.builder.sitofp(self.builder.sext(codes, self.ivector), self.vector)

    def loop(self, count, values, body):
        """The values (a list) after `count` (int64) rounds of body(index, values) -> values."""
        b, before, function = self.builder, self.builder.block, self.builder.function
        head, inside, after = (function.append_basic_block(name) for name in ("loop_head", "loop", "looped"))
        b.branch(head)
        b.position_at_end(head)
        index, phis = b.phi(I64), [b.phi(value.type) for value in values]
        index.add_incoming(ir.Constant(I64, 0), before)
        for phi, value in zip(phis, values, strict=True):
            phi.add_incoming(value, before)
        count = count if isinstance(count, ir.Value) else ir.Constant(I64, count)
        b.cbranch(b.icmp_signed("<", index, count), inside, after)
        b.position_at_end(inside)
        changed = body(index, phis)
        index.add_incoming(b.add(index, ir.Constant(I64, 1)), b.block)
        for phi, value in zip(phis, changed, strict=True):
            phi.add_incoming(value, b.block)
        b.branch(head)
        b.position_at_end(after)
        return phis

    def to_nearest(self, values):
        """Rounded to integers, ties to even, still float32; |values| < 2^22."""
        magic = self.constant(12582912.0)  # 1.5 * 2^23
        return self.sub(self.add(values, magic), magic)

    def prefetch(self, address):
        """Ask for the cache line at an address, which need not exist, in the second-level cache: the first is full of
        what is at work."""
        b = self.builder
        function_type = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
        function = cgutils.get_or_insert_function(b.module, function_type, "llvm.prefetch.p0")
        read, second_level, data = ir.Constant(I32, 0), ir.Constant(I32, 2), ir.Constant(I32, 1)
        b.call(function, [self.address(address), read, second_level, data])

    def look_up(self, nibbles, table):
        """Bytes of `table` (16 numbers 0 .. 255) at the indices 0 .. 15 in each byte of int32 lanes; int32 lanes."""
        b, count = self.builder, 4 * self.width
        byte_vector = ir.VectorType(I8, count)
        index = b.bitcast(nibbles, byte_vector)
        kind = self.features.byte_shuffle
        if kind == "plain":
            result = ir.Constant(byte_vector, [table[0]] * count)
            for code in range(1, 16):
                is_code = b.icmp_unsigned("==", index, ir.Constant(byte_vector, [code] * count))
                result = b.select(is_code, ir.Constant(byte_vector, [table[code]] * count), result)
        else:
            tables = ir.Constant(byte_vector, list(table) * (count // 16))
            result = instruction(kind, self.width).call(b, tables, index)
        return b.bitcast(result, self.ivector)

    def constant(self, value):
        return ir.Constant(self.vector, [float(value)] * self.width)

    def iconstant(self, value):
        return ir.Constant(self.ivector, [value] * self.width)

    def offset(self, pointer, index):
        return self.builder.gep(pointer, [index], source_etype=F32)

    def load(self, pointer):
        return self.builder.load(pointer, typ=self.vector, align=4)

    def store(self, value, pointer):
        element = value.type.element
        align = element.width // 8 if isinstance(element, ir.IntType) else 4
        self.builder.store(value, self.builder.bitcast(pointer, value.type.as_pointer()), align=align)

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
        if self.features.fma:
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
        """e^x to about 1 ulp; x below -87.3 gives 0, above 88.7 the largest finite power."""
        b = self.builder
        n, power = self._exp_parts(self.max(self.min(x, self.constant(88.7)), self.constant(-87.3)))
        # 2^n in two factors: n reaches 128, whose single exponent field would be infinite
        half = b.ashr(n, self.iconstant(1))
        for part in (half, b.sub(n, half)):
            bits = b.shl(b.add(part, self.iconstant(127)), self.iconstant(23))
            power = self.mul(power, b.bitcast(bits, self.vector))
        return b.select(b.fcmp_ordered("<", x, self.constant(-87.3)), self.constant(0), power)

    def exp_below_0(self, x):
        """`exp` for x <= 0, with fewer instructions."""
        b = self.builder
        n, power = self._exp_parts(self.max(x, self.constant(-87.3)))
        # n is -126 at least, and there e^f is above 1: n can be added to the exponent as it is
        bits = b.add(b.bitcast(power, self.ivector), b.shl(n, self.iconstant(23)))
        return b.select(b.fcmp_ordered("<", x, self.constant(-87.3)), self.constant(0), b.bitcast(bits, self.vector))

    def _exp_parts(self, x):
        """(n, e^f) of e^x = 2^n * e^f, n in int32 lanes, for -87.3 <= x <= 88.7.

        x = n ln2 + f (ln2 in two parts, after Cody and Waite 1980), e^f by its Taylor polynomial of degree 7 on
        |f| <= ln2 / 2, whose remainder is below 2^-26.
        """
        magic = self.constant(12582912.0)  # 1.5 * 2^23: adding it rounds to an integer
        rounded = self.sub(self.fma(x, self.constant(1 / math.log(2)), magic), magic)
        f = self.fma(rounded, self.constant(-0.693359375), x)
        f = self.fma(rounded, self.constant(2.12194440e-4), f)
        power = self.constant(1 / math.factorial(7))
        for n in range(6, -1, -1):
            power = self.fma(power, f, self.constant(1 / math.factorial(n)))
        return self.builder.fptosi(rounded, self.ivector), power

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
        return self._fold(vector, self.builder.fadd)

    def integer_sum(self, vector):
        """The sum of int32 lanes."""
        return self._fold(vector, self.builder.add)

    def _fold(self, vector, combine):
        b, width = self.builder, vector.type.count
        while width > 1:
            width //= 2
            undefined = ir.Constant(vector.type, ir.Undefined)
            parts = [
                b.shuffle_vector(vector, undefined, ir.Constant(ir.VectorType(I32, width), list(lanes)))
                for lanes in (range(width), range(width, 2 * width))
            ]
            vector = combine(*parts)
        return b.extract_element(vector, ir.Constant(I32, 0))

    def largest(self, vector):
        """The greatest lane."""
        return self._fold(vector, lambda a, b: self.builder.select(self.builder.fcmp_ordered(">", a, b), a, b))
