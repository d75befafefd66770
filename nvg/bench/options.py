"""What `nvg bench` measures: plain data, without numpy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType

from nvg.errors import ParameterError
from nvg.params import MAX_BATCHED_TOKENS, EngineConfig
from nvg.ranges import integer, number

DUMMY_SIZES = MappingProxyType(
    {"gpt2": (12, 12, 768), "gpt2-medium": (24, 16, 1024), "gpt2-large": (36, 20, 1280), "gpt2-xl": (48, 25, 1600)}
)
"""The published GPT-2 sizes: n_layer, n_head, n_embd."""

DEFAULT_PROMPT_TOKENS = 512


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """The work that is timed. Raises ParameterError for a value outside its range."""

    prompt_tokens: int | None = None
    """Length of each prompt whose prefill is timed; None means 512, or as many as the model has room for."""
    new_tokens: int = 64
    """How many decode steps are timed."""
    batch: int = 1
    """How many sequences run together, in prefill and in decode."""
    context: int = 32
    """Tokens that each sequence has before its first timed decode step."""
    repetitions: int = 5
    """How often all of it is timed, each time with other tokens."""

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "new_tokens", "batch", "context", "repetitions"):
            value = getattr(self, name)
            if name == "prompt_tokens" and value is None:
                continue
            integer(name, value, 1, MAX_BATCHED_TOKENS // 2 if name == "batch" else None)

    @property
    def max_batched_tokens(self) -> int:
        """Most tokens of a step: the engine's default, or room for the batch's decodes and as many of a prompt."""
        return max(EngineConfig.max_num_batched_tokens, 2 * self.batch)

    def longest(self, *, sampled: bool) -> int:
        """Tokens that the longest sequence comes to.

        Where tokens are `sampled`, a sequence goes on for as many steps as the prompts of the others take.
        """
        steps = -(-self.batch * self.context // (self.max_batched_tokens - self.batch)) if sampled else 0
        assert self.prompt_tokens is not None
        return max(self.prompt_tokens + sampled, self.context + self.new_tokens + steps)

    def for_model(self, n_positions: int, *, sampled: bool) -> BenchOptions:
        """These options with prompt_tokens set. Raises ParameterError for what does not fit a model with that many
        positions."""
        if self.prompt_tokens is None:
            fitting = replace(self, prompt_tokens=max(1, min(DEFAULT_PROMPT_TOKENS, n_positions - sampled)))
            return fitting.for_model(n_positions, sampled=sampled)
        if self.prompt_tokens + sampled > n_positions:
            drawn = " and the token that is drawn after them" if sampled else ""
            raise ParameterError(
                f"prompt_tokens is {self.prompt_tokens}; these{drawn} must fit the model's {n_positions} positions"
            )
        if self.longest(sampled=sampled) > n_positions:
            most = n_positions - (self.longest(sampled=sampled) - self.new_tokens)
            if most < 1:
                raise ParameterError(
                    f"context is {self.context}; the model's {n_positions} positions leave no room for a step after "
                    "it: lower context"
                )
            raise ParameterError(
                f"new_tokens is {self.new_tokens}; after a context of {self.context} the model's {n_positions} "
                f"positions leave room for {most}: lower new_tokens or context"
            )
        return self


WORKLOADS = ("throughput", "prefix", "trace")
LEAST_REQUESTS_OF_PREFIX = 9
MAX_REQUESTS = 10_000


@dataclass(frozen=True, kw_only=True)
class WorkloadOptions:
    """Requests that the whole engine serves. Raises ParameterError for a value outside its range."""

    workload: str
    """One of WORKLOADS."""
    requests: int = 256
    """How many there are, up to MAX_REQUESTS; in prefix at least 9."""
    rate: float | None = None
    """Requests a second of trace, 0.001 to 100000; None means 0.7 of what throughput does."""

    def __post_init__(self) -> None:
        least = LEAST_REQUESTS_OF_PREFIX if self.workload == "prefix" else 1
        integer("requests", self.requests, least, MAX_REQUESTS)
        if self.rate is not None:
            number("rate", self.rate, "from 0.001 to 100000", 1e-3, 1e5)
        if self.rate is not None and self.workload != "trace":
            raise ParameterError(f"rate is {self.rate!r}; only the workload trace has one")
