"""stdout is for what a command has to say: what plugins print goes to stderr."""

from __future__ import annotations

import contextlib
import os
import sys
from _thread import get_ident
from collections.abc import Iterable, Iterator
from typing import Any


class _CommandOutput:
    """In place of sys.stdout while a command runs. Plugins work in other threads than the command's own, or are loaded
    by it inside of `nvg.foreign.foreign_code`."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._own_thread = get_ident()

    def _target(self) -> Any:
        foreign = sys.modules.get("nvg.foreign")
        is_foreign = get_ident() != self._own_thread or (foreign is not None and foreign.in_foreign_code())
        return sys.stderr if is_foreign else self._stream

    def write(self, text: str) -> int:
        return self._target().write(text)  # type: ignore[no-any-return]

    def writelines(self, lines: Iterable[str]) -> None:
        self._target().writelines(lines)

    def flush(self) -> None:
        self._target().flush()

    @property
    def buffer(self) -> Any:
        return self._target().buffer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def command_output() -> Iterator[None]:
    """Let sys.stdout be the running command's alone."""
    stream, sys.stdout = sys.stdout, _CommandOutput(sys.stdout)  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdout = stream


def own_descriptor() -> None:
    """For the rest of the process let sys.stdout write to a copy of descriptor 1, and that itself be stderr's: what
    does not go through sys.stdout, such as os.write(1, ...) and C code in a plugin, is not the command's output either,
    and can't close it. On a terminal nothing is changed: there both are the same, and 1 tells its width."""
    stream = sys.stdout
    if stream is None or sys.stderr is None:  # closed
        return
    try:
        if stream.fileno() != 1 or stream.isatty():
            return
        copy = os.dup(1)
        os.dup2(2, 1)
    except (OSError, ValueError):
        return
    sys.stdout = open(copy, "w", encoding=stream.encoding, errors=stream.errors)  # noqa: SIM115 (to the end)
