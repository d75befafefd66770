"""The clock around engines that compute a step when they are told to, and show logits."""

from __future__ import annotations

import time
from collections.abc import Sequence

from work import Logits, Outcome, Work


class SteppingEngine:
    """Base class: a peer says how to run prompts and steps, and how to sample; what is timed is the same for all."""

    description = ""

    def prefill(self, prompts: Sequence[list[int]]) -> None:
        """Forget everything, and run B prompts of equal length up to their last tokens' logits."""
        raise NotImplementedError

    def step(self, token_ids: list[int]) -> None:
        """Append a token to each of the B sequences, up to its logits."""
        raise NotImplementedError

    def logits(self) -> Logits:
        """(B, V) of the last call."""
        raise NotImplementedError

    def sample(self, work: Work) -> Outcome:
        """Do work of kind greedy or topp with the engine's own sampler."""
        raise NotImplementedError

    def run(self, work: Work) -> Outcome:
        """Do it."""
        if work.kind == "prefill":
            if work.warm:
                self.prefill([work.warm])
            start = time.perf_counter()
            for prompt in work.prompts:
                self.prefill([prompt])
            return self._outcome(time.perf_counter() - start, work)
        if work.kind != "decode":
            return self.sample(work)
        self.prefill(work.prompts)
        start = time.perf_counter()
        for token_ids in work.then:
            self.step(token_ids)
        return self._outcome(time.perf_counter() - start, work)

    def _outcome(self, seconds: float, work: Work) -> Outcome:
        return Outcome(seconds, self.logits() if work.is_check else None)
