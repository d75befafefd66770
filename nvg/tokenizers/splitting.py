"""What a tokenizer.json does to text before the merges: its normalizer and its pre-tokenizer, as Hugging Face's
`tokenizers` runs them (its crate's `normalizers` and `pre_tokenizers`)."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import regex

from nvg.files import shown

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""GPT-2's published pattern: text is cut into these pieces, and merges never cross from one to the next."""

WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
WHITE_SPACE += "\u2028\u2029\u202f\u205f\u3000"
"""Unicode's White_Space; Python's `str.strip` and `str.isspace` know four more characters."""

_PUNCTUATION = r"[!-/:-@\[-`{-~]|\p{P}"
_BEHAVIORS = ("Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous")
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
_MAX_LISTED_CHARS = 1 << 22
"""A longer text's pieces are made one by one: slower, but a list of them would take many times the text's memory."""
_TIMEOUT_S = 10
PATTERN_FLAGS = regex.V0 | regex.MULTILINE  # ^ and $ are those of lines there


class UnsupportedError(Exception):
    """A part that nvg doesn't do; the message says which."""


@dataclass(frozen=True)
class Split:
    """Cut text at the matches of a pattern, or put a space before it."""

    pattern: str
    """Of the library `regex`."""
    behavior: str = "Isolated"
    """What becomes of matches: one of `Isolated`, `Removed`, `MergedWithPrevious`, `MergedWithNext`, `Contiguous`."""
    invert: bool = False
    """What is between the matches counts as matched, and they don't."""

    @cached_property
    def _compiled(self) -> Any:
        return regex.compile(self.pattern, PATTERN_FLAGS)

    def cut(self, text: str) -> Iterable[str]:
        """The pieces of `text`, in order; none is empty. Raises TimeoutError for a pattern that takes too long."""
        if self.behavior == "Isolated" and not self._compiled.groups and len(text) <= _MAX_LISTED_CHARS:
            pieces = self._compiled.findall(text, timeout=self._timeout_s(text))
            if sum(map(len, pieces)) == len(text):  # nothing between the matches
                return filter(None, pieces)
        return self._cut(text)

    def _cut(self, text: str) -> Iterator[str]:
        spans = self._spans(text)
        match self.behavior:
            case "Removed":
                joined: Iterable[tuple[int, int]] = [(start, end) for start, end, matched in spans if not matched]
            case "Isolated":
                joined = [(start, end) for start, end, _ in spans]
            case "Contiguous":
                joined = _join(spans, lambda matched, before: matched == before)
            case "MergedWithPrevious":
                joined = _join(spans, lambda matched, before: matched and not before)
            case _:
                backwards = [(-end, -start, matched) for start, end, matched in reversed(list(spans))]
                ends = _join(backwards, lambda matched, before: matched and not before)
                joined = [(-end, -start) for start, end in reversed(ends)]
        return (text[start:end] for start, end in joined if start < end)

    def _timeout_s(self, text: str) -> float | None:
        """A pattern may take exponential time; the file that holds it may be anybody's. Looking at the clock triples
        GPT-2's, which is harmless."""
        return None if self.pattern == GPT2_PATTERN else _TIMEOUT_S + len(text) / 10_000

    def _spans(self, text: str) -> Iterator[tuple[int, int, bool]]:
        """Begin, end and whether it counts as matched, for all of the text."""
        done = 0
        for found in self._compiled.finditer(text, timeout=self._timeout_s(text)):
            start, end = found.span()
            if done < start:
                yield done, start, self.invert
            yield start, end, not self.invert
            done = end
        if done < len(text):
            yield done, len(text), self.invert


@dataclass(frozen=True)
class PreTokenizer:
    """Text -> pieces."""

    steps: tuple[Split | None, ...]
    """In order, each for all pieces of the former; None puts a space before pieces that don't begin with one."""

    def pieces(self, text: str) -> Iterator[str]:
        """The pieces of `text`; none is empty."""
        pieces: Iterable[str] = (text,) if text else ()
        for step in self.steps:
            if step is None:
                pieces = (piece if piece[0] == " " else " " + piece for piece in pieces)
            else:
                pieces = _cut_all(step, pieces)
        return iter(pieces)


_GPT2_SPLIT = Split(GPT2_PATTERN)
Normalizer = Callable[[str], str]


