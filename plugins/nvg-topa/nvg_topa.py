"""Top-a sampling: a plugin for nvg."""

from dataclasses import dataclass

import numpy as np

from nvg import hookimpl


@dataclass(frozen=True)
class TopA:
    """Keep the tokens whose probability is at least a times the square of the largest probability.

    Where the model is sure, few stay; where it is not, many do.

    a: from 0 to 1; 0 means all
    """

    a: float = 0.2

    def __post_init__(self):
        if not 0 <= self.a <= 1:
            raise ValueError(f"a is {self.a!r}; it must be a number from 0 to 1 (0 means off)")

    def apply(self, logits, token_ids, state):
        weights = np.exp(logits - logits.max())
        probabilities = weights / weights.sum()
        logits[probabilities < self.a * probabilities.max() ** 2] = -np.inf


@hookimpl
def nvg_register_samplers(register):
    register("topa", TopA)
