"""GPT-2's tokenizer: byte-level byte-pair encoding (Radford et al. 2019, "Language Models are Unsupervised Multitask
Learners", section 2.2; `encoder.py` of openai/gpt-2)."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING

from nvg.errors import ParameterError
from nvg.tokenizers.added_tokens import AddedTokenFinder
from nvg.tokenizers.bpe_files import BPEDefinition, read_definition
from nvg.tokenizers.byte_alphabet import is_spelled, spell, unspell
from nvg.tokenizers.checks import joined_surrogates, unknown_token_id

if TYPE_CHECKING:
    from nvg.tokenizers.added_tokens import AddedToken
    from nvg.tokenizers.bpe_compiled import CompiledBPE
    from nvg.tokenizers.post_processing import Affixes

_MAX_CACHED_PIECES = 1 << 15
_MAX_CACHED_CHARS = 32
"""Words come again and again; the cache stays below about 10 MB."""

_COMPILED_FROM_CHARS = 1 << 12
_LOADED_FROM_CHARS = 1 << 18
_PREPARED_FROM_CHARS = 1 << 22
"""Compiled code is for texts that are worth it: more, once it has to be loaded (0.1 s), and still more if Numba has to
be loaded (1 s) or the code to be compiled (3 s, once per machine)."""


class ByteLevelBPE:
    """The tokenizer of a GPT-2 checkpoint. See `nvg.tokenizers.contract.Tokenizer`; `from_dir` makes one."""

    def __init__(self, definition: BPEDefinition) -> None:
        self._definition = definition
        self._tokens = definition.tokens
        specials = {token.content: token.token_id for token in definition.added_tokens if token.special}
        self._special_tokens = MappingProxyType(specials)
        added: dict[bool, list[AddedToken]] = {False: [], True: []}
        for token in definition.added_tokens:
            added[token.normalized].append(token)
        self._raw_tokens = AddedTokenFinder(added[False])
        self._normalized_tokens = AddedTokenFinder(added[True], definition.normalizer)
        self._compiled: CompiledBPE | None = None
        self._space_first = None in definition.pre_tokenizer.steps[:1]
        self._can_be_compiled = True
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

    @property
    def affixes(self) -> Affixes:
        """The ids that the file's post-processor puts before and after those of a whole text; `encode` doesn't."""
        return self._definition.affixes

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of all that decides `encode` and `decode`, from whichever files it came."""
        definition = self._definition
        digest = hashlib.sha256()
        for part in (
            definition.pre_tokenizer,
            definition.normalizer_setting,
            sorted(definition.added_tokens, key=lambda token: token.token_id),
            sorted(definition.whole_pieces.items()) if definition.whole_pieces is not None else None,
            definition.tokens,
            definition.merges.pairs(),
            definition.byte_ids,
            definition.affixes,
        ):
            digest.update(repr(part).encode() + b"\n")
        return digest.hexdigest()

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """The ids of `text`; special tokens in it are plain text unless `allow_special`. O(n log n).

        Surrogate pairs are joined. Raises ParameterError (a ValueError) for a lone surrogate, with its index.
        """
        return self.encode_batch([text], allow_special=allow_special)[0]

    def encode_batch(self, texts: Sequence[str], *, allow_special: bool = False) -> list[list[int]]:
        """`encode` for each text; much text is shared out among threads."""
        try:
            segments = [self._segments(joined_surrogates(text), allow_special) for text in texts]
            ordinary = self._ordinary_ids([part for parts in segments for part in parts if isinstance(part, str)])
        except TimeoutError:
            raise ParameterError(
                "the tokenizer's pattern takes too long for this text; the file may be hostile"
            ) from None
        ids_of = iter(ordinary)
        encoded = []
        for parts in segments:
            ids: list[int] = []
            for part in parts:
                if isinstance(part, int):
                    ids.append(part)
                else:
                    ids += next(ids_of)
            encoded.append(ids)
        return encoded

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
        """The text, normalized, with the added tokens in it replaced by their ids; no string is empty."""
        normalize = self._definition.normalizer
        segments: list[str | int] = []
        for segment in self._raw_tokens.cut(text, allow_special=allow_special):
            if isinstance(segment, int):
                segments.append(segment)
            else:
                normalized = normalize(segment) if normalize else segment
                segments += self._normalized_tokens.cut(normalized, allow_special=allow_special)
        return segments

    def _ordinary_ids(self, texts: list[str]) -> list[list[int]]:
        """The ids of texts without added tokens, none of them empty."""
        if compiled := self._compiled_for(sum(map(len, texts))):
            if self._space_first:
                texts = [text if text[0] == " " else " " + text for text in texts]
            return compiled.encode(texts)
        return [self._piecewise_ids(text) for text in texts]

    def _compiled_for(self, num_chars: int) -> CompiledBPE | None:
        """The compiled code, if that is the faster way for so much text."""
        if self._compiled is None and num_chars >= _LOADED_FROM_CHARS and self._can_be_compiled:
            ready = "numba" in sys.modules and _bpe_compiled().is_ready()
            if ready or num_chars >= _PREPARED_FROM_CHARS:
                self._compiled = _compiled(self._definition)
                self._can_be_compiled = self._compiled is not None
        return self._compiled if num_chars >= _COMPILED_FROM_CHARS else None

    def _piecewise_ids(self, text: str) -> list[int]:
        ids: list[int] = []
        cached = self._ids_of_piece.get
        for piece in self._definition.pre_tokenizer.pieces(text):
            ids += cached(piece) or self._piece_ids(piece)
        return ids

    def _piece_ids(self, piece: str) -> list[int]:
        """The ids of one piece, which is remembered if it is short."""
        data = piece.encode()
        definition = self._definition
        whole_id = definition.whole_pieces.get(spell(data)) if definition.whole_pieces is not None else None
        ids = definition.merges.merge(definition.byte_ids.of(data)) if whole_id is None else [whole_id]
        if len(piece) <= _MAX_CACHED_CHARS:
            if len(self._ids_of_piece) >= _MAX_CACHED_PIECES:
                self._ids_of_piece.clear()
            self._ids_of_piece[piece] = ids
        return ids


def _bpe_compiled() -> ModuleType:
    from nvg.tokenizers import bpe_compiled  # not at the start: it imports Numba

    return bpe_compiled


def _compiled(definition: BPEDefinition) -> CompiledBPE | None:
    """None for a pre-tokenizer that is not regular, or puts spaces within the text."""
    from nvg.tokenizers.automaton import split_tables

    steps = definition.pre_tokenizer.steps
    steps = steps[1:] if steps[:1] == (None,) else steps
    splits = [step for step in steps if step is not None]
    tables = split_tables(splits) if len(splits) == len(steps) else None
    if tables is None:
        return None
    whole_pieces = definition.whole_pieces
    compiled: CompiledBPE = _bpe_compiled().CompiledBPE(
        tables,
        definition.merges,
        definition.byte_ids,
        {unspell(piece): token_id for piece, token_id in (whole_pieces or {}).items() if is_spelled(piece)},
    )
    return compiled
