"""GPT-2's printable alphabet for bytes, in which vocabularies and merges are written.

Bytes that are printable in Latin-1 (and not a space) stand for themselves; the others, in ascending order, are
U+0100, U+0101 and so on: a space is `Ġ`, a line feed `Ċ` (`bytes_to_unicode` of `encoder.py`, openai/gpt-2).
"""

_PRINTABLE = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]

CHAR_OF_BYTE = {byte: chr(byte) for byte in _PRINTABLE} | {byte: chr(0x100 + k) for k, byte in enumerate(_OTHERS)}
"""The character for each of the 256 bytes."""
_BYTE_OF_CHAR = {ord(char): byte for byte, char in CHAR_OF_BYTE.items()}


def spell(data: bytes) -> str:
    """The bytes as characters of the alphabet."""
    return data.decode("latin-1").translate(CHAR_OF_BYTE)


def unspell(spelling: str) -> bytes:
    """The bytes that `spelling` stands for; every character must be in the alphabet."""
    return spelling.translate(_BYTE_OF_CHAR).encode("latin-1")
