"""A team of threads that runs one job at a time: machine code at an address, the same on every thread.

Between jobs a worker spins for about two milliseconds, in compiled code without the GIL, then parks on a lock: an idle
team costs no CPU. The team knows nothing of models.
"""

from __future__ import annotations

import threading

import numpy as np
from numba.core import types

from nvg.runtime.atomics import atomic_add, atomic_load, atomic_store, call_job, pause, yield_core
from nvg.runtime.compile_cache import CompileStep, function_step, njit
from nvg.runtime.placement import MASK_WORDS, current_cpu, move_apart

# Words of a team's control block. Words that different threads write are a cache line (8 words) apart.
SEQUENCE, DONE, JOB, CONTEXT, NUM_THREADS, PARKED = 0, 8, 16, 17, 18, 24  # PARKED: a word for each thread
SPINS_BEFORE_PARKING = 50_000
SPINS_BEFORE_YIELDING = 2_000

# Words of a job's meeting point (see `barrier`).
ARRIVED, GENERATION, ABORT, NEXT_UNIT = 0, 8, 16, 24
MEETING_WORDS = 32


@njit
def barrier(meeting, num_threads):
    """Wait until all threads of the job are here. True if the job was aborted: leave at once.

    No thread can hang: one that saw the abort earlier and left is not waited for, because waiting looks at the word.
    """
    if num_threads > 1:
        generation = atomic_load(meeting, GENERATION)
        if atomic_add(meeting, ARRIVED, 1) == num_threads - 1:
            atomic_store(meeting, ARRIVED, 0)
            atomic_add(meeting, GENERATION, 1)
        else:
            spins = 0
            while atomic_load(meeting, GENERATION) == generation:
                pause()
                spins += 1
                if spins > SPINS_BEFORE_YIELDING:
                    if atomic_load(meeting, ABORT) != 0:
                        return True
                    yield_core()
    return atomic_load(meeting, ABORT) != 0


@njit(cached=True)
def _work(control, cpus, masks, thread, seen):
    """Run jobs until none came for a while; returns the number of the last one, or -1 when the team closes."""
    while True:
        spins = 0
        while atomic_load(control, SEQUENCE) == seen:
            pause()
            spins += 1
            if spins > SPINS_BEFORE_PARKING:
                atomic_store(control, PARKED + thread, 1)
                if atomic_load(control, SEQUENCE) == seen:
                    return seen
                atomic_store(control, PARKED + thread, 0)
                spins = 0
        seen += 1
        job = atomic_load(control, JOB)
        if job == 0:
            return -1
        num_threads = atomic_load(control, NUM_THREADS)
        move_apart(cpus, thread, num_threads, masks, 2 * MASK_WORDS * thread)
        call_job(job, atomic_load(control, CONTEXT), thread, num_threads)
        atomic_add(control, DONE, 1)


@njit(cached=True)
def _publish(control, cpus, job, context, num_threads):
    """Give the job to the workers; True if one of them is parked and must be woken."""
    cpus[0] = current_cpu()
    atomic_store(control, JOB, job)
    atomic_store(control, CONTEXT, context)
    atomic_store(control, NUM_THREADS, num_threads)
    atomic_store(control, DONE, 0)
    atomic_add(control, SEQUENCE, 1)
    for thread in range(1, num_threads):  # noqa: SIM110 (compiled code)
        if atomic_load(control, PARKED + thread) != 0:
            return True
    return False


@njit(cached=True)
def _run_own_part(control, job, context, num_threads):
    """Run the caller's part as thread 0 and wait for the others."""
    call_job(job, context, 0, num_threads)
    spins = 0
    while atomic_load(control, DONE) < num_threads - 1:
        pause()
        spins += 1
        if spins > SPINS_BEFORE_YIELDING:
            yield_core()


def compile_steps() -> list[CompileStep]:
    """What must be compiled before the first job can run."""
    words, int64 = types.Array(types.int64, 1, "C"), types.int64
    return [
        function_step(_work, (words, words, words, int64, int64)),
        function_step(_publish, (words, words, int64, int64, int64)),
        function_step(_run_own_part, (words, int64, int64, int64)),
    ]


class Team:
    """`num_threads` threads, the caller of `run` being one of them."""

    def __init__(self, num_threads: int) -> None:
        self.num_threads = num_threads
        self._control = np.zeros(PARKED + num_threads, np.int64)
        self._cpus = np.full(num_threads, -1, np.int64)  # where each thread was last seen
        self._masks = np.zeros(2 * MASK_WORDS * num_threads, np.int64)  # each thread's room for affinity masks
        self._wake = [threading.Event() for _ in range(num_threads)]
        self._busy = threading.Lock()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._worker, args=(thread,), name=f"nvg-{thread}", daemon=True)
            for thread in range(1, num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def _worker(self, thread: int) -> None:
        seen = 0
        while (seen := _work(self._control, self._cpus, self._masks, thread, seen)) >= 0:
            self._wake[thread].wait()
            self._wake[thread].clear()
            self._control[PARKED + thread] = 0

    def _publish(self, job: int, context: int) -> None:
        if _publish(self._control, self._cpus, job, context, self.num_threads):
            for thread in range(1, self.num_threads):
                if self._control[PARKED + thread]:
                    self._wake[thread].set()

    def run(self, job: int, context: int) -> None:
        """Run the job at address `job` with `context` on all threads; returns when all have finished."""
        with self._busy:
            self._publish(job, context)
            _run_own_part(self._control, job, context, self.num_threads)

    def close(self) -> None:
        """End the workers."""
        with self._busy:
            if not self._closed:
                self._closed = True
                self._publish(0, 0)
        for thread in self._threads:
            thread.join()
