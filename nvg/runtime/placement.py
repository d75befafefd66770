"""Which core a thread runs on, as compiled code; Linux only, elsewhere nothing is known and nothing done.

Threads that meet at barriers every few microseconds and share one core wait a scheduler's turn at each of them, and the
scheduler, seeing both run all the time, may leave them there for seconds while another core idles.
"""

from __future__ import annotations

import sys

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from nvg.runtime.compile_cache import njit

MASK_WORDS = 16  # 1,024 CPUs, as many as glibc's cpu_set_t has
_I32, _I64 = ir.IntType(32), ir.IntType(64)
_IS_LINUX = sys.platform == "linux"


@intrinsic
def current_cpu(typingctx):
    """The number of the CPU that this thread runs on; -1 where it is not known."""

    def codegen(context, builder, sig, args):
        if not _IS_LINUX:
            return ir.Constant(_I64, -1)
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_I32, []), "sched_getcpu")
        return builder.sext(builder.call(function, []), _I64)

    return types.int64(), codegen


def _affinity_call(name):
    @intrinsic
    def call(typingctx, words, offset):
        def codegen(context, builder, sig, args):
            if not _IS_LINUX:
                return ir.Constant(_I64, -1)
            data = context.make_array(sig.args[0])(context, builder, args[0]).data
            mask = builder.gep(data, [args[1]], source_etype=_I64)
            function_type = ir.FunctionType(_I32, [_I32, _I64, mask.type])
            function = cgutils.get_or_insert_function(builder.module, function_type, name)
            result = builder.call(function, [ir.Constant(_I32, 0), ir.Constant(_I64, 8 * MASK_WORDS), mask])
            return builder.sext(result, _I64)

        return types.int64(words, types.int64), codegen

    return call


_get_affinity = _affinity_call("sched_getaffinity")  # 0 if it could, else -1; of the calling thread
_set_affinity = _affinity_call("sched_setaffinity")


@njit
def move_apart(cpus, thread, num_threads, masks, offset):
    """Move the calling thread to another core if one of the threads below it is on the same one; True if it must stay.

    cpus[t]: the CPU that thread t was last seen on; cpus[thread] is written. masks[offset : offset + 2 * MASK_WORDS]
    is overwritten. The affinity mask is afterwards what it was.
    """
    own = current_cpu()
    cpus[thread] = own
    is_shared = False
    for other in range(thread):
        is_shared = is_shared or (own >= 0 and cpus[other] == own)
    if not is_shared or _get_affinity(masks, offset) != 0:
        return is_shared
    kept = offset + MASK_WORDS
    for word in range(MASK_WORDS):
        masks[kept + word] = masks[offset + word]
    for other in range(num_threads):
        cpu = cpus[other]
        if 0 <= cpu < 64 * MASK_WORDS:
            masks[offset + cpu // 64] &= ~(np.int64(1) << (cpu % 64))
    room = np.int64(0)
    for word in range(MASK_WORDS):
        room |= masks[offset + word]
    if room == 0 or _set_affinity(masks, offset) != 0:
        return True
    _set_affinity(masks, kept)
    cpus[thread] = current_cpu()
    return False