def read_pre_tokenizer(setting: Any) -> PreTokenizer:
    """The pre-tokenizer of tokenizer.json. Raises UnsupportedError."""
    parts = setting.get("pretokenizers") if _type_of(setting) == "Sequence" else [setting]
    if not isinstance(parts, list) or not parts or _type_of(parts[-1]) != "ByteLevel":
        raise UnsupportedError(f"pre_tokenizer {shown(_type_of(setting))} that doesn't end with ByteLevel")
    steps: list[Split | None] = []
    for part in parts:
        kind = _type_of(part)
        if kind == "ByteLevel" and part is parts[-1]:
            # What is left out is true, here as there.
            steps += [None] * bool(part.get("add_prefix_space", True))
            steps += [_GPT2_SPLIT] * bool(part.get("use_regex", True))
        else:
            steps += _splits(kind, part)
    return PreTokenizer(tuple(steps))


def _splits(kind: Any, part: Mapping[str, Any]) -> list[Split]:
    """The steps of a pre-tokenizer that only cuts text. Raises UnsupportedError."""
    behavior = part.get("behavior", "Isolated")
    match kind:
        case "Split" | "Punctuation" if behavior not in _BEHAVIORS:
            raise UnsupportedError(f"pre_tokenizer {kind} with behavior {shown(behavior)}")
        case "Split":
            return [Split(_pattern(part.get("pattern")), behavior, bool(part.get("invert", False)))]
        case "Punctuation":
            return [Split(_PUNCTUATION, behavior)]
        case "Digits":
            return [Split(r"\p{N}" if part.get("individual_digits", False) else r"\p{N}+")]
        case "Whitespace":
            return [Split(r"\w+|[^\w\s]+", "Removed", invert=True)]
        case "WhitespaceSplit":
            return [Split(r"\s", "Removed")]
        case "BertPreTokenizer":
            return [Split(r"\s", "Removed"), Split(_PUNCTUATION)]
        case "CharDelimiterSplit":
            return [Split(_pattern({"String": part.get("delimiter")}), "Removed")]
    raise UnsupportedError(f"pre_tokenizer {shown(kind)} before the last")


def read_normalizer(setting: Any) -> Normalizer | None:
    """The normalizer of tokenizer.json, None for none. Raises UnsupportedError."""
    if setting is None:
        return None
    kind = _type_of(setting)
    match kind:
        case "Sequence":
            parts = [read_normalizer(part) for part in setting.get("normalizers") or []]
            return lambda text: _apply(parts, text)
        case "NFC" | "NFD" | "NFKC" | "NFKD":
            return lambda text: unicodedata.normalize(kind, text)
        case "Lowercase":  # character by character: str.lower knows of the sigma at a word's end
            return lambda text: text.replace("Σ", "σ").lower()
        case "StripAccents":
            return lambda text: regex.sub(r"\p{M}+", "", text)
        case "Strip":
            left, right = (bool(setting.get(side)) for side in ("strip_left", "strip_right"))
            return lambda text: _stripped(text, left=left, right=right)
        case "Prepend" if isinstance(setting.get("prepend"), str):
            return lambda text: setting["prepend"] + text if text else text
        case "Replace" if isinstance(setting.get("content"), str):
            pattern = regex.compile(_pattern(setting.get("pattern")), PATTERN_FLAGS)
            return lambda text: pattern.sub(lambda _: setting["content"], text)
    raise UnsupportedError(f"normalizer {shown(kind)}")


def _stripped(text: str, *, left: bool, right: bool) -> str:
    text = text.lstrip(WHITE_SPACE) if left else text
    return text.rstrip(WHITE_SPACE) if right else text


def _apply(normalizers: Iterable[Normalizer | None], text: str) -> str:
    for normalizer in normalizers:
        text = normalizer(text) if normalizer else text
    return text


def _pattern(setting: Any) -> str:
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
            try:
                regex.compile(pattern, PATTERN_FLAGS)
            except (regex.error, RecursionError, OverflowError, ValueError) as error:
                raise UnsupportedError(f"the pattern {shown(pattern)} ({error})") from None
            return pattern
    raise UnsupportedError(f"the pattern {shown(setting)}")


def _type_of(setting: Any) -> Any:
    return setting.get("type") if isinstance(setting, dict) else setting


def _cut_all(step: Split, pieces: Iterable[str]) -> Iterator[str]:
    for piece in pieces:
        yield from step.cut(piece)


def _join(spans: Iterable[tuple[int, int, bool]], joins: Callable[[bool, bool], bool]) -> list[tuple[int, int]]:
    """The spans, some of which are joined to the one before; `joins` is asked with the flags of both."""
    joined: list[tuple[int, int]] = []
    before = False
    for start, end, matched in spans:
        if joined and joins(matched, before):
            joined[-1] = joined[-1][0], end
        else:
            joined.append((start, end))
        before = matched
    return joined
