"""Bytes as tokens: no vocabulary to learn or to load."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from nvg.tokenizers.checks import joined_surrogates, unknown_token_id

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 256


class BytesTokenizer:
    """Ids 0 .. 255 are the bytes of UTF-8; id 256 is `<|endoftext|>`. See `nvg.tokenizers.contract.Tokenizer`."""

    vocab_size = 257
    eos_token_ids = (END_OF_TEXT_ID,)
    special_tokens: Mapping[str, int] = MappingProxyType({END_OF_TEXT: END_OF_TEXT_ID})
    fingerprint = "bytes-257"

    @classmethod
    def from_dir(cls, path: str | os.PathLike[str]) -> BytesTokenizer:
        """The tokenizer; it needs nothing from the model's directory `path`."""
        return cls()

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """The bytes of `text`; `<|endoftext|>` in it is plain text unless `allow_special`.

        Raises ParameterError for a lone surrogate, with its index.
        """
        text = joined_surrogates(text)
        first, *others = text.split(END_OF_TEXT) if allow_special else [text]
        ids = list(first.encode())
        for segment in others:
            ids.append(END_OF_TEXT_ID)
            ids += segment.encode()
        return ids

    def encode_batch(self, texts: Sequence[str], *, allow_special: bool = False) -> list[list[int]]:
        """`encode` for each text."""
        return [self.encode(text, allow_special=allow_special) for text in texts]

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of the ids; bytes that are not UTF-8 become U+FFFD. Raises ParameterError for an unknown id."""
        return self.decode_bytes(token_ids).decode("utf-8", "replace")

    def decode_bytes(self, token_ids: Sequence[int]) -> bytes:
        """The exact bytes of the ids. Raises ParameterError for an unknown id."""
        return b"".join([self.token_bytes(token_id) for token_id in token_ids])

    def token_bytes(self, token_id: int) -> bytes:
        """The one byte of the token, or the text of `<|endoftext|>`. Raises ParameterError for an unknown id."""
        if 0 <= token_id < END_OF_TEXT_ID:
            return bytes((token_id,))
        if token_id == END_OF_TEXT_ID:
            return END_OF_TEXT.encode()
        raise unknown_token_id(token_id, self.vocab_size)
