"""GPT-2's printable alphabet for bytes, in which vocabularies and merges are written.

Bytes that are printable in Latin-1 (and not a space) stand for themselves; the others, in ascending order, are
U+0100, U+0101 and so on: a space is `Ġ`, a line feed `Ċ` (`bytes_to_unicode` of `encoder.py`, openai/gpt-2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

_PRINTABLE = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]

CHAR_OF_BYTE = {byte: chr(byte) for byte in _PRINTABLE} | {byte: chr(0x100 + k) for k, byte in enumerate(_OTHERS)}
"""The character for each of the 256 bytes."""
_BYTE_OF_CHAR = {ord(char): byte for byte, char in CHAR_OF_BYTE.items()}


def spell(data: bytes) -> str:
    """The bytes as characters of the alphabet."""
    return data.decode("latin-1").translate(CHAR_OF_BYTE)


def is_spelled(text: str) -> bool:
    """Whether the text is of the alphabet alone."""
    return all(ord(char) in _BYTE_OF_CHAR for char in text)


def unspell(spelling: str) -> bytes:
    """The bytes that `spelling` stands for; every character must be in the alphabet."""
    return spelling.translate(_BYTE_OF_CHAR).encode("latin-1")


@dataclass(frozen=True)
class ByteIds:
    """The ids of single bytes, which the merges begin from."""

    ids: tuple[int, ...]
    """Of each of the 256 bytes; -1 for one that the vocabulary lacks."""
    unknown_id: int = -1
    """What such bytes become; -1 leaves them out."""
    fuses_unknown: bool = False
    """Whether several of them in a row become one."""

    @classmethod
    def of_vocab(cls, vocab: Mapping[str, int], unknown_id: int = -1, fuses_unknown: bool = False) -> ByteIds:
        """Those of a vocabulary that is spelled in the alphabet."""
        return cls(tuple(vocab.get(CHAR_OF_BYTE[byte], -1) for byte in range(256)), unknown_id, fuses_unknown)

    @cached_property
    def are_all_known(self) -> bool:
        return min(self.ids) >= 0

    def of(self, data: bytes) -> list[int]:
        """The ids of the bytes of one piece."""
        ids = [self.ids[byte] for byte in data]
        if self.are_all_known:
            return ids
        if self.unknown_id < 0:
            return [token_id for token_id in ids if token_id >= 0]
        return [
            token_id if token_id >= 0 else self.unknown_id
            for before, token_id in zip([0, *ids], ids, strict=False)
            if token_id >= 0 or before >= 0 or not self.fuses_unknown
        ]
