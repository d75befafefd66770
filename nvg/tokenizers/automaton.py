"""Patterns as tables: what `regex` finds, found with one look-up a character and never a step back.

The patterns of pre-tokenizers are regular, but for looks at the next character. A state is the list of places in the
pattern at which a match may be, in the order in which a backtracking matcher would try them (Thompson 1968,
doi:10.1145/363347.363387, with the priorities of RE2); a look at the next character is answered when that one is known.
Which characters a place takes is asked of `regex` itself, for all of Unicode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import regex

from nvg.tokenizers.oniguruma import PATTERN_FLAGS
from nvg.tokenizers.pattern import Place, Program, read_program
from nvg.tokenizers.splitting import Split

MATCHES, GAPS = 1, 2
"""What a step keeps."""
_KEPT = {
    ("Isolated", False): MATCHES | GAPS,
    ("Isolated", True): MATCHES | GAPS,
    ("Removed", False): GAPS,
    ("Removed", True): MATCHES,
}
_MAX_SETS = 60  # a bit each
_MAX_ENTRIES = 1 << 18


@dataclass(frozen=True)
class SplitTables:
    """Steps that cut text, one within the pieces of the other."""

    classes: npt.NDArray[np.uint8]
    """(0x110000,): of each code point."""
    entries: npt.NDArray[np.int32]
    """At row + class: the next row * 2, + 1 if a match ends before the character. Row 0: no match can come any more.
    The class after all others is the end of the text."""
    starts: npt.NDArray[np.int64]
    """(steps,): the row of each that a match begins in."""
    kept: npt.NDArray[np.int64]
    """(steps,): MATCHES, GAPS or both."""


def split_tables(steps: Sequence[Split]) -> SplitTables | None:
    """The steps as tables; None where one of them has something that tables can't say."""
    kept = [_KEPT.get((step.behavior, step.invert)) for step in steps]
    sets: dict[str, int] = {}
    programs = [read_program(step.pattern, sets) for step in steps]
    if None in kept or None in programs or len(sets) > _MAX_SETS:
        return None
    classes, members = _classes(list(sets))
    num_symbols = len(members) + 1
    if num_symbols > 256:
        return None
    entries, starts = [0] * num_symbols, []
    for program in programs:
        assert program is not None
        starts.append(len(entries))
        if not _add_rows(entries, program, members):
            return None
    return SplitTables(classes, np.array(entries, np.int32), np.array(starts, np.int64), np.array(kept, np.int64))


def _classes(sources: Sequence[str]) -> tuple[npt.NDArray[np.uint8], list[int]]:
    """The class of each code point, and for each class the bits of the sets that hold it."""
    bits = np.zeros(0x110000, np.int64)
    for number, source in enumerate(sources):
        for run in regex.finditer(f"(?:{source})+", _every_character(), PATTERN_FLAGS):
            bits[run.start() : run.end()] |= 1 << number
    begins = np.flatnonzero(np.diff(bits, prepend=-1))  # of runs with the same bits: few
    members, classes = np.unique(bits[begins], return_inverse=True)
    lengths = np.diff(begins, append=len(bits))
    return np.repeat(classes.astype(np.uint8), lengths), members.tolist()


@cache
def _every_character() -> str:
    return np.arange(0x110000, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")


def _add_rows(entries: list[int], program: Program, members: Sequence[int]) -> bool:
    """Append the rows of a program to the table; False if it may match nothing at all, or has too many."""
    num_symbols = len(members) + 1
    start: tuple[int, ...] = (program.start,)
    rows, waiting = {start: len(entries)}, [start]
    entries += [0] * num_symbols
    for state in waiting:
        for symbol in range(num_symbols):
            places, matched = _threads(program.places, state, members[symbol] if symbol < len(members) else None)
            if matched and state == start:
                return False
            following = tuple(places) if symbol < len(members) else ()
            if following and following not in rows:
                if len(entries) + num_symbols > _MAX_ENTRIES:
                    return False
                rows[following] = len(entries)
                entries += [0] * num_symbols
                waiting.append(following)
            entries[rows[state] + symbol] = rows.get(following, 0) << 1 | matched
    return True


def _threads(places: Sequence[Place], state: Sequence[int], character: int | None) -> tuple[dict[int, None], bool]:
    """Where matches may be after a character of these sets (None is the end), and whether one ends before it."""
    following: dict[int, None] = {}
    seen: set[int] = set()
    stack = [*reversed(state)]
    while stack:
        number = stack.pop()
        if number in seen:
            continue
        seen.add(number)
        place = places[number]
        if place.kind == "match":
            return following, True  # what would have been tried later, never is
        if place.kind == "fork":
            stack += reversed(place.following)
        elif place.holds(character):
            if place.kind == "look":
                stack += place.following
            else:
                following.setdefault(place.following[0])
    return following, False
