"""Whether a sampler's options say what they are, and refuse what they can't be."""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping
from typing import Any

from nvg.errors import NvgError, cause, fault
from nvg.plugins import Entry
from nvg.sampling.options import Option, make_spec, options_of, summary
from nvg.testing.results import ViolationError
from nvg.testing.rows import SequenceRun, few_rows, whole_rows
from nvg.tokenizers.bytes import BytesTokenizer

_NUMBERS: Mapping[Any, tuple[Any, ...]] = {
    float: (-1.0, -0.0, 0.0, 1e-30, 0.5, 1.0, 2.0, 1e30, math.inf, -math.inf),
    int: (-1, 0, 1, 2, 100, 2**31, 2**63),
    bool: (False, True),
    type(None): (None,),
}


def check_options(entry: Entry, options: Mapping[str, Any]) -> str:
    """The class and each option are documented; a value is refused with ValueError, or it works."""
    spec_class = entry.load()
    listed = options_of(spec_class)
    if not summary(spec_class):
        raise ViolationError(f"{spec_class.__name__} has no docstring; say in a sentence what it does, and its source")
    num_refused = num_taken = 0
    for option in listed:
        if not option.help:
            raise ViolationError(
                f"option {option.name} is not explained; write a line in the class docstring, "
                f'"{option.name}: what it is; its range; what turns it off"'
            )
        values = _values(option)
        if float in option.types and hasattr(spec_class, "__post_init__"):
            _must_refuse(entry, options, option, math.nan)
        elif float in option.types:  # it states no range: NaN may do no harm, as in `state.uniform() < self.chance`
            values.append(math.nan)
        for value in values:
            if _is_refused(entry, {**options, option.name: value}, option, value):
                num_refused += 1
            else:
                num_taken += 1
                _must_work(entry, {**options, option.name: value}, f"{option.name}={value!r}")
    if not listed:
        return "it has none"
    names = ", ".join(option.name for option in listed)
    return f"{names}: of {num_refused + num_taken} values {num_refused} refused, {num_taken} work"


def _values(option: Option) -> list[Any]:
    values: list[Any] = []
    for kind in option.types:
        values += typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else _NUMBERS.get(kind, ())
    return values


def _must_refuse(entry: Entry, options: Mapping[str, Any], option: Option, value: Any) -> None:
    if not _is_refused(entry, {**options, option.name: value}, option, value):
        raise ViolationError(
            f"{option.name}={value!r} is taken; raise ValueError in __post_init__ for what is outside the range (NaN "
            "is unequal to itself: write `if not low <= value <= high`)"
        )


def _is_refused(entry: Entry, options: Mapping[str, Any], option: Option, value: Any) -> bool:
    """Whether the class raises ValueError for the value; raises ViolationError if that doesn't name the option."""
    spec_class = entry.load()
    try:
        spec_class(**options)
    except ValueError as error:
        message = str(error)
        if option.name not in message or "\n" in message:
            raise ViolationError(
                f"{option.name}={value!r} is refused with {message!r}; say in one line the option's name, the value "
                "and the allowed range"
            ) from None
        return True
    except Exception as error:
        raise ViolationError(
            f"{option.name}={value!r} raises {cause(error)}; raise ValueError with the option's "
            "name, the value and the allowed range"
        ) from None
    return False


def _must_work(entry: Entry, options: Mapping[str, Any], what: str) -> None:
    loose = bool(getattr(entry.load(), "may_remove_all", False))
    try:
        spec = make_spec(entry.name, entry.origin, entry.load(), options)
        size = BytesTokenizer.vocab_size
        for row in [*whole_rows(size), *([] if getattr(spec, "needs_vocab", False) else few_rows(size))]:
            SequenceRun(spec, BytesTokenizer()).apply(row, may_remove_all=loose)
    except (ViolationError, NvgError) as error:
        raise ViolationError(f"with {what}, {error}; or refuse the value") from None
    except Exception as error:
        raise ViolationError(f"with {what}, it raised {fault(error)}; or refuse the value") from None
