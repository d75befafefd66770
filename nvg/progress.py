"""A progress bar on stderr with prefill and decode tok/s; plain lines where stderr is not a terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from tqdm import tqdm

from nvg.engine.stats import EngineStats

_LINE_EVERY_S = 10.0


def token_bar(total: int, *, enabled: bool) -> Any:
    """A bar that counts tokens, shown on a terminal when a second has passed."""
    shown = enabled and sys.stderr.isatty()
    return tqdm(total=total, unit="token", file=sys.stderr, dynamic_ncols=True, delay=1, leave=False, disable=not shown)


class Progress:
    """Counts finished requests; rates are those since it began."""

    def __init__(self, total: int, stats: EngineStats, *, enabled: bool) -> None:
        self._stats = stats
        self._before = (stats.prefill_tokens, stats.prefill_s, stats.decode_tokens, stats.decode_s)
        self._cached_before = stats.cached_tokens
        self._total = total
        self._finished = 0
        self._tokens = 0
        self._enabled = enabled
        self._is_terminal = sys.stderr.isatty()
        self._start = self._last_line = time.perf_counter()
        self._bar = (
            tqdm(total=total, unit="prompt", file=sys.stderr, dynamic_ncols=True)
            if enabled and self._is_terminal
            else None
        )

    def add(self, num_tokens: int) -> None:
        """Count a finished request, which generated so many tokens."""
        self._finished += 1
        self._tokens += num_tokens
        if self._bar is not None:
            self._bar.update(1)
        self.tick()

    def tick(self) -> None:
        """Show the rates of now, if it is time."""
        if self._bar is not None:
            self._bar.set_postfix_str(self._rates(), refresh=False)
            self._bar.update(0)
        elif self._enabled and time.perf_counter() - self._last_line > _LINE_EVERY_S:
            self._write_line()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(self._rates())
            self._bar.close()
        elif self._enabled:
            self._write_line()

    def _write_line(self) -> None:
        self._last_line = time.perf_counter()
        print(
            f"nvg: {self._finished} of {self._total} prompts, {self._tokens} tokens, "
            f"{self._last_line - self._start:.1f} s, {self._rates()}",
            file=sys.stderr,
            flush=True,
        )

    def _rates(self) -> str:
        stats = self._stats
        now = (stats.prefill_tokens, stats.prefill_s, stats.decode_tokens, stats.decode_s)
        prefill_tokens, prefill_s, decode_tokens, decode_s = (a - b for a, b in zip(now, self._before, strict=True))
        prefill = f"{prefill_tokens / prefill_s:.0f}" if prefill_s else "-"
        decode = f"{decode_tokens / decode_s:.0f}" if decode_s else "-"
        cached = stats.cached_tokens - self._cached_before
        hits = f", {cached} tokens cached" if cached else ""
        return f"prefill {prefill} tok/s, decode {decode} tok/s{hits}"
