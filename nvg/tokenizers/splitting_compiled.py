"""Runs `automaton`'s tables over UTF-8, as compiled code."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nvg.runtime.compile_cache import njit
from nvg.tokenizers.automaton import SplitTables

_Array = npt.NDArray[Any]


class Splits(NamedTuple):
    """The arrays of SplitTables."""

    classes: _Array
    entries: _Array
    starts: _Array
    kept: _Array
    end: int
    """The class of the end of a text."""


def splits_of(tables: SplitTables) -> Splits:
    """The arrays of the tables."""
    return Splits(tables.classes, tables.entries, tables.starts, tables.kept, int(tables.classes.max()) + 1)


@njit(inline=True)
def num_bytes(lead):
    """Of a character in UTF-8, by its first byte."""
    return 1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4


@njit
def _class_at(text, i, classes):
    """The class of the character at byte i."""
    lead = np.int64(text[i])
    if lead < 0x80:
        return classes[lead]
    if lead < 0xE0:
        return classes[(lead & 0x1F) << 6 | (text[i + 1] & 0x3F)]
    if lead < 0xF0:
        return classes[(lead & 0xF) << 12 | np.int64(text[i + 1] & 0x3F) << 6 | (text[i + 2] & 0x3F)]
    return classes[
        (lead & 7) << 18 | np.int64(text[i + 1] & 0x3F) << 12 | np.int64(text[i + 2] & 0x3F) << 6 | (text[i + 3] & 0x3F)
    ]


@njit
def next_match(text, begin, end, splits, step, limit):
    """Where the first match of a step in text[begin:end] begins and ends (at `end` both, if there is none), and how
    many characters were looked at: not many more than `limit`."""
    classes, entries = splits.classes, splits.entries
    seen = 0
    start = begin
    while start < end and seen <= limit:
        row = splits.starts[step]
        i, stop = start, start
        while i < end:
            entry = np.int64(entries[row + _class_at(text, i, classes)])
            seen += 1
            if entry & 1:
                stop = i
            row = entry >> 1
            if row == 0:
                break
            i += num_bytes(text[i])
        if row != 0 and entries[row + splits.end] & 1:
            stop = end
        if stop > start:
            return start, stop, seen
        start += num_bytes(text[start])
    return end, end, seen
