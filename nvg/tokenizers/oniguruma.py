"""The patterns of a tokenizer.json, which are Oniguruma's, as patterns of the library `regex`."""

from __future__ import annotations

from math import prod
from typing import Any

import regex

from nvg.files import shown
from nvg.tokenizers.components import UnsupportedError

# What Oniguruma's patterns and those of `regex` write alike but mean otherwise, or what only one of them knows: some
# escapes, brackets in brackets, flags (but (?i) for a whole group or pattern), {2,3}+ and {2}?, which neither hold on
# nor are lazy there; and with (?i) pairs of letters that are one letter without regard to case.
_FOREIGN = regex.compile(
    r"(?<!\\)(?:\\\\)*"
    r"(?:\\[hHRXKGkgAzZbByYO]|\[\^?\]?(?:[^\]\\]|\\.)*\[|&&|--|\(\?[^:=!<>i]|\(\?i[^:)]|(?<!^)\(\?i\)"
    r"|\{[\d,]+\}\+|\{\d+\}\?)",
    regex.DOTALL,
)
_FOLDED = regex.compile(r"ss|ff|fi|fl|st|[^\0-\x7f]", regex.IGNORECASE)
_MAX_PATTERN_CHARS, _MAX_REPEATS = 4000, 1000
"""To compile `(a|b){9999}` takes `regex` for ever."""
# What \w takes there: some more in Latin-1 where it isn't in brackets, and never the joiners.
_NO_WORD = r"\W"
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
            pattern = _with_its_words(pattern)
            try:
                regex.compile(pattern, PATTERN_FLAGS)
            except (regex.error, RecursionError, OverflowError, ValueError) as error:
                raise UnsupportedError(f"the pattern {shown(pattern)} ({error})") from None
            return pattern
    raise UnsupportedError(f"the pattern {shown(setting)}")


def _with_its_words(pattern: str) -> str:
    """The pattern with what Oniguruma takes for `\\w` and `\\W` written out: `regex` takes other characters."""
    parts = regex.split(r"(\\.|\[\^?\]?|\])", pattern, flags=regex.DOTALL)
    in_class = False
    for i, part in enumerate(parts):
        if part == _NO_WORD and in_class:
            raise UnsupportedError(f"{_NO_WORD} in brackets in the pattern {shown(pattern)}")
        if part in (r"\w", _NO_WORD):
            parts[i] = _WORD if in_class else f"[{'^' * (part == _NO_WORD)}{_WORD}{_LATIN_WORD}]"
        elif part.startswith("["):
            in_class = True
        elif part == "]":
            in_class = False
    return "".join(parts)
