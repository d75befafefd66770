"""A second process that compiles beside this one: Numba has a lock around compiling, so that threads would take turns.

It is started where something can be kept, several kernels are missing and there is a second core. It gets one step at a
time, keeps the machine code in the store, and asks for the next. Whatever goes wrong with it, this process does what is
left. It ends when this process does, however that ends: it then finds its stdin closed.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llvmlite
import numba
import numpy as np

import nvg
from nvg.runtime import cores
from nvg.runtime.compile_child import READY, Request, store_key
from nvg.runtime.kernel_store import Report
from nvg.runtime.python_child import creation_flags, python_command

if TYPE_CHECKING:
    from nvg.runtime.compile_cache import CompileStep

_FEWEST = 3
"""Steps that are worth a start of half a second."""
_PATIENCE_S = 120.0
"""For its last step, when there is nothing else left to do."""
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.stdin.buffer.readline()); "
    "from nvg.runtime.compile_child import main; main()"
)


class Work:
    """Steps that are to be compiled, each taken once, in order, by whichever process is free. `report` gets a line for
    each, never two at a time."""

    def __init__(self, steps: Sequence[CompileStep], report: Report) -> None:
        self._left = list(steps)
        self._num_steps = len(self._left)
        self._report = report
        self._lock = threading.Lock()

    def take(self, elsewhere: bool = False) -> CompileStep | None:
        """The next step, for a process elsewhere one that it can find; None if there is none."""
        with self._lock:
            for step in self._left:
                if step.source is not None or not elsewhere:
                    number = self._num_steps - len(self._left) + 1
                    self._report(f"compiling {step.name} ({number} of {self._num_steps}) ...")
                    self._left.remove(step)
                    return step
        return None

    def give_back(self, step: CompileStep) -> None:
        """Of what was taken, one that is not done."""
        with self._lock:
            self._left.insert(0, step)

    def __iter__(self) -> Iterator[CompileStep]:
        """Take all that is left."""
        while step := self.take():
            yield step


def is_worthwhile(steps: Sequence[CompileStep]) -> bool:
    """Whether a second process would shorten the compiling of `steps`."""
    return sum(step.source is not None for step in steps) >= _FEWEST and cores.default_threads() > 1


@contextlib.contextmanager
def helper(work: Work) -> Iterator[Callable[[], None]]:
    """A process that takes part in `work` until the block ends. Gives a function that waits until it has done what it
    took; what it hasn't is then in `work` again."""
    process = _start()
    if process is None:
        yield lambda: None
        return
    thread = threading.Thread(target=_serve, args=(process, work), name="nvg-compile-helper", daemon=True)

    def end() -> None:
        process.kill()
        thread.join()

    def wait() -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while thread.is_alive() and time.monotonic() < deadline:
            thread.join(0.2)  # in short turns, because not every platform lets Ctrl-C end a long one
        end()

    try:
        thread.start()
        yield wait
    finally:
        end()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()


def _start() -> Any:
    """The process, a `subprocess.Popen`; None if there can't be one."""
    import subprocess

    command = python_command()
    if command is None:
        return None
    if sys.dont_write_bytecode:
        command.append("-B")
    try:
        return subprocess.Popen(
            [*command, "-c", _PROGRAM], bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, creationflags=creation_flags(),
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError):  # not everybody may start processes
        return None


def _serve(process: Any, work: Work) -> None:
    """Hand out steps until there are none, or the process fails."""
    step = None
    with contextlib.suppress(Exception):  # whatever it was, this process does the rest
        _send(process, _places())
        _send(process, store_key())
        while process.stdout.readline() == READY:
            step = work.take(elsewhere=True)
            if step is None:
                return
            assert step.source is not None
            _send(process, Request(*step.source, step.name))
    if step is not None:
        work.give_back(step)


def _places() -> list[str]:
    """Where the process finds modules: as this one, and what this one found by other means."""
    roots = [str(Path(str(module.__file__)).parents[1]) for module in (nvg, numba, llvmlite, np)]
    return [*(place for place in sys.path if isinstance(place, str)), *roots]


def _send(process: Any, message: object) -> None:
    process.stdin.write(json.dumps(message).encode() + b"\n")
