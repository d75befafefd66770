"""GPT-2's tokenizer: byte-level byte-pair encoding (Radford et al. 2019, "Language Models are Unsupervised Multitask
Learners", section 2.2; `encoder.py` of openai/gpt-2)."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import regex

from nvg.tokenizers.bpe_files import AddedToken, BPEDefinition, read_definition
from nvg.tokenizers.byte_alphabet import spell, unspell
from nvg.tokenizers.checks import joined_surrogates, unknown_token_id

PIECE = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
"""GPT-2's published pattern: text is cut into these pieces, and merges never cross from one to the next."""

_MAX_CACHED_PIECES = 1 << 15
_MAX_CACHED_CHARS = 32
"""Words come again and again; the cache stays below about 10 MB."""
_MAX_LISTED_CHARS = 1 << 22
"""A longer text's pieces are made one by one: slower, but a list of them would take many times the text's memory."""


class ByteLevelBPE:
    """The tokenizer of a GPT-2 checkpoint. See `nvg.tokenizers.contract.Tokenizer`; `from_dir` makes one."""

    def __init__(self, definition: BPEDefinition) -> None:
        self._definition = definition
        self._tokens = definition.tokens
        specials = {token.content: token.token_id for token in definition.added_tokens if token.special}
        self._special_tokens = MappingProxyType(specials)
        self._added_ids = {token.content: token.token_id for token in definition.added_tokens}
        self._ordinary_added = _passes(token for token in definition.added_tokens if not token.special)
        self._all_added = _passes(definition.added_tokens)
        self._ids_of_piece: dict[str, list[int]] = {}

    @classmethod
    def from_dir(cls, path: str | os.PathLike[str]) -> ByteLevelBPE:
        """The tokenizer in the directory `path`: `tokenizer.json`, or else `vocab.json` and `merges.txt`.

        Raises CheckpointError (one line: the file, what is wrong) for files that are missing, damaged or of a kind
        that would need something other than GPT-2's byte-level BPE.
        """
        return cls(read_definition(Path(path)))

    @property
    def vocab_size(self) -> int:
        """Ids are 0 .. vocab_size - 1."""
        return len(self._tokens)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """From generation_config.json, else config.json, else the id of `<|endoftext|>`; may be empty."""
        return self._definition.eos_token_ids

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """Special tokens' text and id."""
        return self._special_tokens

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of all that decides `encode` and `decode`, from whichever files it came."""
        definition = self._definition
        digest = hashlib.sha256()
        for part in (
            PIECE.pattern,
            [[pattern.pattern for pattern in passes] for passes in (self._ordinary_added, self._all_added)],
            sorted(self._added_ids.items()),
            definition.add_prefix_space,
            sorted(definition.whole_pieces.items()) if definition.whole_pieces is not None else None,
            definition.tokens,
            definition.merges.pairs(),
        ):
            digest.update(repr(part).encode() + b"\n")
        return digest.hexdigest()

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """The ids of `text`; special tokens in it are plain text unless `allow_special`. O(n log n).

        Surrogate pairs are joined. Raises ParameterError (a ValueError) for a lone surrogate, with its index.
        """
        ids: list[int] = []
        for segment in self._segments(joined_surrogates(text), allow_special):
            if isinstance(segment, int):
                ids.append(segment)
            else:
                self._append_ordinary(segment, ids)
        return ids

    def encode_batch(self, texts: Sequence[str], *, allow_special: bool = False) -> list[list[int]]:
        """`encode` for each text."""
        return [self.encode(text, allow_special=allow_special) for text in texts]

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of the ids; bytes that are not UTF-8 become U+FFFD. Raises ParameterError for an unknown id."""
        return self.decode_bytes(token_ids).decode("utf-8", "replace")

    def decode_bytes(self, token_ids: Sequence[int]) -> bytes:
        """The exact bytes of the ids. Raises ParameterError for an unknown id."""
        return unspell("".join([self._spelling(token_id) for token_id in token_ids]))

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes of one token, which may be a part of a character. Raises ParameterError for an unknown id."""
        return unspell(self._spelling(token_id))

    def _spelling(self, token_id: int) -> str:
        if not 0 <= token_id < len(self._tokens):
            raise unknown_token_id(token_id, len(self._tokens))
        return self._tokens[token_id]

    def _segments(self, text: str, allow_special: bool) -> list[str | int]:
        """The text with the added tokens in it replaced by their ids."""
        segments: list[str | int] = [text]
        for pattern in self._all_added if allow_special else self._ordinary_added:
            cut: list[str | int] = []
            for segment in segments:
                if isinstance(segment, int):
                    cut.append(segment)
                    continue
                ordinary, *rest = pattern.split(segment)
                cut.append(ordinary)
                for content, ordinary in zip(rest[::2], rest[1::2], strict=True):
                    cut += [self._added_ids[content], ordinary]
            segments = cut
        return segments

    def _append_ordinary(self, text: str, ids: list[int]) -> None:
        """Append the ids of text without added tokens."""
        if self._definition.add_prefix_space and text and not text.startswith(" "):
            text = " " + text
        pieces = PIECE.findall(text) if len(text) <= _MAX_LISTED_CHARS else (m[0] for m in PIECE.finditer(text))
        cached = self._ids_of_piece.get
        for piece in pieces:
            ids += cached(piece) or self._piece_ids(piece)

    def _piece_ids(self, piece: str) -> list[int]:
        """The ids of one piece, which is remembered if it is short."""
        data = piece.encode()
        whole_pieces = self._definition.whole_pieces
        whole_id = whole_pieces.get(spell(data)) if whole_pieces is not None else None
        if whole_id is not None:
            ids = [whole_id]
        else:
            ids = self._definition.merges.merge([self._definition.byte_ids[byte] for byte in data])
        if len(piece) <= _MAX_CACHED_CHARS:
            if len(self._ids_of_piece) >= _MAX_CACHED_PIECES:
                self._ids_of_piece.clear()
            self._ids_of_piece[piece] = ids
        return ids


def _passes(added_tokens: Iterable[AddedToken]) -> list[re.Pattern[str]]:
    """What finds the tokens in text: first those that are not normalized, then the others; the leftmost, and of those
    the longest."""
    contents: dict[bool, list[str]] = {False: [], True: []}
    for token in added_tokens:
        contents[token.normalized].append(token.content)
    return [
        re.compile(f"({'|'.join(re.escape(content) for content in sorted(group, key=lambda c: (-len(c), c)))})")
        for group in contents.values()
        if group
    ]
