"""A thread's share of the interpreter, beside others that run pure Python."""

from __future__ import annotations

import sys

_INTERVAL_S = 0.0005


class GilShare:
    """Lets a thread that comes back from compiled code wait half a millisecond at most for the interpreter.

    Python hands the interpreter over after `sys.getswitchinterval()`, 5 ms unless somebody has set it: a whole step of
    a small model. The interval belongs to the process, so it is shortened while there is work and then put back.
    """

    def __init__(self) -> None:
        self._before: float | None = None

    def claim(self) -> None:
        """Shorten the interval, if it is not short."""
        interval = sys.getswitchinterval()
        if interval > _INTERVAL_S:
            self._before = interval
            sys.setswitchinterval(_INTERVAL_S)

    def give_up(self) -> None:
        """Put back what `claim` has changed, unless others have changed it since."""
        if self._before is not None:
            if abs(sys.getswitchinterval() - _INTERVAL_S) < 1e-6:
                sys.setswitchinterval(self._before)
            self._before = None
