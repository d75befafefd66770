"""DRY, a repetition penalty."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from nvg import ranges
from nvg.errors import ParameterError
from nvg.sampling import edit
from nvg.sampling.contract import Logits, PerSequence, Sampler, SamplerRequest, State, TokenIds
from nvg.tokenizers.contract import Tokenizer

_HIGHEST = float(np.finfo(np.float32).max)
_LOG_HIGHEST = math.log(_HIGHEST)


@dataclass(frozen=True)
class DRY(PerSequence):
    """Don't repeat yourself: a token that would prolong a repetition of what prompt and output end with is made less
    probable, by multiplier * base^(length - allowed_length) with the length of the longest such repetition before it
    (Weidmann 2024, https://github.com/oobabooga/text-generation-webui/pull/5677).

    As in llama.cpp, whose default multiplier 0 is off. A repetition does not reach back over a breaker, and a token
    that has one in it is spared. Breakers are looked for in the bytes of the text; llama.cpp finds one that spans
    several tokens only in the tokens into which it is split itself.

    multiplier: at least 0; 0 means off
    base: at least 1
    allowed_length: longest repetition that is not punished, at least 1
    last_n: how many tokens to look back; -1 means all, 0 none
    breakers: texts over which nothing is a repetition, as [".", ","]

        l'(i) = l(i) - multiplier base^(L - allowed_length) where L >= allowed_length,
        L = the most tokens that the text ends with and that stood before an i already

    Use it against texts that run in circles: it breaks up phrases that come again, and spares single words.
    """

    multiplier: float = 0.8
    base: float = 1.75
    allowed_length: int = 2
    last_n: int = -1
    breakers: tuple[str, ...] = ("\n", ":", '"', "*")

    def __post_init__(self) -> None:
        ranges.number("multiplier", self.multiplier, ">= 0 (0 means off)", 0, math.inf)
        ranges.number("base", self.base, ">= 1", 1, math.inf)
        ranges.integer("allowed_length", self.allowed_length, 1)
        ranges.integer("last_n", self.last_n, -1, note="-1 means all, 0 none")
        if not all(self.breakers):
            raise ParameterError("breakers has an empty text; each must have a character at least")

    def start(self, request: SamplerRequest) -> Sampler:
        return _Sequence(self, request)


class _Sequence:
    """The text so far and, for each of its beginnings, how many tokens it ends with that the text ends with."""

    def __init__(self, spec: DRY, request: SamplerRequest) -> None:
        self._spec = spec
        self._breaks = _Breaks(spec.breakers, request.tokenizer)
        self._text = np.empty(0, np.int32)
        self._shared = np.zeros(1, np.int32)  # [i] is of text[:i]
        self._size = 0
        self._since_break = 0
        for token_id in request.prompt_token_ids.tolist():
            self.accept(token_id, 0.0)

    def accept(self, token_id: int, logprob: float) -> None:
        size = self._size
        if size == self._text.size:
            more = np.zeros(max(64, size), np.int32)
            self._text, self._shared = np.concatenate([self._text, more]), np.concatenate([self._shared, more])
        self._shared[1 : size + 1] = np.where(self._text[:size] == token_id, self._shared[:size] + 1, 0)
        self._text[size] = token_id
        self._size = size + 1
        self._since_break = 0 if self._breaks.completes_one(token_id) else self._since_break + 1

    def apply(self, logits: Logits, token_ids: TokenIds, state: State) -> None:
        spec, size = self._spec, self._size
        start = max(0, size - spec.last_n) if spec.last_n >= 0 else 0
        if not spec.multiplier or size - start < 2 or self._since_break < spec.allowed_length:
            return
        repeats = self._shared[start + 1 : size]
        if start:
            repeats = np.minimum(repeats, np.arange(1, size - start))
        ends = np.flatnonzero(repeats >= spec.allowed_length)
        if ends.size == 0:
            return
        lengths = np.minimum(repeats[ends], self._since_break)
        order = np.argsort(lengths)  # of several with the same token to come the longest is the last
        longest = dict(zip(self._text[start + 1 + ends[order]].tolist(), lengths[order].tolist(), strict=True))
        longest = {token_id: length for token_id, length in longest.items() if not self._breaks.has_one(token_id)}
        exponents = np.array(list(longest.values()), np.float64) - spec.allowed_length
        if spec.base > 1:
            exponents = np.minimum(exponents, _LOG_HIGHEST // math.log(spec.base))
        penalties = np.minimum(spec.multiplier * spec.base**exponents, _HIGHEST)
        edit.add(logits, token_ids, np.array(list(longest), np.int32), -penalties)


class _Breaks:
    """Finds breakers in the bytes of a text."""

    def __init__(self, breakers: tuple[str, ...], tokenizer: Tokenizer) -> None:
        self._breakers = [breaker.encode() for breaker in breakers]
        self._tokenizer = tokenizer
        self._most = max(map(len, self._breakers), default=1) - 1
        self._tail = b""

    def completes_one(self, token_id: int) -> bool:
        """Whether the next token of the text is the last of a breaker's."""
        before = len(self._tail)
        data = self._tail + self._bytes(token_id)
        self._tail = data[-self._most :] if self._most else b""
        return any(data.find(breaker, max(0, before - len(breaker) + 1)) >= 0 for breaker in self._breakers)

    def has_one(self, token_id: int) -> bool:
        """Whether a token has a whole breaker in it."""
        data = self._bytes(token_id)
        return any(breaker in data for breaker in self._breakers)

    def _bytes(self, token_id: int) -> bytes:
        return self._tokenizer.token_bytes(token_id) if token_id < self._tokenizer.vocab_size else b""
