"""Greedy decoding."""

from dataclasses import dataclass

from nvg.sampling import select
from nvg.sampling.contract import Logits, State, TokenIds


@dataclass(frozen=True)
class Greedy:
    """Keep only the most probable token; of equal ones the lowest id (transformers' `do_sample=False`, llama.cpp's
    greedy sampler).

        keep i = argmax P

    Use it for the same short answer each time, and to compare models. Longer texts of small models repeat themselves.
    """

    def apply(self, logits: Logits, token_ids: TokenIds, state: State) -> None:
        keep_most_probable(logits)


def keep_most_probable(logits: Logits) -> None:
    """Remove all but the first of the largest logits: float32 (n,), edited in place."""
    select.keep_first_largest(logits)
