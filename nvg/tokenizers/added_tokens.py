"""Tokens that are found in the text as they are, before it is split (the crate `tokenizers`, `added_vocabulary.rs`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import regex

from nvg.tokenizers.splitting import WHITE_SPACE

_WORD_CHARACTER = regex.compile(r"\w")


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
        longest_first = sorted(self._tokens, key=lambda content: (-len(content), content))
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def cut(self, text: str, *, allow_special: bool) -> list[str | int]:
        """The text with the tokens in it replaced by their ids; no string is empty."""
        segments: list[str | int] = []
        done = 0
        for found in self._pattern.finditer(text) if self._pattern else ():
            token = self._tokens[found[0]]
            start, end = found.span()
            if token.special and not allow_special:
                continue
            if token.single_word and (_is_word(text, start - 1) or _is_word(text, end)):
                continue
            if token.lstrip:
                start = done + len(text[done:start].rstrip(WHITE_SPACE))
            while token.rstrip and end < len(text) and text[end] in WHITE_SPACE:
                end += 1
            if done < start:
                segments.append(text[done:start])
            segments.append(token.token_id)
            done = end
        if done < len(text):
            segments.append(text[done:])
        return segments


def _is_word(text: str, index: int) -> bool:
    return 0 <= index < len(text) and _WORD_CHARACTER.match(text, index) is not None
