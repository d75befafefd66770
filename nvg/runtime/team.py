"""A team of threads that runs one job at a time: machine code at an address, the same on every thread.

Between jobs a worker spins for about two milliseconds, in compiled code without the GIL, then parks on a lock: an idle
team costs no CPU. Who waits in vain for some microseconds offers its core to others. The team knows nothing of models.

Teams of one size share their threads (in one process two engines that each had threads for all cores would only be in
each other's way): their jobs take turns.
"""

from __future__ import annotations

import os
import threading
import time
from functools import cache

import numpy as np
from numba.core import types

from nvg.errors import EngineError
from nvg.runtime.atomics import atomic_add, atomic_load, atomic_store, call_job, pause, yield_core
from nvg.runtime.compile_cache import CompileStep, function_step, njit
from nvg.runtime.placement import MASK_WORDS, current_cpu, move_apart
from nvg.runtime.turns import Turns

# Words of the threads' control block. Words that different threads write are a cache line (8 words) apart.
SEQUENCE, DONE, JOB, CONTEXT, NUM_THREADS, CROWDED, PARKED = 0, 8, 16, 17, 18, 24, 32  # PARKED: a word for each thread
PARK_AFTER_S = 2e-3
YIELD_AFTER_S = 20e-6
"""Longer than threads wait for each other on cores of their own: a core that is offered may be gone for a while."""
_PAUSES_PER_YIELD = 32

# Words of a job's meeting point (see `barrier`).
ARRIVED, GENERATION, ABORT, PATIENCE, NEXT_UNIT = 0, 8, 16, 17, 24
MEETING_WORDS = 32


@njit
def barrier(meeting, num_threads):
    """Wait until all threads of the job are here. True if the job was aborted: leave at once.

    No thread can hang: one that saw the abort earlier and left is not waited for, because waiting looks at the word.
    meeting[PATIENCE]: how many pauses a thread waits before it offers its core to others, `Team.patience`.
    """
    if num_threads > 1:
        generation = atomic_load(meeting, GENERATION)
        if atomic_add(meeting, ARRIVED, 1) == num_threads - 1:
            atomic_store(meeting, ARRIVED, 0)
            atomic_add(meeting, GENERATION, 1)
        else:
            patience = meeting[PATIENCE]
            while atomic_load(meeting, GENERATION) == generation:
                if patience > 0:
                    pause()
                    patience -= 1
                else:
                    if atomic_load(meeting, ABORT) != 0:
                        return True
                    yield_core()
    return atomic_load(meeting, ABORT) != 0


@njit(cached=True)
def _pauses(number):
    """Wait for so many pauses."""
    for _ in range(number):
        pause()


@njit(cached=True)
def _work(control, cpus, masks, thread, seen, spins_before_parking):
    """Run jobs until none came for a while; returns the number of the last one, or -1 when the team closes."""
    is_crowded = False
    while True:
        spins = 0
        while atomic_load(control, SEQUENCE) == seen:
            pause()
            spins += 1
            if is_crowded and spins % _PAUSES_PER_YIELD == 0:  # whoever is to give the next job may wait for this core
                yield_core()
            if spins > spins_before_parking:
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
        is_crowded = move_apart(cpus, thread, num_threads, masks, 2 * MASK_WORDS * thread)
        if is_crowded:
            atomic_add(control, CROWDED, 1)
        call_job(job, atomic_load(control, CONTEXT), thread, num_threads)
        atomic_add(control, DONE, 1)


@njit(cached=True)
def _publish(control, cpus, job, context, num_threads):
    """Give the job to the workers; True if one of them is parked and must be woken."""
    cpus[0] = current_cpu()
    atomic_store(control, JOB, job)
    atomic_store(control, CONTEXT, context)
    atomic_store(control, NUM_THREADS, num_threads)
    atomic_store(control, CROWDED, 0)
    atomic_store(control, DONE, 0)
    atomic_add(control, SEQUENCE, 1)
    for thread in range(1, num_threads):  # noqa: SIM110 (compiled code)
        if atomic_load(control, PARKED + thread) != 0:
            return True
    return False


@njit(cached=True)
def _run_own_part(control, job, context, num_threads, patience):
    """Run the caller's part as thread 0 and wait for the others."""
    call_job(job, context, 0, num_threads)
    while atomic_load(control, DONE) < num_threads - 1:
        if patience > 0:
            pause()
            patience -= 1
        else:
            yield_core()


def compile_steps() -> list[CompileStep]:
    """What must be compiled before the first job can run."""
    words, int64 = types.Array(types.int64, 1, "C"), types.int64
    return [
        function_step(_pauses, (int64,)),
        function_step(_work, (words, words, words, int64, int64, int64)),
        function_step(_publish, (words, words, int64, int64, int64)),
        function_step(_run_own_part, (words, int64, int64, int64, int64)),
    ]


