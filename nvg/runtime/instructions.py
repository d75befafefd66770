"""Instructions that only some machines have, as LLVM names and types them.

Where the target has no such instruction LLVM ends the process instead of raising (see `nvg.runtime.probe`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from llvmlite.binding import llvm_version_info
from numba.core import cgutils

_I8, _I16, _I32, _F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()


class _BFloat(ir.types.Type):  # type: ignore[misc]
    """LLVM's bfloat, which llvmlite has no name for."""

    null = "0.0"
    intrinsic_name = "bf16"

    def __str__(self):
        return "bfloat"

    def __eq__(self, other):
        return isinstance(other, _BFloat)

    def __hash__(self):
        return hash("bfloat")


BFLOAT = _BFloat()


@dataclass(frozen=True)
class Instruction:
    """An LLVM intrinsic."""

    name: str
    result: Any
    operands: tuple[Any, ...]

    def call(self, builder: Any, *args: Any) -> Any:
        """Write it; args are vectors of the operands' sizes, whatever their lanes are."""
        function_type = ir.FunctionType(self.result, self.operands)
        function = cgutils.get_or_insert_function(builder.module, function_type, self.name)
        cast = [builder.bitcast(arg, operand) for arg, operand in zip(args, self.operands, strict=True)]
        return builder.call(function, cast)

    def function(self, triple: str) -> str:
        """The text of a module with a function that loads operands, executes this and stores the result."""
        module = ir.Module("instruction")
        module.triple = triple
        pointer = _I8.as_pointer()
        function_type = ir.FunctionType(ir.VoidType(), [pointer] * (1 + len(self.operands)))
        function = ir.Function(module, function_type, "instruction")
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        values = [builder.load(a, typ=t, align=1) for a, t in zip(function.args[1:], self.operands, strict=True)]
        result = self.call(builder, *values)
        place = builder.bitcast(function.args[0], result.type.as_pointer())
        builder.store(result, place, align=1)
        builder.ret_void()
        return str(module)


_NAMES = {
    "vnni": {
        4: "llvm.x86.avx512.vpdpbusd.128",  # these are AVX-VNNI's, too
        8: "llvm.x86.avx512.vpdpbusd.256",
        16: "llvm.x86.avx512.vpdpbusd.512",
    },
    "sdot": {4: "llvm.aarch64.neon.sdot.v4i32.v16i8"},
    "pmaddwd": {4: "llvm.x86.sse2.pmadd.wd", 8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"},
    "dpbf16ps": {16: "llvm.x86.avx512bf16.dpbf16ps.512"},
    "pshufb": {4: "llvm.x86.ssse3.pshuf.b.128", 8: "llvm.x86.avx2.pshuf.b", 16: "llvm.x86.avx512.pshuf.b.512"},
    "tbl": {4: "llvm.aarch64.neon.tbl1.v16i8"},
}


def instruction(kind: str, lanes: int) -> Instruction:
    """The one of a kind for vectors of `lanes` times 32 bits.

    vnni: int32 accumulators + four products of unsigned and signed bytes; sdot: of signed bytes. pmaddwd: two products
    of int16. dpbf16ps: float32 accumulators + two products of bfloat16. pshufb and tbl: bytes of a table by indices.
    """
    floats, words = ir.VectorType(_F32, lanes), ir.VectorType(_I32, lanes)
    halves, octets = ir.VectorType(_I16, 2 * lanes), ir.VectorType(_I8, 4 * lanes)
    pairs = ir.VectorType(BFLOAT, 2 * lanes)
    vnni_operand = octets if llvm_version_info[0] >= 21 else words
    result, operands = {
        "vnni": (words, (words, vnni_operand, vnni_operand)),
        "sdot": (words, (words, octets, octets)),
        "pmaddwd": (words, (halves, halves)),
        "dpbf16ps": (floats, (floats, pairs, pairs)),
        "pshufb": (octets, (octets, octets)),
        "tbl": (octets, (octets, octets)),
    }[kind]
    return Instruction(_NAMES[kind][lanes], result, operands)
