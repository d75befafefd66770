"""Rows of logits that a sampler may meet, and one sequence of steps over them as an engine makes it, without mercy."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nvg.params import SamplingParams
from nvg.sampling.contract import Logits, SamplerRequest, TokenIds
from nvg.sampling.random import uniform
from nvg.testing.results import ViolationError
from nvg.tokenizers.bytes import BytesTokenizer
from nvg.tokenizers.checks import unknown_token_id
from nvg.tokenizers.contract import Tokenizer

PROMPT = tuple(b"Once upon a time there was a time")
"""Bytes as ids, and some come again: what penalties look at."""


class WideTokenizer(BytesTokenizer):
    """As many ids as GPT-2 has: bytes, then pairs of them; the last one is `<|endoftext|>`."""

    vocab_size = 50257
    eos_token_ids = (50256,)
    special_tokens: Mapping[str, int] = {"<|endoftext|>": 50256}
    fingerprint = "wide-50257"

    @classmethod
    def from_dir(cls, path: str | os.PathLike[str]) -> WideTokenizer:
        return cls()

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        ids = super().encode(text, allow_special=allow_special)
        return [self.vocab_size - 1 if token_id == 256 else token_id for token_id in ids]

    def token_bytes(self, token_id: int) -> bytes:
        if not 0 <= token_id < self.vocab_size:
            raise unknown_token_id(token_id, self.vocab_size)
        if token_id == self.vocab_size - 1:
            return b"<|endoftext|>"
        return bytes((token_id,)) if token_id < 256 else bytes(divmod(token_id - 256, 256))


def request_for(tokenizer: Tokenizer) -> SamplerRequest:
    """What `start` is told."""
    return SamplerRequest(
        tokenizer=tokenizer,
        vocab_size=tokenizer.vocab_size,
        eos_token_ids=tuple(tokenizer.eos_token_ids),
        prompt_token_ids=_read_only(PROMPT),
        params=SamplingParams(max_tokens=64),
    )


@dataclass(frozen=True)
class Row:
    """What one step gives a sampler."""

    label: str
    logits: Logits
    token_ids: TokenIds

    @property
    def num_left(self) -> int:
        return int(np.count_nonzero(self.logits > -np.inf))


def random_row(size: int, seed: int = 0, spread: float = 3.0) -> Logits:
    """Logits as a model gives them: float32 (size,), no two equal."""
    generator = np.random.Generator(np.random.PCG64(seed))
    values = np.unique(generator.standard_normal(size + size // 8 + 16, np.float32) * np.float32(spread))
    return generator.permutation(values)[:size]


def whole_rows(size: int) -> list[Row]:
    """Rows of a whole vocabulary, from the usual to the worst."""
    usual, ids = random_row(size), np.arange(size, dtype=np.int32)
    tied = usual.copy()
    tied[[3, size // 2, size - 1]] = tied.max() + 1
    peaked = usual.copy()
    peaked[size // 3] = 200
    made = {
        "usual logits": usual,
        "all logits equal": np.zeros(size, np.float32),
        "all logits equal to -1000": np.full(size, -1000, np.float32),
        "three tokens tied for the first place": tied,
        "one token 200 above the others": peaked,
        "logits from -1e38 to 1e38": np.linspace(-1e38, 1e38, size, dtype=np.float32),
        "logits a millionth apart": np.linspace(1, 1 + size * 1e-6, size, dtype=np.float32),
    }
    return [Row(label, logits, ids) for label, logits in made.items()]


def removed_rows(size: int) -> list[Row]:
    """Rows of a whole vocabulary of which earlier stages removed a part."""
    ids = np.arange(size, dtype=np.int32)
    half, one = random_row(size, 1), np.full(size, -np.inf, np.float32)
    half[np.argsort(half)[: size // 2]] = -np.inf
    best_gone = random_row(size, 2)
    best_gone[np.argsort(best_gone)[-5:]] = -np.inf
    one[size // 2] = 0.5
    labels = ("the less probable half removed", "the five most probable removed", "all but one removed")
    return [Row(label, logits, ids) for label, logits in zip(labels, (half, best_gone, one), strict=True)]


def compacted(row: Row) -> Row:
    """The candidates that are left of a row, as later stages get them."""
    left = row.logits > -np.inf
    return Row(f"{row.label}, compacted", row.logits[left], row.token_ids[left])


def few_rows(size: int) -> list[Row]:
    """Few candidates, with ids far from their indices."""
    rows = []
    for num, label in ((1, "a single candidate"), (2, "two candidates"), (40, "40 candidates")):
        ids = np.sort(np.random.Generator(np.random.PCG64(num)).permutation(np.arange(97, size))[:num])
        rows.append(Row(label, random_row(num, num), ids.astype(np.int32)))
    equal = Row("40 equal candidates", np.full(40, 2.5, np.float32), rows[-1].token_ids)
    return [*rows, equal]


class KitState:
    """A `nvg.sampling.contract.State` whose numbers are those of the first stage of a real chain."""

    def __init__(self, output: list[int], seed: int) -> None:
        self.prompt_token_ids = _read_only(PROMPT)
        self.output_token_ids = _read_only(output)
        self.step = len(output)
        self.num_drawn = 0
        self._seed = seed

    def uniform(self) -> float:
        number = uniform(self._seed, 0, self.step, 0, self.num_drawn)
        self.num_drawn += 1
        return number


class SequenceRun:
    """One sequence: what `start` gives, then `apply` and `accept` for each token. What `apply` left is checked."""

    def __init__(self, spec: Any, tokenizer: Tokenizer, seed: int = 0) -> None:
        start = getattr(spec, "start", None)
        self.sampler = spec if start is None else start(request_for(tokenizer))
        if not callable(getattr(self.sampler, "apply", None)):
            raise ViolationError(
                f"start returned a {type(self.sampler).__name__} without apply; return an object with apply(logits, "
                "token_ids, state), which may have accept(token_id, logprob)"
            )
        self.num_drawn = 0
        """Random numbers that the sampler has asked for."""
        self._output: list[int] = []
        self._seed = seed

    def apply(self, row: Row, *, may_remove_all: bool = False) -> Logits:
        """The logits after the sampler's work on a row. Raises ViolationError where it broke the contract."""
        logits: Logits = row.logits.copy()
        ids = row.token_ids.copy()
        ids.flags.writeable = False
        state = KitState(self._output, self._seed)
        try:
            returned = self.sampler.apply(logits, ids.view(), state)
        except ValueError:
            if not may_remove_all:
                raise
            return np.full_like(logits, -np.inf)  # it says why it lets nothing through
        self.num_drawn += state.num_drawn
        where = f"({row.label}, n={row.logits.size}, output token {state.step})"
        if returned is not None:
            raise ViolationError(
                f"apply returned a {type(returned).__name__} {where}; edit logits in place, return None"
            )
        for name, bad in (("NaN", np.isnan(logits)), ("+inf", logits == np.inf)):
            if bad.any():
                raise ViolationError(
                    f"apply left {name} for {np.count_nonzero(bad)} candidates {where}, the first being token "
                    f"{ids[bad.argmax()]}; leave finite numbers, or -inf to remove a candidate"
                )
        back = (logits > -np.inf) & (row.logits == -np.inf)
        if back.any():
            raise ViolationError(
                f"apply brought back {np.count_nonzero(back)} removed candidates {where}, the first being token "
                f"{ids[back.argmax()]}; leave logits of -inf as they are"
            )
        if not may_remove_all and not (logits > -np.inf).any():
            raise ViolationError(f"apply removed every candidate {where}; keep at least one, such as the most probable")
        return logits

    def time_apply(self, row: Row) -> float:
        """Seconds that `apply` takes on a row; what it left is not looked at."""
        logits, state = row.logits.copy(), KitState(self._output, self._seed)
        start = time.perf_counter()
        self.sampler.apply(logits, row.token_ids, state)
        return time.perf_counter() - start

    def accept(self, token_id: int) -> None:
        """The token that was drawn."""
        self._output.append(token_id)
        accept = getattr(self.sampler, "accept", None)
        if accept is not None:
            accept(token_id, -1.0)


def _read_only(ids: Any) -> TokenIds:
    array = np.array(ids, np.int32)
    array.flags.writeable = False
    return array
