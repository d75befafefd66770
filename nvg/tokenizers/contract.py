"""What a tokenizer is to the rest of nvg."""

from collections.abc import Mapping, Sequence
from typing import Protocol


class Tokenizer(Protocol):
    """Text <-> token ids. Stateless and safe to share between threads.

    It may also have `affixes`, two tuples of ids, which a whole text, such as a prompt, gets before and after its own
    (`nvg.tokenizers.prompt`); `encode` doesn't put them there.
    """

    @property
    def vocab_size(self) -> int:
        """Ids are 0 .. vocab_size - 1."""

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Ids that end a text; the first one also begins an empty prompt. May be empty."""

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """Special tokens' text and id."""

    @property
    def fingerprint(self) -> str:
        """Hex digest of all that decides `encode` and `decode`: equal fingerprints, equal behaviour."""

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """The ids of `text`; special tokens in it are plain text unless `allow_special`.

        Raises ParameterError (a ValueError) for a lone surrogate, with its index; pairs are joined.
        """

    def encode_batch(self, texts: Sequence[str], *, allow_special: bool = False) -> list[list[int]]:
        """`encode` for each text."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of the ids; bytes that are not UTF-8 become U+FFFD."""

    def decode_bytes(self, token_ids: Sequence[int]) -> bytes:
        """The exact bytes of the ids. Raises ParameterError for an id outside the vocabulary."""

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes of one token."""
