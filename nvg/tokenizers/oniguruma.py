"""The patterns of a tokenizer.json, which are Oniguruma's, as patterns of the library `regex`."""

from __future__ import annotations

from math import prod
from typing import Any

import regex

from nvg.files import shown
from nvg.tokenizers.components import UnsupportedError

# What Oniguruma's patterns and those of `regex` write alike but mean otherwise, or what only one of them knows: some
# escapes, flags (but (?i) for a whole group or pattern), {2,3}+ and {2}?, which neither hold on nor are lazy there; and
# with (?i) pairs of letters that are one letter without regard to case.
_FOREIGN = regex.compile(
    r"(?<!\\)(?:\\\\)*"
    r"(?:\\[hHRXKGkgAzZbByYO]|&&|--|\(\?[^:=!<>i]|\(\?i[^:)]|(?<!^)\(\?i\)|\{[\d,]+\}\+|\{\d+\}\?)",
    regex.DOTALL,
)
_FOLDED = regex.compile(r"ss|ff|fi|fl|st|[^\0-\x7f]", regex.IGNORECASE)
_MAX_PATTERN_CHARS, _MAX_REPEATS = 4000, 1000
"""To compile `(a|b){9999}` takes `regex` for ever."""
# What \w takes there: some more in Latin-1 where it isn't in brackets, and never the joiners.
_WORD, _LATIN_WORD = r"\p{Alphabetic}\p{M}\p{Nd}\p{Pc}", r"\xb2\xb3\xb9\xbc-\xbe"
PATTERN_FLAGS = regex.V0 | regex.MULTILINE  # ^ and $ are those of lines there
_TIMEOUT_S = 10


def timeout_s(text: str) -> float:
    """How long to look for a pattern in `text`: it may take exponential time, as the file that it is from may be
    anybody's."""
    return _TIMEOUT_S + len(text) / 10_000


def read_pattern(setting: Any) -> str:
    """A `{"Regex": ...}` or `{"String": ...}` as a pattern of the library `regex`."""
    match setting:
        case {"String": str(text)} if text:
            return str(regex.escape(text, special_only=True, literal_spaces=True))
        case {"Regex": str(pattern)} if 0 < len(pattern) <= _MAX_PATTERN_CHARS:
            foreign = _FOREIGN.search(pattern) or ("(?i" in pattern and _FOLDED.search(pattern))
            if foreign:
                raise UnsupportedError(f"{shown(foreign[0])} in the pattern {shown(pattern)}")
            counts = map(float, regex.findall(r"([1-9]\d*)\}", pattern))
            if prod(counts) > _MAX_REPEATS:
                raise UnsupportedError(f"a pattern that repeats so much, {shown(pattern)},")
            pattern = _translated(pattern)
            try:
                regex.compile(pattern, PATTERN_FLAGS)
            except (regex.error, RecursionError, OverflowError, ValueError) as error:
                raise UnsupportedError(f"the pattern {shown(pattern)} ({error})") from None
            return pattern
    raise UnsupportedError(f"the pattern {shown(setting)}")


def _translated(pattern: str) -> str:
    """The pattern for `regex`: `\\w` and `\\W` written out, and brackets in brackets put into those around them."""
    parts = regex.split(r"(\\.|\[\^?\]?|\])", pattern, flags=regex.DOTALL)
    depth = 0  # of brackets
    for i in range(1, len(parts), 2):
        part, before, after = parts[i], parts[i - 1][-1:], parts[i + 1][:1]
        if part == r"\w" and depth:
            parts[i] = _WORD
        elif part in (r"\w", r"\W") and not depth:
            parts[i] = f"[{'^' * (part[1] == 'W')}{_WORD}{_LATIN_WORD}]"
        elif (part.startswith("[") and depth) or (part == "]" and depth > 1):
            if part not in ("[", "]") or "-" in (before, after) or (part == "[" and after == ":"):
                raise UnsupportedError(f"{part + after} in brackets in the pattern {shown(pattern)}")
            depth += 1 if part == "[" else -1
            parts[i] = ""
        elif part == r"\W":
            raise UnsupportedError(f"{part} in brackets in the pattern {shown(pattern)}")
        elif part.startswith("["):
            depth = 1
        elif part == "]":
            depth = 0
    return "".join(parts)
