"""Ctrl-C while work is done that can't be interrupted: Numba compiling, or a C library reading."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")
_NAME = "nvg-work"


class _Worker(threading.Thread):
    """Runs a function; keeps what it returned or raised."""

    def __init__(self, function: Callable[[], object]) -> None:
        super().__init__(name=_NAME, daemon=True)
        self._function = function
        self.result: object = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self._function()
        except BaseException as error:
            self.error = error


def interruptible(function: Callable[[], _T]) -> _T:
    """What `function()` returns or raises. It runs in a thread of its own, so that Ctrl-C raises KeyboardInterrupt here
    at once; the thread is then left behind."""
    worker = _Worker(function)
    worker.start()
    while worker.is_alive():
        worker.join(0.2)  # in short turns, because not every platform lets Ctrl-C end a long one
    if worker.error is not None:
        raise worker.error
    return worker.result  # type: ignore[return-value]


def is_working() -> bool:
    """Whether work that was left behind still runs: the process must then end without waiting for it."""
    return any(thread.name == _NAME for thread in threading.enumerate())
