"""Ctrl-C while work is done that can't be interrupted: Numba compiling, or a C library reading."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from nvg.runtime.interrupts import Stop

_T = TypeVar("_T")
_NAME = "nvg-work"


class _Worker(threading.Thread):
    """Runs a function; keeps what it returned or raised."""

    def __init__(self, function: Callable[[], object]) -> None:
        super().__init__(name=_NAME, daemon=True)
        self._function = function
        self.result: object = None
        self.error: BaseException | None = None
        self.ended = threading.Event()  # what `join` says of a thread is wrong once Ctrl-C came in it (Python 3.11)

    def run(self) -> None:
        try:
            self.result = self._function()
        except BaseException as error:
            self.error = error
        self.ended.set()


def interruptible(function: Callable[[], _T], stop: Stop | None = None) -> _T:
    """What `function()` returns or raises. It runs in a thread of its own, so that Ctrl-C raises KeyboardInterrupt here
    at once; the thread is then left behind. With a `stop` that has something to keep, Ctrl-C asks for the end first."""
    worker = _Worker(function)
    worker.start()
    while not worker.ended.is_set():
        try:
            worker.ended.wait(0.2)  # in short turns, because not every platform lets Ctrl-C end a long one
        except KeyboardInterrupt:
            if stop is None or stop.is_wanted or not stop.has_something:
                raise
            stop.is_wanted = True
    if worker.error is not None:
        raise worker.error
    return worker.result  # type: ignore[return-value]


def is_working() -> bool:
    """Whether work that was left behind still runs: the process must then end without waiting for it."""
    return any(thread.name == _NAME for thread in threading.enumerate())
