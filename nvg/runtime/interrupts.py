"""Ctrl-C where it would leave something half done, or lose what is done."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any


@dataclass
class Stop:
    """How work that is done piece by piece is asked to end early, with what there is."""

    is_wanted: bool = False
    has_something: bool = False
    """Set by the work when there is something to keep."""


class HeldInterrupt:
    """Used in a `with` on the main thread, holds SIGINT back until `deliver`, at the latest until the end; a second one
    is not held. Elsewhere it does nothing: Python runs handlers in the main thread.
    """

    def __init__(self) -> None:
        self._handler: Callable[[int, FrameType | None], Any] | None = None  # while it is replaced
        self._held: tuple[int, FrameType | None] | None = None

    def __enter__(self) -> HeldInterrupt:
        if threading.current_thread() is threading.main_thread():
            handler = signal.getsignal(signal.SIGINT)
            if callable(handler):
                with contextlib.suppress(ValueError):  # another interpreter than the main one has no signals
                    signal.signal(signal.SIGINT, self._hold)
                    self._handler = handler
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.deliver()

    def deliver(self) -> None:
        """Hold back no more, and do what would have been done."""
        handler, self._handler = self._handler, None
        if handler is None:
            return
        signal.signal(signal.SIGINT, handler)
        held, self._held = self._held, None
        if held is not None:
            handler(*held)

    def _hold(self, number: int, frame: FrameType | None) -> None:
        if self._held is not None:
            self.deliver()
        else:
            self._held = number, frame
