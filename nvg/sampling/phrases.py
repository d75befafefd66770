"""What banned words and biased texts have in common: amounts for the token that would complete a sequence of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from nvg.errors import ParameterError
from nvg.sampling import edit
from nvg.sampling.contract import Logits, SamplerRequest, State, TokenIds

Phrase = tuple[int, ...]


class Phrases:
    """A sampler that adds an amount to the logit of a sequence's last token where the text ends with its others.

    amounts: -inf removes the token; what several sequences add to one token is summed. The text is prompt and output.

    Raises ParameterError for an id that is not below `vocab_size`.
    """

    def __init__(self, amounts: Mapping[Phrase, float], vocab_size: int) -> None:
        outside = [token_id for phrase in amounts for token_id in phrase if not 0 <= token_id < vocab_size]
        if outside:
            raise ParameterError(f"token id {outside[0]} does not exist; ids are 0 to {vocab_size - 1}")
        single = {phrase[0]: amount for phrase, amount in amounts.items() if len(phrase) == 1}
        self._single = np.array(list(single), np.int32), np.array(list(single.values()), np.float64)
        self._by_beginning: dict[Phrase, dict[int, float]] = {}
        for phrase, amount in amounts.items():
            if len(phrase) > 1:
                self._by_beginning.setdefault(phrase[:-1], {})[phrase[-1]] = amount
        self._lengths = sorted({len(beginning) for beginning in self._by_beginning})

    def apply(self, logits: Logits, token_ids: TokenIds, state: State) -> None:
        ids, amounts = self._single
        if ids.size:
            edit.add(logits, token_ids, ids, amounts)
        if self._lengths:
            end = tuple(edit.last_tokens(state, self._lengths[-1]).tolist())
            for length in self._lengths:
                last = self._by_beginning.get(end[-length:])
                if last:
                    edit.add(logits, token_ids, np.array(list(last), np.int32), np.array(list(last.values())))


def encode(request: SamplerRequest, text: str) -> Phrase:
    """The token ids of a text that is not empty. Raises ParameterError."""
    if not text:
        raise ParameterError("a text is empty; it must have a token at least")
    return tuple(request.tokenizer.encode(text))


def check_phrases(name: str, phrases: Sequence[Phrase]) -> None:
    """Raise ParameterError for an empty sequence, which no token completes."""
    if not all(phrases):
        raise ParameterError(f"{name} has an empty sequence; each must have a token id at least")
