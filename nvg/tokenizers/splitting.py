"""What a tokenizer.json does to text before the merges: its normalizer and its pre-tokenizer, as Hugging Face's
`tokenizers` runs them (its crate's `normalizers` and `pre_tokenizers`)."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import regex

from nvg.files import shown

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""GPT-2's published pattern: text is cut into these pieces, and merges never cross from one to the next."""

WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
WHITE_SPACE += "\u2028\u2029\u202f\u205f\u3000"
"""Unicode's White_Space; Python's `str.strip` and `str.isspace` know four more characters."""

_BEHAVIORS = ("Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous")
# What the two libraries' patterns write alike but mean otherwise, or what only one of them knows.
_FOREIGN = r"(?<!\\)(?:\\\\)*(?:\\[hHRXKGkgAzZbByYO]|\[\[:|&&|--|\(\?[^:=!<>i])"
_MAX_PATTERN_CHARS = 10_000
_TIMEOUT_S = 10
_FLAGS = regex.V0 | regex.MULTILINE  # ^ and $ are those of lines there


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
        return regex.compile(self.pattern, _FLAGS)

    def cut(self, text: str) -> Iterator[str]:
        """The pieces of `text`, in order; none is empty. Raises TimeoutError for a pattern that takes too long."""
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

    def _spans(self, text: str) -> Iterator[tuple[int, int, bool]]:
        """Begin, end and whether it counts as matched, for all of the text."""
        done = 0
        # A pattern may take exponential time; the file that holds it may be anybody's.
        for found in self._compiled.finditer(text, timeout=_TIMEOUT_S + len(text) / 10_000):
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

    @property
    def is_gpt2(self) -> bool:
        """Whether this is GPT-2's pattern and nothing else, but for a space before the whole text."""
        return self.steps in ((_GPT2_SPLIT,), (None, _GPT2_SPLIT))

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
        elif kind == "Split":
            behavior = part.get("behavior")
            if behavior not in _BEHAVIORS:
                raise UnsupportedError(f"pre_tokenizer Split with behavior {shown(behavior)}")
            steps.append(Split(_pattern(part.get("pattern")), behavior, bool(part.get("invert", False))))
        elif kind == "Digits":
            steps.append(Split(r"\p{N}", "Isolated" if part.get("individual_digits", False) else "Contiguous"))
        else:
            raise UnsupportedError(f"pre_tokenizer {shown(kind)} before the last")
    return PreTokenizer(tuple(steps))


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
            pattern = regex.compile(_pattern(setting.get("pattern")), _FLAGS)
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
            if foreign := regex.search(_FOREIGN, pattern):
                raise UnsupportedError(f"{shown(foreign[0])} in the pattern {shown(pattern)}")
            try:
                regex.compile(pattern, _FLAGS)
            except (regex.error, RecursionError, OverflowError) as error:
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