@cache
def _pause_s() -> float:
    """Seconds of a pause: 3 ns to 50 ns on one CPU or another."""
    number, seconds = 1_000, []
    for _ in range(5):  # the shortest: any of them may be interrupted
        start = time.perf_counter()
        _pauses(number)
        seconds.append(time.perf_counter() - start)
    return min(seconds) / number


class _Threads:
    """`num_threads` threads, one of them the caller of `run`; and who uses them."""

    def __init__(self, num_threads: int) -> None:
        self.num_users = 0
        self.turns = Turns()
        self._num_threads = num_threads
        self._control = np.zeros(PARKED + num_threads, np.int64)
        self._cpus = np.full(num_threads, -1, np.int64)  # where each thread was last seen
        self._masks = np.zeros(2 * MASK_WORDS * num_threads, np.int64)  # each thread's room for affinity masks
        self._wake = [threading.Event() for _ in range(num_threads)]
        self._patience = int(YIELD_AFTER_S / _pause_s())
        self._threads = [
            threading.Thread(target=self._worker, args=(thread,), name=f"nvg-{thread}", daemon=True)
            for thread in range(1, num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def _worker(self, thread: int) -> None:
        seen = 0
        spins = int(PARK_AFTER_S / _pause_s())
        while (seen := _work(self._control, self._cpus, self._masks, thread, seen, spins)) >= 0:
            self._wake[thread].wait()
            self._wake[thread].clear()
            self._control[PARKED + thread] = 0

    @property
    def patience(self) -> int:
        """Pauses before a waiting thread offers its core to others: none where threads share one."""
        return 0 if self._control[CROWDED] else self._patience

    def run(self, job: int, context: int) -> None:
        """Run a job; for one caller at a time."""
        patience, number, are_parked = self.patience, self._control[SEQUENCE], True
        try:
            are_parked = _publish(self._control, self._cpus, job, context, self._num_threads)
        finally:  # Ctrl-C may come in between, and the others wait in the job
            if self._control[SEQUENCE] != number:
                if are_parked:
                    self._wake_parked()
                _run_own_part(self._control, job, context, self._num_threads, patience)

    def _wake_parked(self) -> None:
        for thread in range(1, self._num_threads):
            if self._control[PARKED + thread]:
                self._wake[thread].set()

    def end(self) -> None:
        """End the workers."""
        _publish(self._control, self._cpus, 0, 0, self._num_threads)
        self._wake_parked()
        for thread in self._threads:
            thread.join()


class _Sizes:
    """The threads of this process by their number."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads: dict[int, _Threads] = {}

    def take(self, num_threads: int) -> _Threads:
        """Threads to share, which must be given back."""
        if num_threads == 1:
            return _Threads(1)  # callers' own: there is nobody to share
        with self._lock:
            if num_threads not in self._threads:
                self._threads[num_threads] = _Threads(num_threads)
            threads = self._threads[num_threads]
            threads.num_users += 1
            return threads

    def give_back(self, num_threads: int, threads: _Threads) -> None:
        """The last of the users ends them."""
        if num_threads == 1:
            return
        with self._lock:
            threads.num_users -= 1
            if threads.num_users:
                return
            del self._threads[num_threads]
        threads.end()


_sizes = _Sizes()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_sizes.__init__)  # type: ignore[misc] # a fork has none of the threads


class Team:
    """`num_threads` threads, the caller of `run` being one of them, that other teams may use in turns."""

    def __init__(self, num_threads: int) -> None:
        self.num_threads = num_threads
        self._process = os.getpid()
        self._closed = False
        self._threads = _sizes.take(num_threads)

    @property
    def patience(self) -> int:
        """What a job's `meeting[PATIENCE]` should be."""
        return self._threads.patience

    def run(self, job: int, context: int) -> None:
        """Run the job at address `job` with `context` on all threads; returns when all have finished.

        Waits until the jobs of others that came before have ended. Raises EngineError after `close`, and in a forked
        child.
        """
        if os.getpid() != self._process:
            raise EngineError("these threads were made before a fork and are not here: load the model in the child")
        with self._threads.turns:
            if self._closed:
                raise EngineError("the team of threads is closed; make a new one")
            self._threads.run(job, context)

    def close(self) -> None:
        """Wait for a job that runs and leave the threads to other teams; the last one ends them."""
        if os.getpid() != self._process:
            return
        with self._threads.turns:
            is_first, self._closed = not self._closed, True
        if is_first:
            _sizes.give_back(self.num_threads, self._threads)
