"""Tokens that are found in the text as they are, before it is split (the crate `tokenizers`, `added_vocabulary.rs`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import regex

from nvg.errors import CheckpointError
from nvg.files import shown
from nvg.tokenizers.normalizing import WHITE_SPACE

_MAX_ALTERNATIVES = 1000
"""Of a pattern: a million take a minute to compile. Of more tokens, a pattern finds the first characters."""


@dataclass(frozen=True)
class AddedToken:
    """One such token."""

    content: str
    token_id: int
    special: bool
    """Found only when special tokens are asked for."""
    normalized: bool
    """Found in the normalized text, after those that are not normalized."""
    single_word: bool = False
    """Not found beside a character of words."""
    lstrip: bool = False
    """Takes the spaces before it."""
    rstrip: bool = False
    """Takes the spaces after it."""


class AddedTokenFinder:
    """Finds tokens in text: the leftmost, and of those the longest.

    A special token that isn't asked for is found all the same, and stays text: nothing else is found in it.
    """

    def __init__(self, tokens: Iterable[AddedToken], normalize: Callable[[str], str] | None = None) -> None:
        """`normalize` is for what is looked for, too."""
        self._tokens: dict[str, AddedToken] = {}
        for token in sorted(tokens, key=lambda token: not token.special):
            self._tokens.setdefault(normalize(token.content) if normalize else token.content, token)
        self._tokens.pop("", None)
        self._lengths = sorted({len(content) for content in self._tokens}, reverse=True)
        if len(self._tokens) <= _MAX_ALTERNATIVES:
            looked_for: Iterable[str] = sorted(self._tokens, key=lambda content: (-len(content), content))
        else:
            looked_for = {content[0] for content in self._tokens}
        self._pattern = re.compile("|".join(map(re.escape, looked_for)) or r"(?!)")

    def cut(self, text: str, *, allow_special: bool) -> list[str | int]:
        """The text with the tokens in it replaced by their ids; no string is empty."""
        segments: list[str | int] = []
        done = 0
        for start, end in self._spans(text):
            token = self._tokens[text[start:end]]
            if token.special and not allow_special:
                continue
            if token.single_word and (_is_word(text, start - 1) or _is_word(text, end)):
                continue
            if token.lstrip:
                start = done + len(text[done:start].rstrip(WHITE_SPACE))
            while token.rstrip and end < len(text) and text[end] in WHITE_SPACE:
                end += 1
            if start == end:  # another token took it as a space behind itself
                continue
            if done < start:
                segments.append(text[done:start])
            segments.append(token.token_id)
            done = end
        if done < len(text):
            segments.append(text[done:])
        return segments

    def _spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Where tokens are, none of them within another."""
        if len(self._tokens) <= _MAX_ALTERNATIVES:
            yield from (found.span() for found in self._pattern.finditer(text))
            return
        start = 0
        while found := self._pattern.search(text, start):
            start = found.start()
            ends = (start + length for length in self._lengths)
            end = next((end for end in ends if text[start:end] in self._tokens), None)
            if end is not None:
                yield start, end
            start = end or start + 1


def _is_word(text: str, index: int) -> bool:
    return 0 <= index < len(text) and regex.match(r"\w", text[index]) is not None


def read_added_tokens(source: Path, entries: Any) -> list[AddedToken]:
    """The `added_tokens` of the tokenizer.json `source`. Raises CheckpointError."""
    if not isinstance(entries, list):
        raise CheckpointError(f"{source}: 'added_tokens' is not a list")
    added_tokens = []
    for entry in entries:
        match entry:
            case {"content": str(content), "id": int(token_id)} if content and token_id >= 0:
                special = bool(entry.get("special", False))
                normalized = bool(entry.get("normalized", not special))
                flags = {option: bool(entry.get(option)) for option in ("single_word", "lstrip", "rstrip")}
                added_tokens.append(AddedToken(content, token_id, special, normalized, **flags))
            case _:
                raise CheckpointError(f"{source}: added token {shown(entry)}; it must have a content and an id >= 0")
    return added_tokens
