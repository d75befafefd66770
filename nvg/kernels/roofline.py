"""The machine's own ceilings, as jobs for a thread team: how fast it reads memory, how fast it multiplies and adds.

Each arithmetic job repeats one instruction on registers alone, in independent chains that are enough to hide its
latency; operands come from memory and results go there, so that no compiler can know or drop them.
"""

from __future__ import annotations

from types import MappingProxyType

import numba
import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from nvg.kernels.emitter import F32, I32, I64
from nvg.kernels.simd import address_of
from nvg.runtime import cpu
from nvg.runtime.compile_cache import CompileStep, Job
from nvg.runtime.instructions import instruction

CHAINS = 12  # with two operands they fit in 16 registers; no x86 or ARM core needs more to be busy
LINE_BYTES = 64
STEP_LINES = 8  # read in one turn of the loop

FMA, BF16_DOT, INT8_DOT = "fma", "bf16_dot", "int8_dot"
"""Instructions: float32 multiply-adds; dot products of bfloat16 pairs; dot products of four bytes, or of two int16 with
the addition that makes them the same where that is the best there is."""

_FIELDS = ("data", "num_lines", "prefetch_bytes", "rounds", "operands", "sink")
ROOFLINE_CONTEXT = np.dtype([(name, np.int64) for name in _FIELDS], align=True)
"""What a job needs. data: address of the bytes to read. num_lines: of 64 bytes, a multiple of STEP_LINES. rounds: how
often CHAINS instructions are repeated. operands: address of 128 bytes of finite float32. sink: address of 128 bytes
for each thread, which are overwritten. Addresses are multiples of 64."""
_context_at = address_of(numba.from_dtype(ROOFLINE_CONTEXT))


def _vector_at(builder, address, offset, vector):
    """Load a vector `offset` bytes (a Python integer) beyond an address; both are multiples of its size."""
    place = builder.add(address, ir.Constant(I64, offset))
    return builder.load(builder.inttoptr(place, vector.as_pointer()), align=16)


def _store_xor(builder, values, sink):
    """Let the lanes of all values, combined, end in memory."""
    lanes = ir.VectorType(I32, cpu.features().vector_floats)
    total = builder.bitcast(values[0], lanes)
    for value in values[1:]:
        total = builder.xor(total, builder.bitcast(value, lanes))
    builder.store(total, builder.inttoptr(sink, lanes.as_pointer()), align=16)


@intrinsic
def _read_lines(typingctx, address, num_lines, prefetch_bytes, sink):
    """Read num_lines lines of 64 bytes, each fetched `prefetch_bytes` before it is used; their xor goes to `sink`."""

    def codegen(context, builder, sig, args):
        address, num_lines, prefetch_bytes, sink = args
        vector = ir.VectorType(I32, cpu.features().vector_floats)
        vector_bytes = 4 * vector.count
        pointer = ir.IntType(8).as_pointer()
        prefetch = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [pointer, I32, I32, I32]), "llvm.prefetch.p0"
        )
        read, locality, data_cache = (ir.Constant(I32, value) for value in (0, 3, 1))
        num_chains = STEP_LINES * LINE_BYTES // max(vector_bytes, LINE_BYTES)
        before, function = builder.block, builder.function
        loop, done = (function.append_basic_block(name) for name in ("read_loop", "read_done"))
        end = builder.add(address, builder.mul(num_lines, ir.Constant(I64, LINE_BYTES)))
        builder.branch(loop)

        builder.position_at_end(loop)
        place = builder.phi(I64)
        chains = [builder.phi(vector) for _ in range(num_chains)]
        updated = list(chains)
        for line in range(STEP_LINES):
            ahead = builder.add(builder.add(place, prefetch_bytes), ir.Constant(I64, line * LINE_BYTES))
            builder.call(prefetch, [builder.inttoptr(ahead, pointer), read, locality, data_cache])
        for number, offset in enumerate(range(0, STEP_LINES * LINE_BYTES, vector_bytes)):
            chain = number % num_chains
            updated[chain] = builder.xor(updated[chain], _vector_at(builder, place, offset, vector))
        following = builder.add(place, ir.Constant(I64, STEP_LINES * LINE_BYTES))
        for phi, start, value in [
            (place, address, following),
            *((chain, ir.Constant(vector, None), new) for chain, new in zip(chains, updated, strict=True)),
        ]:
            phi.add_incoming(start, before)
            phi.add_incoming(value, loop)
        builder.cbranch(builder.icmp_unsigned("<", following, end), loop, done)

        builder.position_at_end(done)
        _store_xor(builder, updated, sink)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), codegen


