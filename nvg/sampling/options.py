"""The options of a sampler: the fields of its spec class, with names, types, defaults and help.

A spec is a dataclass with a method `apply`. A bare annotated field is an option already; its help is the line of the
class docstring that begins with the field's name and a colon:

    @dataclass(frozen=True)
    class TopA:
        '''Keep tokens whose probability is at least a times the square of the largest.

        a: from 0 to 1; 0 means all
        '''
        a: float = 0.2

Types are int, float, bool, str, None, `Literal`, unions of these, `tuple[X, ...]` and `Mapping[X, Y]`. On the command
line and in files the last two are JSON, where a float may also be inf, -inf and "-inf". A text that does not begin with
"[" is a list of the texts between its commas; for a list of lists it is one item.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import numbers
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union

from nvg.errors import ParameterError, PluginError, cause
from nvg.foreign import location
from nvg.plugins import is_sampler, unknown_name

REQUIRED = dataclasses.MISSING
"""The default of an option that has none."""

_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")
# A text of JSON, which stays as it is, or a bare inf or -inf.
_INFINITE = re.compile(r'("(?:[^"\\]|\\.)*")|(-?)\binf\b')


@dataclass(frozen=True)
class Option:
    """One option of a sampler."""

    name: str
    types: tuple[Any, ...]
    """What a value may be: int, float, bool, str, NoneType, and as they are written `Literal[...]`, `tuple[..., ...]`
    and `Mapping[...]`; empty means that nvg does not check it, and that text can't set it."""
    default: Any
    """`REQUIRED` where there is none."""
    help: str

    @property
    def type_name(self) -> str:
        """How messages and listings write the type: "float", "int or none", "'a' or 'b'"."""
        return " or ".join(_type_name(kind) for kind in self.types) or "object"

    def parse(self, text: str) -> Any:
        """The value that `text` means. Raises ValueError."""
        for kind in self.types:
            try:
                return _parse(kind, text)
            except ValueError:
                continue
        raise ValueError(text)

    def convert(self, value: Any) -> Any:
        """`value` as one of the option's types: an int is taken for a float. Raises ValueError."""
        if not self.types:
            return value
        for kind in self.types:
            try:
                return _convert(kind, value)
            except ValueError:
                continue
        raise ValueError(value)


def options_of(spec_class: type) -> tuple[Option, ...]:
    """The options of a spec class, in the order of its fields. Raises PluginError if it is no spec class."""
    if not isinstance(spec_class, type):
        raise PluginError(f"{spec_class!r} is no sampler: it is not a class; a sampler is a dataclass with apply")
    title = location(spec_class)
    if not is_sampler(spec_class):
        raise PluginError(f"{title} is no sampler: it has no method apply(logits, token_ids, state)")
    if not dataclasses.is_dataclass(spec_class):
        raise PluginError(
            f"{title} is no sampler: it is not a dataclass; write @dataclass(frozen=True) above the class"
        )
    annotations = _annotations(spec_class)
    documentation = inspect.getdoc(spec_class) or ""
    return tuple(
        Option(field.name, _types(annotations.get(field.name)), _default(field), _help(documentation, field.name))
        for field in dataclasses.fields(spec_class)
        if field.init
    )


def summary(spec_class: type) -> str:
    """The first paragraph of the class docstring, in one line; "" where there is none."""
    if not spec_class.__doc__ or spec_class.__doc__.startswith(f"{spec_class.__name__}("):  # made by dataclass
        return ""
    return " ".join(inspect.cleandoc(spec_class.__doc__).split("\n\n")[0].split())


def parse_option(sampler: str, spec_class: type, name: str, text: str) -> Any:
    """The value of `-o name=text`. Raises UnknownNameError or ParameterError."""
    option = _find(sampler, options_of(spec_class), name)
    if not option.types:
        raise ParameterError(f"sampler {sampler!r}: option {name!r} can't be given as text; use Python or JSON")
    try:
        return option.parse(text)
    except ValueError:
        raise ParameterError(_bad_value(sampler, option, text)) from None


def make_spec(sampler: str, origin: str, spec_class: type, values: Mapping[str, Any]) -> Any:
    """`spec_class(**values)`, with one-line errors that name the sampler.

    Raises UnknownNameError for an option that does not exist, ParameterError for a value of the wrong type or outside
    its range (the class's own ValueError) and for a missing one, PluginError for any other fault of the class.
    """
    options = options_of(spec_class)
    converted = {}
    for name, value in values.items():
        option = _find(sampler, options, name)
        try:
            converted[name] = option.convert(value)
        except ValueError:
            raise ParameterError(_bad_value(sampler, option, value)) from None
    missing = [option.name for option in options if option.default is REQUIRED and option.name not in values]
    if missing:
        raise ParameterError(f"sampler {sampler!r} needs a value for its option {' and '.join(map(repr, missing))}")
    try:
        return spec_class(**converted)
    except ValueError as error:
        raise ParameterError(f"sampler {sampler!r}: {error}") from error
    except Exception as error:
        raise PluginError(f"sampler {sampler!r} of {origin} could not be made: {cause(error)}") from error


