"""What threads use to meet, as compiled code: atomic words of an int64 array, and ways to wait."""

from __future__ import annotations

import sys
import time

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

_I64 = ir.IntType(64)
_I32 = ir.IntType(32)


def _word(context, builder, array_type, array, index):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [index], source_etype=_I64)


@intrinsic
def atomic_add(typingctx, words, index, value):
    """words[index] += value; returns what was there before."""

    def codegen(context, builder, sig, args):
        pointer = _word(context, builder, sig.args[0], args[0], args[1])
        return builder.atomic_rmw("add", pointer, args[2], "seq_cst")

    return types.int64(words, types.int64, types.int64), codegen


@intrinsic
def atomic_load(typingctx, words, index):
    """words[index]"""

    def codegen(context, builder, sig, args):
        pointer = _word(context, builder, sig.args[0], args[0], args[1])
        return builder.load_atomic(pointer, "seq_cst", 8, typ=_I64)

    return types.int64(words, types.int64), codegen


@intrinsic
def atomic_store(typingctx, words, index, value):
    """words[index] = value"""

    def codegen(context, builder, sig, args):
        pointer = _word(context, builder, sig.args[0], args[0], args[1])
        builder.store_atomic(args[2], pointer, "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(words, types.int64, types.int64), codegen


def emit_pause(builder):
    """Write what tells the core that this is a waiting loop."""
    triple, no_result = builder.module.triple, ir.VoidType()
    if triple.startswith(("x86_64", "i686")):
        hint = ir.FunctionType(no_result, [])
        builder.call(cgutils.get_or_insert_function(builder.module, hint, "llvm.x86.sse2.pause"), [])
    elif triple.startswith(("aarch64", "arm64")):
        # a barrier for instructions takes as long as x86's pause; the hint "yield" is over at once
        barrier = ir.FunctionType(no_result, [_I32])
        function = cgutils.get_or_insert_function(builder.module, barrier, "llvm.aarch64.isb")
        builder.call(function, [ir.Constant(_I32, 15)])


@intrinsic
def pause(typingctx):
    """Tell the core that this is a waiting loop."""

    def codegen(context, builder, sig, args):
        emit_pause(builder)
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def yield_core(typingctx):
    """Let another thread have this core: whoever is waited for may need it."""

    def codegen(context, builder, sig, args):
        name = "SwitchToThread" if sys.platform == "win32" else "sched_yield"
        builder.call(cgutils.get_or_insert_function(builder.module, ir.FunctionType(_I32, []), name), [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def nanoseconds(typingctx):
    """A clock that never goes back."""

    def codegen(context, builder, sig, args):
        if sys.platform == "win32":  # which counts in tenths of a microsecond
            now = cgutils.alloca_once(builder, _I64)
            read = ir.FunctionType(_I32, [_I64.as_pointer()])
            builder.call(cgutils.get_or_insert_function(builder.module, read, "QueryPerformanceCounter"), [now])
            return builder.mul(builder.load(now), ir.Constant(_I64, 100))
        now = cgutils.alloca_once(builder, ir.ArrayType(_I64, 2))  # seconds, nanoseconds
        read = ir.FunctionType(_I32, [_I32, now.type])
        clock = ir.Constant(_I32, time.CLOCK_MONOTONIC)
        builder.call(cgutils.get_or_insert_function(builder.module, read, "clock_gettime"), [clock, now])
        seconds, rest = (builder.extract_value(builder.load(now), i) for i in range(2))
        return builder.add(builder.mul(seconds, ir.Constant(_I64, 10**9)), rest)

    return types.int64(), codegen


@intrinsic
def call_job(typingctx, address, job_context, thread, num_threads):
    """Call the job at `address`."""

    def codegen(context, builder, sig, args):
        job_type = ir.FunctionType(ir.VoidType(), [_I64, _I64, _I64])
        builder.call(builder.inttoptr(args[0], job_type.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), codegen
