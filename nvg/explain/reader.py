"""Reads a trace, which may come from anybody: everything is checked before it is used."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nvg.errors import TraceError
from nvg.explain.trace import VERSION

Record = dict[str, Any]
_MOST = 2**53


class _MisfitError(Exception):
    """Something in a line is not what it must be."""


class _Int:
    """An integer from `low` to `high`."""

    def __init__(self, low: int = 0, high: int = _MOST) -> None:
        self.low, self.high = low, high

    def __call__(self, value: Any, name: str) -> None:
        if type(value) is not int or not self.low <= value <= self.high:
            raise _MisfitError(f"{name} is no integer from {self.low} to {self.high}")


class _Number:
    """A finite number from 0 to `high`."""

    def __init__(self, high: float = math.inf) -> None:
        self.high = high

    def __call__(self, value: Any, name: str) -> None:
        if type(value) not in (int, float) or not math.isfinite(value) or not 0 <= value <= self.high:
            raise _MisfitError(f"{name} is no number from 0 to {self.high}")


def _optional(check: Callable[[Any, str], None]) -> Callable[[Any, str], None]:
    def checked(value: Any, name: str) -> None:
        if value is not None:
            check(value, name)

    return checked


def _text(value: Any, name: str) -> None:
    if type(value) is not str:
        raise _MisfitError(f"{name} is no text")


def _any(value: Any, name: str) -> None:
    pass


def _check(value: Any, shape: Any, name: str) -> None:
    """`shape`: a function that raises _MisfitError; a dict of shapes; a list of one shape, for any number; a tuple of
    shapes, for as many items."""
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            raise _MisfitError(f"{name} is no object")
        for key, one in shape.items():
            if key not in value:
                raise _MisfitError(f"{name} has no {key}")
            _check(value[key], one, key)
    elif isinstance(shape, (list, tuple)):
        if not isinstance(value, list) or (isinstance(shape, tuple) and len(value) != len(shape)):
            length = f" of {len(shape)}" if isinstance(shape, tuple) else ""
            raise _MisfitError(f"{name} is no list{length}")
        for item, one in zip(value, shape * len(value) if isinstance(shape, list) else shape, strict=True):
            _check(item, one, name)
    else:
        shape(value, name)


_ID = _Int(high=2**31 - 1)
_PROB = _Number(1 + 1e-9)
_DISTRIBUTION = {"candidates": _Int(1), "entropy": _Number(), "rank": _Int(1), "prob": _PROB}
_STAGE = {"name": _text, "removed": _PROB, **_DISTRIBUTION, "rank_before": _Int(1), "prob_before": _PROB}
_SHAPES: dict[str, Record] = {
    "header": {
        "nvg": _text,
        "model": _text,
        "dtype": _text,
        "prompt": _optional(_text),
        "prompt_token_ids": [_ID],
        "prompt_texts": [_text],
        "seed": _Int(high=2**64 - 1),
        "chain": [{"name": _text, "origin": _text, "options": _any}],
    },
    "token": {
        "choice": _ID,
        "index": _ID,
        "token_id": _ID,
        "text": _text,
        "model": _DISTRIBUTION,
        "stages": [_STAGE],
        "candidates": [(_ID, _text, [_optional(_PROB)])],
    },
    "end": {"choice": _ID, "finish_reason": _text, "error": _optional(_text)},
    "branch": {
        "choice": _ID,
        "index": _ID,
        "token_id": _ID,
        "text": _text,
        "continuation": [(_ID, _text, _PROB)],
    },
}


@dataclass
class Trace:
    """What is in a trace: its lines' objects, as nvg.explain.trace describes them."""

    header: Record
    tokens: dict[int, list[Record]] = field(default_factory=dict)
    """By choice."""
    ends: dict[int, Record] = field(default_factory=dict)
    branches: dict[tuple[int, int], list[Record]] = field(default_factory=dict)
    """By choice and index."""

    def add(self, record: Record) -> None:
        """Take a line but the first; raises _MisfitError if it is none that could follow those before."""
        kind = record.get("type")
        if not isinstance(kind, str) or kind == "header" or kind not in _SHAPES:
            raise _MisfitError("its type is none of token, end and branch")
        _check(record, _SHAPES[kind], kind)
        tokens = self.tokens.setdefault(record["choice"], [])
        if kind == "token":
            if record["index"] != len(tokens):
                raise _MisfitError(f"token {len(tokens)} of choice {record['choice']} is missing")
            if [stage["name"] for stage in record["stages"]] != [stage["name"] for stage in self.header["chain"]]:
                raise _MisfitError("its stages are not those of the header's chain")
            if any(len(probs) != len(record["stages"]) + 1 for _, _, probs in record["candidates"]):
                raise _MisfitError("a candidate has not one probability for the model and each stage")
            if record["token_id"] not in [token_id for token_id, _, _ in record["candidates"]]:
                raise _MisfitError("the token is none of its candidates")
            tokens.append(record)
        elif kind == "end":
            self.ends[record["choice"]] = record
        elif record["index"] >= len(tokens):
            raise _MisfitError(f"choice {record['choice']} has no token {record['index']}")
        else:
            self.branches.setdefault((record["choice"], record["index"]), []).append(record)


def read_trace(path: str, warn: Callable[[str], None]) -> Trace:
    """The trace in a file; `warn` gets a line if its last line is not whole.

    Raises TraceError for what is no trace or a damaged one, OSError for what can't be read.
    """
    trace: Trace | None = None
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                record = _parse(line)
                if trace is None:
                    trace = Trace(_header(record, path))
                else:
                    trace.add(record)
            except _MisfitError as misfit:
                if trace is None:
                    raise TraceError(f"{path!r} is no trace of nvg generate --explain: {misfit}") from None
                if not line.endswith(b"\n"):
                    warn(f"the last line of {path!r} is cut off; all before it is shown")
                    break
                raise TraceError(f"{path!r} is damaged: line {number}: {misfit}") from None
    if trace is None:
        raise TraceError(f"{path!r} is no trace of nvg generate --explain: it is empty")
    return trace


def _parse(line: bytes) -> Record:
    try:
        record = json.loads(line, parse_constant=_no_number)
    except RecursionError:
        raise _MisfitError("it is nested too deeply") from None
    except ValueError:  # not UTF-8, not JSON, a number of thousands of digits
        raise _MisfitError("it is not JSON") from None
    if not isinstance(record, dict):
        raise _MisfitError("it is no object")
    return record


def _no_number(name: str) -> None:
    raise ValueError(name)


def _header(record: Record, path: str) -> Record:
    version = record.get("nvg_trace")
    if record.get("type") != "header" or version is None:
        raise _MisfitError("its first line is no header")
    if version != VERSION:
        raise TraceError(f"{path!r} is a trace of version {version!r:.20}; this nvg reads version {VERSION}")
    _check(record, _SHAPES["header"], "header")
    if len(record["prompt_texts"]) != len(record["prompt_token_ids"]):
        raise _MisfitError("prompt_texts are not as many as prompt_token_ids")
    return record