def _find(sampler: str, options: Iterable[Option], name: str) -> Option:
    by_name = {option.name: option for option in options}
    if name not in by_name:
        raise unknown_name(f"option of sampler {sampler!r}", name, by_name)
    return by_name[name]


def _bad_value(sampler: str, option: Option, value: Any) -> str:
    allowed = f"{option.type_name}, {option.help}" if option.help else option.type_name
    return f"sampler {sampler!r}: {option.name} is {value!r}; it must be {allowed}"


def _annotations(spec_class: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(spec_class)
    except Exception:  # a name that exists for type checkers only: the default's own type stands in
        return {
            field.name: type(field.default)
            for field in dataclasses.fields(spec_class)
            if field.default is not REQUIRED and field.default is not None
        }


def _types(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (Union, types.UnionType):
        members = [_types(member) for member in typing.get_args(annotation)]
        # Text that could be several things is the narrowest: none before a number, str last.
        order = [type(None), bool, int, float]
        flat = {kind for member in members for kind in member}
        ranked = sorted(flat, key=lambda kind: (kind is str, order.index(kind) if kind in order else -1))
        return tuple(ranked) if all(members) else ()
    if annotation in (bool, int, float, str, type(None)) or typing.get_origin(annotation) is Literal:
        return (annotation,)
    parts = _item_type(annotation) or _map_types(annotation)
    return (annotation,) if parts and all(_types(part) for part in parts) else ()


def _item_type(kind: Any) -> tuple[Any, ...]:
    """(X,) of tuple[X, ...]; () for any other type."""
    arguments = typing.get_args(kind) if typing.get_origin(kind) is tuple else ()
    return arguments[:1] if arguments[1:] == (...,) else ()


def _map_types(kind: Any) -> tuple[Any, ...]:
    """(X, Y) of Mapping[X, Y]; () for any other type."""
    return typing.get_args(kind) if typing.get_origin(kind) is Mapping else ()


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is REQUIRED else field.default_factory()


def _help(documentation: str, name: str) -> str:
    """The docstring's line "name: text", with the lines that continue it further in."""
    found = re.search(rf"^{re.escape(name)}:[ ]*(.+(?:\n[ ]+\S.*)*)", documentation, re.MULTILINE)
    return " ".join(found[1].split()) if found else ""


def _type_name(kind: Any) -> str:
    if kind is type(None):
        return "none"
    if typing.get_origin(kind) is Literal:
        return " or ".join(repr(value) for value in typing.get_args(kind))
    if _item_type(kind):
        return f"list of {_type_name(_item_type(kind)[0])}"
    if _map_types(kind):
        return "map of {} to {}".format(*map(_type_name, _map_types(kind)))
    return str(kind.__name__)


def _parse(kind: Any, text: str) -> Any:
    word = text.strip().lower()
    if kind is str:
        return text
    if kind is int or kind is float:
        return kind(text)
    if kind is bool and word in (*_TRUE, *_FALSE):
        return word in _TRUE
    if kind is type(None) and word == "none":
        return None
    if typing.get_origin(kind) is Literal:
        for value in typing.get_args(kind):
            if str(value) == text:
                return value
    if _item_type(kind) and not text.lstrip().startswith("["):
        (item_type,) = _item_type(kind)
        parts = [text] if _item_type(item_type) else text.split(",")
        if not all(parts):
            raise ValueError(text)
        return tuple(_parse(item_type, part) for part in parts)
    if _item_type(kind) or _map_types(kind):
        return _convert(kind, json.loads(_INFINITE.sub(lambda found: found[1] or f"{found[2]}Infinity", text)))
    raise ValueError(text)


def _convert(kind: Any, value: Any) -> Any:
    if typing.get_origin(kind) is Literal:
        if value in typing.get_args(kind):
            return value
    elif _item_type(kind):
        if isinstance(value, (list, tuple)):
            return tuple(_convert(_item_type(kind)[0], item) for item in value)
    elif _map_types(kind):
        key_type, value_type = _map_types(kind)
        if isinstance(value, Mapping):
            return {_convert_key(key_type, key): _convert(value_type, item) for key, item in value.items()}
    elif kind is float and isinstance(value, str) and value in ("inf", "-inf"):
        return float(value)
    elif kind is bool or kind is str or kind is type(None):
        if isinstance(value, kind):
            return value
    elif not isinstance(value, bool) and isinstance(value, numbers.Integral if kind is int else numbers.Real):
        return kind(value)
    raise ValueError(value)


def _convert_key(kind: Any, key: Any) -> Any:
    """JSON and TOML have text for keys only."""
    return _parse(kind, key) if isinstance(key, str) else _convert(kind, key)
