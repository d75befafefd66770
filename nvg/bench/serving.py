"""Requests that come and go on an engine, and clocks on them: what the workloads of `nvg bench` are made of."""

from __future__ import annotations

import time
from collections.abc import Sequence as Listed
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nvg.engine.engine import Engine
from nvg.engine.sequence import Request
from nvg.errors import EngineError
from nvg.params import Piece, SamplingParams
from nvg.sampling.chain import Stage

PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class Job:
    """A request that is to come."""

    prompt: list[int]
    max_tokens: int
    arrives_s: float = 0.0
    """Seconds after the begin."""


@dataclass
class Served:
    """Jobs that were done, in seconds since the first step."""

    seconds: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    first_token_s: list[float] = field(default_factory=list)
    """From each request's arrival to its first token."""
    between_tokens_s: list[float] = field(default_factory=list)
    """Of all pairs of tokens that follow each other in a request."""
    model_s: float = 0.0
    """Seconds of the steps in the model runner; the rest is scheduling and sampling."""
    step_s: float = 0.0
    steps: int = 0
    decode_rows: int = 0
    full_slots: list[float] = field(default_factory=list)
    """Of the steps in which work waited: the share of slots that were taken."""
    decoding_slots: list[float] = field(default_factory=list)
    """Of the same steps: the share of slots that drew a token."""
    most_waste: float = 0.0
    """The most KV entries at a time that were in use and empty, as a share of the pool."""
    preemptions: int = 0
    cached_tokens: int = 0
    num_ended: int = 0

    def record(self) -> dict[str, Any]:
        """All of it as JSON can hold it."""
        return {
            "seconds": self.seconds,
            "output_tok_s": self.output_tokens / self.seconds,
            "total_tok_s": (self.prompt_tokens + self.output_tokens) / self.seconds,
            "requests_s": len(self.first_token_s) / self.seconds,
            "requests": len(self.first_token_s),
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "first_token_s": _percentiles(self.first_token_s),
            "between_tokens_s": _percentiles(self.between_tokens_s),
            "steps": self.steps,
            "rows_per_step": self.decode_rows / max(self.steps, 1),
            "outside_model": 1 - self.model_s / self.step_s,
            "full_slots": float(np.mean(self.full_slots)) if self.full_slots else None,
            "decoding_slots": float(np.mean(self.decoding_slots)) if self.decoding_slots else None,
            "most_kv_waste": self.most_waste,
            "preemptions": self.preemptions,
            "cached_tokens": self.cached_tokens,
        }


class _Client:
    """Takes a request's pieces and looks at the clock."""

    def __init__(self, arrived: float, served: Served) -> None:
        self._served = served
        self._last = arrived
        self._times = served.first_token_s
        self._then = served.between_tokens_s

    def take(self, piece: Piece) -> None:
        if piece.error is not None:
            raise EngineError(piece.error)
        if piece.token_ids:
            now = time.perf_counter()
            self._times.append(now - self._last)
            self._times, self._last = self._then, now
        self._served.num_ended += piece.finish_reason is not None


def serve(
    engine: Engine, jobs: Listed[Job], stages: tuple[Stage, ...], first_seed: int = 0, *, is_watched: bool = True
) -> Served:
    """Do the jobs, each from when it arrives. Raises EngineError where a sampler failed, ParameterError for a job that
    does not fit.

    jobs: in the order in which they arrive. Request number i has the seed first_seed + i. is_watched: whether somebody
    waits for each token, as in `LLM.stream`, or for whole outputs, as in `LLM.generate`.
    """
    served = Served()
    requests = []
    for number, job in enumerate(jobs):
        params = SamplingParams(max_tokens=job.max_tokens, ignore_eos=True)
        request = Request(None, job.prompt, params, first_seed + number, stages, _ignore)
        request.is_watched = is_watched
        engine.check(request)
        requests.append(request)
    stats, before = engine.stats, _totals(engine)
    num_added = 0
    start = time.perf_counter()
    while num_added < len(jobs) or engine.has_work:
        now = time.perf_counter() - start
        while num_added < len(jobs) and jobs[num_added].arrives_s <= now:
            requests[num_added].sink = _Client(start + jobs[num_added].arrives_s, served).take
            engine.add(requests[num_added])
            num_added += 1
        if not engine.has_work:
            time.sleep(max(0.0, jobs[num_added].arrives_s - now))
            continue
        decoded, ended = stats.decode_tokens, served.num_ended
        engine.step()
        _look(engine, stats.decode_tokens - decoded, served.num_ended - ended, served)
    served.seconds = time.perf_counter() - start
    served.prompt_tokens = sum(len(job.prompt) for job in jobs)
    served.output_tokens = sum(job.max_tokens for job in jobs)
    for name, value in _totals(engine).items():
        setattr(served, name, value - before[name])
    return served


def _look(engine: Engine, num_decodes: int, num_ended: int, served: Served) -> None:
    """Count what is seen after a step in which so many sequences drew, and ended: these had their slots in it."""
    if engine.num_waiting:
        served.full_slots.append((engine.num_running + num_ended) / engine.max_num_seqs)
        served.decoding_slots.append(num_decodes / engine.max_num_seqs)
    pool = engine.pool
    served.most_waste = max(served.most_waste, engine.num_empty_entries / (pool.num_blocks * pool.block_size))


def _totals(engine: Engine) -> dict[str, float]:
    stats = engine.stats
    return {
        "model_s": stats.model_s,
        "step_s": stats.prefill_s + stats.decode_s,
        "steps": stats.steps,
        "decode_rows": stats.decode_tokens,
        "preemptions": stats.preemptions,
        "cached_tokens": stats.cached_tokens,
    }


def _ignore(piece: Piece) -> None: ...


def _percentiles(seconds: Listed[float]) -> dict[str, float] | None:
    if not seconds:
        return None
    return {f"p{p}": float(value) for p, value in zip(PERCENTILES, np.percentile(seconds, PERCENTILES), strict=True)}