def _repeated(element, instruction):
    """Intrinsic (rounds, operands, sink): CHAINS chains of `instruction(builder, accumulator, a, b)`, all operands
    vectors of the machine's width, accumulators with lanes of type `element`."""

    @intrinsic
    def repeat(typingctx, rounds, operands, sink):
        def codegen(context, builder, sig, args):
            rounds, operands, sink = args
            vector = ir.VectorType(element, cpu.features().vector_floats)
            a, b = (_vector_at(builder, operands, offset, vector) for offset in (0, LINE_BYTES))
            before, function = builder.block, builder.function
            loop, done = (function.append_basic_block(name) for name in ("round_loop", "round_done"))
            builder.branch(loop)

            builder.position_at_end(loop)
            index = builder.phi(I64)
            chains = [builder.phi(vector) for _ in range(CHAINS)]
            updated = [instruction(builder, chain, a, b) for chain in chains]
            following = builder.add(index, ir.Constant(I64, 1))
            index.add_incoming(ir.Constant(I64, 0), before)
            index.add_incoming(following, loop)
            for number, (chain, new) in enumerate(zip(chains, updated, strict=True), 1):
                # Chains that begin alike would be one chain to the compiler.
                chain.add_incoming(ir.Constant(vector, [element(number)] * vector.count), before)
                chain.add_incoming(new, loop)
            builder.cbranch(builder.icmp_signed("<", following, rounds), loop, done)

            builder.position_at_end(done)
            _store_xor(builder, updated, sink)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 3), codegen

    return repeat


def _fma(builder, accumulator, a, b):
    """accumulator * a + b: without a fused instruction neither half can leave the loop."""
    vector = accumulator.type
    if cpu.features().fma:
        name, function_type = f"llvm.fma.v{vector.count}f32", ir.FunctionType(vector, [vector] * 3)
        return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), [accumulator, a, b])
    return builder.fadd(builder.fmul(accumulator, a), b)


def _bf16_dot(builder, accumulator, a, b):
    return instruction("dpbf16ps", accumulator.type.count).call(builder, accumulator, a, b)


def _int8_dot(builder, accumulator, a, b):
    """accumulator + a . b; pmaddwd only multiplies, and would leave the loop: accumulator + accumulator . b."""
    kind = cpu.features().int8_dot
    dot = instruction(kind, accumulator.type.count)
    if kind == "pmaddwd":
        return builder.add(accumulator, dot.call(builder, accumulator, b))
    return dot.call(builder, accumulator, a, b)


_repeat_fma = _repeated(F32, _fma)
_repeat_bf16_dot = _repeated(F32, _bf16_dot)
_repeat_int8_dot = _repeated(I32, _int8_dot)


def _read_memory(context, thread, num_threads):
    """Job: read the thread's share of `data`, once."""
    c = carray(_context_at(context), 1)[0]
    steps = c.num_lines // STEP_LINES
    first, end = steps * thread // num_threads, steps * (thread + 1) // num_threads
    if first < end:
        data = c.data + first * STEP_LINES * LINE_BYTES
        _read_lines(data, (end - first) * STEP_LINES, c.prefetch_bytes, c.sink + 2 * LINE_BYTES * thread)


def _multiply_add(context, thread, num_threads):
    c = carray(_context_at(context), 1)[0]
    _repeat_fma(c.rounds, c.operands, c.sink + 2 * LINE_BYTES * thread)


def _multiply_bf16(context, thread, num_threads):
    c = carray(_context_at(context), 1)[0]
    _repeat_bf16_dot(c.rounds, c.operands, c.sink + 2 * LINE_BYTES * thread)


def _multiply_int8(context, thread, num_threads):
    c = carray(_context_at(context), 1)[0]
    _repeat_int8_dot(c.rounds, c.operands, c.sink + 2 * LINE_BYTES * thread)


read_memory = Job(_read_memory)
"""Reads `data` once, split among the threads."""

_ARITHMETIC = {FMA: Job(_multiply_add)}
if cpu.features().bf16_dot:
    _ARITHMETIC[BF16_DOT] = Job(_multiply_bf16)
if cpu.features().int8_dot != "plain":
    _ARITHMETIC[INT8_DOT] = Job(_multiply_int8)
ARITHMETIC = MappingProxyType(_ARITHMETIC)
"""The instructions that this machine has, and the job that repeats each `rounds` times CHAINS on every thread."""

_PRODUCTS_A_LANE = {FMA: 1, BF16_DOT: 2, INT8_DOT: 2 if cpu.features().int8_dot == "pmaddwd" else 4}


def operations_per_round(instruction: str) -> int:
    """Operations of one round of one thread; a multiply-add counts as two."""
    return 2 * CHAINS * cpu.features().vector_floats * _PRODUCTS_A_LANE[instruction]


def instruction_for(dtype: str) -> str:
    """The fastest instruction that this machine has for weights of `dtype`."""
    wanted = {"bfloat16": BF16_DOT, "int8": INT8_DOT, "int4": INT8_DOT}.get(dtype, FMA)
    return wanted if wanted in ARITHMETIC else FMA


def compile_steps() -> list[CompileStep]:
    """What must be compiled before a job of this file can run, apart from the team's own."""
    return [read_memory.step(), *(job.step() for job in ARITHMETIC.values())]
