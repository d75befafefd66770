"""The parts of a tokenizer.json: each an object with a type, some of them sequences of others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nvg.files import shown

_MAX_PARTS = 100


class UnsupportedError(Exception):
    """A part that nvg doesn't do; the message says which."""


def parts_of(setting: Any, what: str, key: str) -> list[Mapping[str, Any]]:
    """The parts of `setting`, those of sequences, which have them under `key`, in their places.

    what: their name in errors. Raises UnsupportedError.
    """
    parts: list[Mapping[str, Any]] = []
    waiting, num_seen = [setting], 0
    while waiting:
        part = waiting.pop()
        num_seen += 1
        if not isinstance(part, dict):
            raise UnsupportedError(f"{what} {shown(part)}")
        inner = part.get(key) if part.get("type") == "Sequence" else None
        if isinstance(inner, list):
            waiting += reversed(inner)
        else:
            parts.append(part)
        if num_seen + len(waiting) > _MAX_PARTS:
            raise UnsupportedError(f"a {what} of more than {_MAX_PARTS} parts")
    return parts
