"""Models of true size with random weights and without files: speed does not depend on what weights say."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from nvg.bench.options import DUMMY_SIZES
from nvg.errors import ParameterError
from nvg.model.checkpoint import tensor_shapes
from nvg.model.config import ModelConfig
from nvg.model.contract import Float32

VOCAB_SIZE, N_POSITIONS = 50257, 1024
_STD = 0.02  # GPT-2's initializer_range
_BLOCK = 1_048_573  # values that repeat: a prime, so that no two rows of a matrix are alike


def dummy_config(size: str) -> ModelConfig:
    """The config of a published GPT-2, one of DUMMY_SIZES; without an end-of-text id."""
    n_layer, n_head, n_embd = DUMMY_SIZES[size]
    return ModelConfig(
        vocab_size=VOCAB_SIZE,
        n_positions=N_POSITIONS,
        n_embd=n_embd,
        n_layer=n_layer,
        n_head=n_head,
        n_inner=4 * n_embd,
    )


class DummyCheckpoint:
    """What `nvg.model.checkpoint.Checkpoint` is to those who pack it, with weights that are made as they are read.

    Normal values of GPT-2's initial deviation, 0.02; layer norms' gains are around 1. The same each time.
    """

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.warnings: list[str] = []
        self._shapes = tensor_shapes(config)
        values = np.random.default_rng(0).standard_normal(_BLOCK, np.float32) * np.float32(_STD)
        self._values = np.concatenate([values, values])  # any stretch of a block's length is contiguous

    @property
    def names(self) -> tuple[str, ...]:
        """Canonical names of all tensors that the config asks for, in the model's order."""
        return tuple(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor of `names`."""
        return self._shapes[name]

    def read(self, name: str, out: Float32 | None = None) -> Float32:
        """A tensor's values, float32, C-contiguous, in `out` where given."""
        if out is None:
            out = np.empty(self._shapes[name], np.float32)
        self._fill(out.reshape(-1), name, 0)
        return out

    def read_rows(self, name: str, first_row: int, out: Float32) -> None:
        """Rows of a matrix from `first_row` on, as many as `out` (float32, C-contiguous, (rows, columns)) has."""
        self._fill(out.reshape(-1), name, first_row * out.shape[1])

    def close(self) -> None:
        """There is nothing to close."""

    def __enter__(self) -> DummyCheckpoint:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _fill(self, flat: Float32, name: str, first: int) -> None:
        """The tensor's elements from number `first` on."""
        start = zlib.crc32(name.encode()) + first
        for done in range(0, flat.size, _BLOCK):
            part = flat[done : done + _BLOCK]
            at = (start + done) % _BLOCK
            part[:] = self._values[at : at + part.size]
        if name.endswith("weight") and len(self._shapes[name]) == 1:
            flat += np.float32(1)


class NumberTokenizer:
    """The tokenizer of a model without a vocabulary: a token is its id, written as a number, and a blank.

    See `nvg.tokenizers.contract.Tokenizer`.
    """

    eos_token_ids: tuple[int, ...] = ()
    special_tokens: Mapping[str, int] = MappingProxyType({})

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.fingerprint = f"numbers-{vocab_size}"

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """The numbers in `text`. Raises ParameterError for what is no id."""
        words = text.split()
        for word in words:
            if not (word.isascii() and word.isdigit() and int(word) < self.vocab_size):
                raise ParameterError(f"the text has {word!r}; it must be numbers from 0 to {self.vocab_size - 1}")
        return [int(word) for word in words]

    def encode_batch(self, texts: Sequence[str], *, allow_special: bool = False) -> list[list[int]]:
        """`encode` for each text."""
        return [self.encode(text) for text in texts]

    def decode(self, token_ids: Sequence[int]) -> str:
        """The numbers as text."""
        return self.decode_bytes(token_ids).decode()

    def decode_bytes(self, token_ids: Sequence[int]) -> bytes:
        """The numbers as bytes. Raises ParameterError for an id outside the vocabulary."""
        return b"".join([self.token_bytes(token_id) for token_id in token_ids])

    def token_bytes(self, token_id: int) -> bytes:
        """One number and a blank. Raises ParameterError for an id outside the vocabulary."""
        if not 0 <= token_id < self.vocab_size:
            raise ParameterError(f"token id {token_id} is not in the vocabulary; ids are 0 to {self.vocab_size - 1}")
        return b"%d " % token_id
