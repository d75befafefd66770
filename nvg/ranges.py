"""Checks of a value's type and range, with messages that name it, the value and what is allowed."""

from __future__ import annotations

import math
import numbers

from nvg.errors import ParameterError, shown


def integer(name: str, value: object, low: int, high: int | None = None, note: str = "") -> None:
    """Raise ParameterError unless `value` is an integer from `low` to `high`; `note` explains a special value."""
    good = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not good or value < low or (high is not None and value > high):  # type: ignore[operator]
        allowed = f">= {low}" if high is None else f"from {low} to {high}"
        raise ParameterError(f"{name} is {shown(value)}; it must be an integer {allowed}{note and f' ({note})'}")


def number(name: str, value: object, allowed: str, low: float, high: float, *, open_low: bool = False) -> None:
    """Raise ParameterError unless `value` is a finite number from `low` to `high`, without `low` itself if `open_low`;
    `allowed` says so in words."""
    good = isinstance(value, numbers.Real) and not isinstance(value, bool) and _is_finite(value)
    if not good or not (low < value if open_low else low <= value) or value > high:  # type: ignore[operator]
        kind = "finite number" if isinstance(value, float) and math.isinf(value) else "number"
        raise ParameterError(f"{name} is {shown(value)}; it must be a {kind} {allowed}")


def _is_finite(value: numbers.Real) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False
