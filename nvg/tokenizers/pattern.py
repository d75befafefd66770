"""Reads patterns of the library `regex`, as far as an automaton can run them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import regex

_MAX_PLACES = 2000
_SET = regex.compile(
    r"\.|\\[sSdDwW]|\\[pP](?:\{\^?\w+\}|[A-Z])|\\x[0-9A-Fa-f]{2}|\\u[0-9A-Fa-f]{4}|\\[rntfva]|\\[^\w\s]"
    r"|\[\^?\]?(?:\\.|[^\]\\])*\]|[^\\.()\[\]{}*+?|^$]",
    regex.DOTALL,
)
"""What takes one character."""
_REPEAT = regex.compile(r"([*+?])|\{(\d*)(,?)(\d*)\}")


class _NotRegularError(Exception):
    """The pattern has something that is not done here."""


@dataclass(frozen=True)
class Place:
    """A place in a pattern."""

    kind: str
    """`take` a character, `look` at the next one, `fork`, `match`."""
    following: tuple[int, ...] = ()
    """The places after it; of a fork, the ones to try first come first."""
    members: int = 0
    """Bit of the set of characters that are taken or looked for."""
    is_negated: bool = False
    at_end: bool = False
    """Whether a look holds at the end of the text."""

    def holds(self, character: int | None) -> bool:
        """Whether a character of these sets lets a match go on; None is the end."""
        return self.at_end if character is None else bool(self.members & character) != self.is_negated


@dataclass
class Program:
    """A pattern's places; `start` is the first."""

    places: list[Place] = field(default_factory=lambda: [Place("match")])
    start: int = 0

    def add(self, place: Place) -> int:
        """The number of a new place."""
        if len(self.places) >= _MAX_PLACES:
            raise _NotRegularError
        self.places.append(place)
        return len(self.places) - 1


_Part = Callable[[Program, int], int]
"""Adds a part of a pattern before a place; the number of the part's first place."""


def read_program(pattern: str, sets: dict[str, int]) -> Program | None:
    """The pattern's places, None if it is not regular; the sets of characters in it are added to `sets`."""
    try:
        reader = _Reader(pattern, sets)
        part = reader.alternatives()
        if not reader.is_done:
            return None
        program = Program()
        program.start = part(program, 0)
    except (_NotRegularError, RecursionError, ValueError):  # that for an integer of thousands of digits
        return None
    return program


class _Reader:
    def __init__(self, pattern: str, sets: dict[str, int]) -> None:
        self._pattern, self._at, self._sets = pattern, 0, sets
        self._ignores_case = self._took("(?i)")

    @property
    def is_done(self) -> bool:
        return self._at == len(self._pattern)

    def _took(self, text: str) -> bool:
        found = self._pattern.startswith(text, self._at)
        self._at += len(text) * found
        return found

    def alternatives(self) -> _Part:
        parts = [self._sequence()]
        while self._took("|"):
            parts.append(self._sequence())
        return parts[0] if len(parts) == 1 else lambda program, end: program.add(
            Place("fork", tuple([part(program, end) for part in parts]))
        )  # fmt: skip

    def _sequence(self) -> _Part:
        parts: list[_Part] = []
        while self._at < len(self._pattern) and self._pattern[self._at] not in "|)":
            parts.append(self._repeated())

        def add(program: Program, end: int) -> int:
            for part in reversed(parts):
                end = part(program, end)
            return end

        return add

    def _repeated(self) -> _Part:
        is_look = self._pattern.startswith(("(?=", "(?!", "$"), self._at)
        taken, part = self._look() if is_look else self._single()
        found = _REPEAT.match(self._pattern, self._at)
        if not found:
            return part
        if is_look or found[0] in ("{}", "{,}"):
            raise _NotRegularError
        self._at = found.end()
        if found[1]:
            least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[found[1]]
        else:
            least = int(found[2] or 0)
            most = least if not found[3] else int(found[4]) if found[4] else None
        if self._took("+"):  # holds on to what it took
            if taken is None or not found[1]:
                raise _NotRegularError
            return _held(part, taken, least, most)
        return _times(part, least, most, is_lazy=self._took("?"))

    def _single(self) -> tuple[int | None, _Part]:
        """A group, or a set of characters, and its bit then."""
        if found := _SET.match(self._pattern, self._at):
            self._at = found.end()
            members = self._members(found[0])
            return members, lambda program, end: program.add(Place("take", (end,), members))
        before = self._ignores_case
        if self._took("(?i:"):
            self._ignores_case = True
        elif not self._took("(?:") and (self._pattern.startswith("(?", self._at) or not self._took("(")):
            raise _NotRegularError
        part = self.alternatives()
        self._ignores_case = before
        if not self._took(")"):
            raise _NotRegularError
        return None, part

    def _look(self) -> tuple[None, _Part]:
        if self._took("$"):
            members = self._members(r"\n")
            return None, lambda program, end: program.add(Place("look", (end,), members, at_end=True))
        is_negated = self._took("(?!")
        if not is_negated:
            self._took("(?=")
        found = _SET.match(self._pattern, self._at)
        self._at = found.end() if found else self._at
        if not found or not self._took(")"):
            raise _NotRegularError
        members = self._members(found[0])
        return None, lambda program, end: program.add(Place("look", (end,), members, is_negated, is_negated))

    def _members(self, source: str) -> int:
        source = f"(?i:{source})" if self._ignores_case else source
        return 1 << self._sets.setdefault(source, len(self._sets))


def _times(part: _Part, least: int, most: int | None, *, is_lazy: bool = False) -> _Part:
    """`part{least,most}`; without `most`, as often as it comes."""

    def fork(once: int, end: int) -> Place:
        return Place("fork", (end, once) if is_lazy else (once, end))

    def add(program: Program, end: int) -> int:
        first = end
        if most is None:
            first = program.add(Place("fork"))
            once = _once(part, program, first)
            program.places[first] = fork(once, end)
        for _ in range((most or least) - least):
            first = program.add(fork(_once(part, program, first), end))
        for _ in range(least):
            first = _once(part, program, first)
        return first

    return add


def _once(part: _Part, program: Program, end: int) -> int:
    """`part` before a place, where it takes a character at least: what repeats nothing has rules of its own."""
    start = part(program, end)
    waiting, seen = [start], {start}
    for number in waiting:
        if number == end:
            raise _NotRegularError
        if program.places[number].kind in ("fork", "look"):
            waiting += set(program.places[number].following) - seen
            seen |= set(program.places[number].following)
    return start


def _held(part: _Part, members: int, least: int, most: int | None) -> _Part:
    """`part` as often as it comes, where what follows can't begin with one more: so it needs none of them back."""

    def ends(program: Program, end: int) -> int:
        return program.add(Place("look", (end,), members, is_negated=True, at_end=True))

    if most is None:
        return lambda program, end: _times(part, least, None)(program, ends(program, end))
    return lambda program, end: program.add(Place("fork", (part(program, end), ends(program, end))))
