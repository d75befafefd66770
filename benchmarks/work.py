"""What the engines are asked to do: a task as the command line names it, and its tokens."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]
SHORT_CONTEXT = 32
"""Tokens of the prompt before decode where the task's name does not say."""
WARM_TOKENS = 16
_PREFILL_TOKENS = 512  # short prompts are prefilled one after the other until there are about so many tokens
_NAME = re.compile(r"(?:(prefill)-([1-9][0-9]*)|(decode|greedy|topp)-([1-9][0-9]*)(?:-([1-9][0-9]*))?)")

TOP_P = 0.9


@dataclass(frozen=True)
class Task:
    """A row of the results.

    `prefill-N`: a prompt of N tokens, up to the last token's logits. `decode-B` and `decode-B-C`: B sequences of C
    tokens (32) are continued together, a token each at every step; nothing is sampled. `greedy-B-C` and `topp-B-C`:
    the same, with the engine's own sampling, of the most probable token or of the nucleus of 0.9 at temperature 1.
    """

    kind: str
    batch: int
    context: int
    """Tokens of each prompt."""
    steps: int = 0
    """Timed decode steps; 0 for prefill."""

    @classmethod
    def parse(cls, name: str, new_tokens: int) -> Task:
        """A task by its name; decode at batch 1 makes `new_tokens` steps, larger batches a fourth of them.

        Raises ValueError for a name that means nothing.
        """
        match = _NAME.fullmatch(name)
        if match is None:
            raise ValueError(
                f"no work {name!r}; there are prefill-TOKENS, decode-BATCH, greedy-BATCH and topp-BATCH, the last "
                "three also with -CONTEXT"
            )
        if match[1]:
            return cls("prefill", 1, int(match[2]))
        batch = int(match[4])
        return cls(match[3], batch, int(match[5] or SHORT_CONTEXT), new_tokens if batch == 1 else -(-new_tokens // 4))

    @property
    def name(self) -> str:
        """As `parse` takes it."""
        if self.kind == "prefill":
            return f"prefill-{self.context}"
        return f"{self.kind}-{self.batch}" + ("" if self.context == SHORT_CONTEXT else f"-{self.context}")

    @property
    def tokens(self) -> int:
        """Most tokens that one sequence has in the end. Engines that sample make the first one with the prompt."""
        return self.context + self.steps + (self.kind != "prefill")

    def draw(self, vocab_size: int, seed: int) -> Work:
        """Random tokens for it, decided by the seed."""
        rng = random.Random(f"{self.name} {seed}")

        def tokens(count: int) -> list[int]:
            return [rng.randrange(vocab_size) for _ in range(count)]

        rounds = max(1, _PREFILL_TOKENS // self.context) if self.kind == "prefill" else self.batch
        return Work(
            kind=self.kind,
            prompts=[tokens(self.context) for _ in range(rounds)],
            then=[tokens(self.batch) for _ in range(self.steps)],
            warm=tokens(WARM_TOKENS),
            seed=seed,
        )


@dataclass(frozen=True)
class Work:
    """A task with its tokens."""

    kind: str
    prompts: list[list[int]]
    """prefill: timed one after the other, each alone. Otherwise: all at once, untimed."""
    then: list[list[int]] = field(default_factory=list)
    """Each step's tokens, one for each sequence; engines that choose their own make as many steps."""
    warm: list[int] = field(default_factory=list)
    """A prompt to run first, untimed, before prefill."""
    seed: int = 0
    is_check: bool = False
    """Whether logits are wanted for comparison: an engine may then take a way that is not the fast one."""

    @property
    def num_tokens(self) -> int:
        """Tokens that the clock runs for."""
        if self.kind == "prefill":
            return sum(map(len, self.prompts))
        return len(self.prompts) * len(self.then)


@dataclass(frozen=True)
class Outcome:
    """What a piece of work gave."""

    seconds: float
    logits: Logits | None = None
    """(B, V) after the last token of each sequence (of the last prompt, for prefill), where the engine shows them."""
    first_token_ids: list[int] | None = None
    """What the engine chose greedily after each prompt, where it shows no logits."""
