"""Banned words and token sequences."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nvg.sampling.contract import PerSequence, Sampler, SamplerRequest
from nvg.sampling.phrases import Phrases, check_phrases, encode


@dataclass(frozen=True)
class Banned(PerSequence):
    """Never complete a banned word or sequence of tokens (transformers' `bad_words_ids`, generation/logits_process.py,
    NoBadWordsLogitsProcessor).

    A word is banned as its tokenizer splits it, at the begin of a text and after a space; split otherwise, or as part
    of a longer word's token, it can still come. Put it first: a request ends with an error where an earlier stage left
    banned tokens only.

    words: texts, as ["dragon", "wolf"]
    ids: token ids, as [5, 17]
    sequences: lists of token ids, as [[5, 17], [3]]

        l'(i) = -inf where i completes a banned word or sequence

    Use it to keep names and words out. It removes tokens, not meanings: the model may say the same in other words.
    """

    words: tuple[str, ...] = ()
    ids: tuple[int, ...] = ()
    sequences: tuple[tuple[int, ...], ...] = ()

    may_remove_all = True

    def __post_init__(self) -> None:
        check_phrases("sequences", self.sequences)

    def start(self, request: SamplerRequest) -> Sampler:
        phrases = {(token_id,) for token_id in self.ids} | {tuple(sequence) for sequence in self.sequences}
        for word in self.words:
            phrases |= {encode(request, word), encode(request, f" {word.lstrip(' ')}")}
        return Phrases(dict.fromkeys(sorted(phrases), -math.inf), request.vocab_size)
