"""Luck as a sampler: a plugin for nvg, and an example of one."""

from dataclasses import dataclass

import numpy as np

from nvg import hookimpl


@dataclass(frozen=True)
class Lucky:
    """Now and then forget the most probable token.

    chance: how often, from 0 to 1
    """

    chance: float = 0.1

    def __post_init__(self):
        if not 0 <= self.chance <= 1:
            raise ValueError(f"chance is {self.chance!r}; it must be a number from 0 to 1")

    def apply(self, logits, token_ids, state):
        if np.count_nonzero(logits > -np.inf) > 1 and state.uniform() < self.chance:
            logits[np.argmax(logits)] = -np.inf


@hookimpl
def nvg_register_samplers(register):
    register("lucky", Lucky)
