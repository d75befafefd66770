"""Limits for a chat template, which is a program that comes with a checkpoint: of time, of memory, and of what a single
call or operator could make before anybody looks."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable
from itertools import chain
from types import FrameType
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment

MOST_S, MOST_BYTES = 10.0, 2**29
_MOST = 10**6
"""The largest number that may say how long something gets, and the most characters that one operation may make."""
_LARGE_NUMBER = re.compile(r"\d{7}")
_LOOK_EVERY_S = 1e-3
_PADDING_FILTERS = ("batch", "center", "indent", "slice", "wordwrap")
_GROWING_FILTERS = ("format", "join", "replace")
_TEMPLATE = "<template>"  # what Jinja calls the file of one that is made from a string


class LimitError(Exception):
    """A template takes too much."""


class LimitedEnvironment(ImmutableSandboxedEnvironment):  # type: ignore[misc]
    """Jinja's sandbox, without operators and calls that make a long text of a short one and a number."""

    intercepted_binops = frozenset(("*", "**", "%"))

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name in _PADDING_FILTERS + _GROWING_FILTERS:
            self.filters[name] = _limited(name, self.filters[name])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Run an operator."""
        sizes = [len(side) if hasattr(side, "__len__") else side for side in (left, right)]
        if operator == "**":
            _check_numbers([left, right])
        elif operator == "%" and isinstance(left, str):
            _check_format(left, right if isinstance(right, tuple) else (right,))
        elif operator == "*" and sizes != [left, right]:
            _check_size(sizes[0] * sizes[1])
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, called: Any, /, *arguments: Any, **named: Any) -> Any:
        """Call what the template calls."""
        method = getattr(called, "__wrapped__", called)  # str.format comes wrapped
        text = getattr(method, "__self__", None)
        if isinstance(text, str):
            _check_growth(method.__name__, text, *arguments, **named)
        _check_numbers([*arguments, *named.values()])
        return super().call(context, called, *arguments, **named)


def rendered(render: Callable[..., str], **variables: Any) -> str:
    """What a template's `render` gives. Raises LimitError if it takes more than MOST_S seconds or MOST_BYTES of memory:
    each line of its program is watched."""
    end, most_bytes = time.monotonic() + MOST_S, _resident_bytes() + MOST_BYTES
    next_look = 0.0

    def watch(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal next_look
        now = time.monotonic()
        if now > end:
            raise LimitError(f"it takes more than {MOST_S:g} s")
        if now > next_look:
            next_look = now + _LOOK_EVERY_S
            if _resident_bytes() > most_bytes:
                raise LimitError(f"it takes more than {MOST_BYTES >> 20} MiB of memory")
        return watch

    def enter(frame: FrameType, event: str, argument: Any) -> Any:
        return watch if frame.f_code.co_filename == _TEMPLATE else None

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        return render(**variables)
    finally:
        sys.settrace(before)


def _limited(name: str, filter_function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, but that it refuses what would get long. Jinja reads from attributes what it wants to be given."""

    def limited(*arguments: Any, **named: Any) -> Any:
        given = [value for value in arguments if not hasattr(value, "eval_ctx") and not hasattr(value, "volatile")]
        _check_growth(name, *given, **named)
        _check_numbers([*given, *named.values()])
        return filter_function(*arguments, **named)

    limited.__dict__.update(vars(filter_function))
    return limited


def _check_growth(name: str, text: Any = "", *arguments: Any, **named: Any) -> None:
    """Of a method or filter on a text; `join` may also be a filter on a list."""
    values = [*arguments, *named.values()]
    if name == "replace" and len(values) > 1:
        old, new = (str(value) for value in values[:2])
        _check_size(str(text).count(old) * len(new))
    elif name == "join":
        lists = [value for value in (text, *values) if isinstance(value, (list, tuple))]
        separators = [value for value in (text, *values) if isinstance(value, str)]
        _check_size(sum(len(str(item)) for item in chain(*lists)) + sum(map(len, lists)) * sum(map(len, separators)))
    elif name in ("format", "format_map"):
        _check_format(str(text), (*arguments, *named.values()))


def _check_format(layout: str, values: tuple[Any, ...]) -> None:
    if _LARGE_NUMBER.search(layout):
        raise LimitError(f"it formats with a number beyond {_MOST}")
    if "*" in layout or "{" in layout:  # a value may be a width
        _check_numbers(list(values))


def _check_numbers(values: list[Any]) -> None:
    if any(isinstance(value, int) and abs(value) > _MOST for value in values):
        raise LimitError(f"it computes with a number beyond {_MOST}")


def _check_size(size: int) -> None:
    if size > _MOST:
        raise LimitError(f"it makes a text or list of more than {_MOST} items at once")


def _resident_bytes() -> int:
    """Memory of this process; 0 where the system does not tell in this way."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        return 0
