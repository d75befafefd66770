"""How a tokenizer.json cuts text before the merges: its pre-tokenizer, as Hugging Face's `tokenizers` runs it (its
crate's `pre_tokenizers`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import regex

from nvg.files import shown
from nvg.tokenizers.components import UnsupportedError, parts_of
from nvg.tokenizers.oniguruma import PATTERN_FLAGS, read_pattern, timeout_s

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""GPT-2's published pattern: text is cut into these pieces, and merges never cross from one to the next."""

_PUNCTUATION = r"[!-/:-@\[-`{-~\u166d\p{P}]"  # with a sign that is no punctuation any more since Unicode 12
_BEHAVIORS = ("Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous")
_MAX_LISTED_CHARS = 1 << 22
"""A longer text's pieces are made one by one: slower, but a list of them would take many times the text's memory."""


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
        """Looking at the clock triples the time of GPT-2's pattern, which is harmless."""
        return None if self.pattern == GPT2_PATTERN else timeout_s(text)

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


def read_pre_tokenizer(setting: Any) -> PreTokenizer:
    """The pre-tokenizer of tokenizer.json. Raises UnsupportedError."""
    *parts, last = parts_of(setting, "pre_tokenizer", "pretokenizers") or [{}]
    if last.get("type") != "ByteLevel":
        raise UnsupportedError(f"a pre_tokenizer that ends with {shown(last.get('type'))} and not with ByteLevel")
    steps: list[Split | None] = [step for part in parts for step in _splits(part)]
    # What is left out is true, here as there.
    steps += [None] * bool(last.get("add_prefix_space", True))
    steps += [_GPT2_SPLIT] * bool(last.get("use_regex", True))
    return PreTokenizer(tuple(steps))


def _splits(part: Mapping[str, Any]) -> list[Split]:
    """The steps of a pre-tokenizer that only cuts text. Raises UnsupportedError."""
    kind, behavior = part.get("type"), part.get("behavior", "Isolated")
    match kind:
        case "Split" | "Punctuation" if behavior not in _BEHAVIORS:
            raise UnsupportedError(f"pre_tokenizer {kind} with behavior {shown(behavior)}")
        case "Split":
            return [Split(read_pattern(part.get("pattern")), behavior, bool(part.get("invert", False)))]
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
            return [Split(read_pattern({"String": part.get("delimiter")}), "Removed")]
    raise UnsupportedError(f"pre_tokenizer {shown(kind)} before the last")


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
