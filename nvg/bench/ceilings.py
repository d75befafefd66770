"""The machine's ceilings, measured beside the work: the rates at which a team reads memory and multiplies."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from nvg.kernels import roofline
from nvg.kernels.roofline import LINE_BYTES, ROOFLINE_CONTEXT, STEP_LINES
from nvg.runtime import cores
from nvg.runtime import team as team_module
from nvg.runtime.compile_cache import prepare
from nvg.runtime.team import Team

_LEAST_BYTES = 2**28
_PREFETCH_BYTES = (0, 512, 1024, 4096)  # which is best depends on the machine
_PASSES = 3
_READ_PASSES = 8
"""In each way of reading, of which the mean counts: a virtual machine's memory changes by several per cent within
milliseconds, and what decode reads in many steps is not to be held against the best moment."""
_ROUNDS = 1_000_000  # a few milliseconds


def buffer_bytes() -> int:
    """How much is read: far more than the caches hold, at most half of the memory that is free."""
    wanted = max(_LEAST_BYTES, 4 * cores.last_level_cache_bytes())
    free = cores.available_memory()
    return min(wanted, free // 2) if free else wanted


class Ceilings:
    """Measures what `num_threads` threads can do at most. Close it; it holds threads and `num_bytes` of memory."""

    def __init__(self, num_threads: int, num_bytes: int) -> None:
        prepare([*team_module.compile_steps(), *roofline.compile_steps()])  # takes less than a second: not reported
        step = STEP_LINES * LINE_BYTES
        self._num_bytes = max(1, num_bytes // step) * step
        self._data = _aligned(self._num_bytes)
        self._data.fill(1)  # memory that was never written is one page of zeros
        self._operands = _aligned(2 * LINE_BYTES)
        self._operands.view(np.float32)[:] = np.linspace(0.5, 0.9, LINE_BYTES // 2, dtype=np.float32)
        self._sink = _aligned(2 * LINE_BYTES * num_threads)
        self._context = np.zeros(1, ROOFLINE_CONTEXT)
        self._context[0] = (
            self._data.ctypes.data, self._num_bytes // LINE_BYTES, 0, _ROUNDS,
            self._operands.ctypes.data, self._sink.ctypes.data,
        )  # fmt: skip
        self._team = Team(num_threads)

    def read_bytes_s(self) -> float:
        """Bytes a second that all threads together read from memory in the best of some ways, over some passes."""
        best = 0.0
        for prefetch_bytes in _PREFETCH_BYTES:
            self._context["prefetch_bytes"] = prefetch_bytes
            seconds = sum(self._seconds(roofline.read_memory) for _ in range(_READ_PASSES))
            best = max(best, _READ_PASSES * self._num_bytes / seconds)
        return best

    def operations_s(self, instruction: str) -> float:
        """Operations a second of all threads together, of one of `nvg.kernels.roofline.ARITHMETIC`; a multiply-add
        counts as two."""
        operations = _ROUNDS * roofline.operations_per_round(instruction) * self._team.num_threads
        return operations / self._shortest(roofline.ARITHMETIC[instruction])

    def close(self) -> None:
        """End the threads and free the memory."""
        self._team.close()
        self._data = np.empty(0, np.uint8)

    def _shortest(self, job: Any) -> float:
        """Seconds of the fastest of some runs."""
        return min(self._seconds(job) for _ in range(_PASSES))

    def _seconds(self, job: Any) -> float:
        start = time.perf_counter()
        self._team.run(job.address, self._context.ctypes.data)
        return time.perf_counter() - start


@contextmanager
def ceilings(num_threads: int) -> Iterator[Ceilings]:
    """Ceilings with a buffer of `buffer_bytes`, closed in the end."""
    made = Ceilings(num_threads, buffer_bytes())
    try:
        yield made
    finally:
        made.close()


def _aligned(num_bytes: int) -> npt.NDArray[np.uint8]:
    """Bytes whose address is a multiple of 64."""
    buffer = np.zeros(num_bytes + LINE_BYTES, np.uint8)
    start = -buffer.ctypes.data % LINE_BYTES
    return buffer[start : start + num_bytes]
