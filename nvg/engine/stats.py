"""What an engine has done so far."""

from __future__ import annotations

from dataclasses import dataclass, field

from nvg.sampling.chain import StageTime


@dataclass
class EngineStats:
    """Totals since the engine began. A step's seconds are shared out among its tokens, sampling included."""

    prefill_tokens: int = 0
    """Tokens of prompts, and of what was computed again, that were run."""
    prefill_s: float = 0.0
    decode_tokens: int = 0
    """Tokens that were run to draw the next."""
    decode_s: float = 0.0
    cached_tokens: int = 0
    """Tokens that the prefix cache had, which need not be run."""
    preemptions: int = 0
    steps: int = 0
    model_s: float = 0.0
    """Seconds that the model runner took of prefill_s + decode_s; the others went to scheduling and sampling."""
    stages: dict[str, StageTime] = field(default_factory=dict)
    """What each sampler took, by its title: its name, and the distribution or file that it comes from."""

    def count(
        self, prefill_tokens: int, decode_tokens: int, seconds: float, model_s: float, num_steps: int = 1
    ) -> None:
        """Add steps."""
        per_token = seconds / (prefill_tokens + decode_tokens)
        self.steps += num_steps
        self.prefill_tokens += prefill_tokens
        self.prefill_s += prefill_tokens * per_token
        self.decode_tokens += decode_tokens
        self.decode_s += decode_tokens * per_token
        self.model_s += model_s

    @property
    def prefill_tok_s(self) -> float | None:
        """Prompt tokens a second; None before the first."""
        return self.prefill_tokens / self.prefill_s if self.prefill_s else None

    @property
    def decode_tok_s(self) -> float | None:
        """Output tokens a second, all sequences together; None before the first."""
        return self.decode_tokens / self.decode_s if self.decode_s else None
