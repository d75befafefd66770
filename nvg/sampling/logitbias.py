"""Logit bias."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, field

from nvg.errors import ParameterError
from nvg.sampling.contract import PerSequence, Sampler, SamplerRequest
from nvg.sampling.phrases import Phrase, Phrases, encode


@dataclass(frozen=True)
class LogitBias(PerSequence):
    """Add to the logits of chosen tokens (https://platform.openai.com/docs/api-reference/chat/create, `logit_bias`).

    A text of several tokens makes its last token more or less probable where the others came before, as transformers'
    `sequence_bias` does; llama.cpp adds to each of them, everywhere. -inf removes a token.

    ids: token id -> what is added, as {"50256": -100}
    words: text, with the space before it if there is one -> what is added, as {" dragon": 2.5}

        l'(i) = l(i) + bias(i)

    Use it to favour or to avoid a few known tokens: 1 is a nudge, 5 all but decides, -inf forbids.
    """

    ids: Mapping[int, float] = field(default_factory=dict, hash=False)
    words: Mapping[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in ("ids", "words"):
            for key, bias in getattr(self, name).items():
                if not (isinstance(bias, numbers.Real) and bias < math.inf):
                    raise ParameterError(f"{name} has {bias!r} for {key!r}; it must be a number, or -inf to remove it")

    def start(self, request: SamplerRequest) -> Sampler:
        amounts: dict[Phrase, float] = {(token_id,): float(bias) for token_id, bias in self.ids.items()}
        for text, bias in self.words.items():
            phrase = encode(request, text)
            amounts[phrase] = amounts.get(phrase, 0.0) + float(bias)
        return Phrases(amounts, request.vocab_size)
