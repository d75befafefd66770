"""A forced prefix."""

from __future__ import annotations

from dataclasses import dataclass

from nvg.errors import ParameterError
from nvg.sampling import edit
from nvg.sampling.contract import Logits, PerSequence, Sampler, SamplerRequest, State, TokenIds
from nvg.sampling.phrases import Phrase, encode


@dataclass(frozen=True)
class ForcedPrefix(PerSequence):
    """Begin the output with a text or with tokens that are given (Wuebker, Green, DeNero, Hasan and Luong 2016,
    https://aclanthology.org/P16-1007, prefix-constrained decoding).

    Put it first: a request ends with an error where an earlier stage removed the token that must come.

    text: what the output begins with
    ids: token ids that it begins with; not beside a text

        keep i = prefix[step] while step < the prefix's length

    Use it to give the output its beginning, a heading or a bracket, as if the model had written it.
    """

    text: str = ""
    ids: tuple[int, ...] = ()

    may_remove_all = True

    def __post_init__(self) -> None:
        if self.text and self.ids:
            raise ParameterError(f"text is {self.text!r} and ids is {self.ids!r}; give one of them")

    def start(self, request: SamplerRequest) -> Sampler:
        return _Sequence(encode(request, self.text) if self.text else tuple(self.ids))


class _Sequence:
    def __init__(self, prefix: Phrase) -> None:
        self._prefix = prefix

    def apply(self, logits: Logits, token_ids: TokenIds, state: State) -> None:
        if state.step < len(self._prefix):
            token_id = self._prefix[state.step]
            if not edit.keep_only(logits, token_ids, token_id):
                raise ParameterError(f"token {token_id} of the prefix is no candidate; put this stage first")
