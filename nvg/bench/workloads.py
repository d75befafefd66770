"""The workloads of `nvg bench`: many requests at once, requests that begin alike, requests that come by chance.

**throughput** is nano-vLLM's benchmark, scaled to half of the model's positions for prompts and half for outputs. With
Python's `random`, seeded with 0, and n the positions: for each of 256 requests a prompt of randint(n // 20, n // 2) ids
that are randint(0, 10000) (at most the vocabulary's last), all prompts first; then for each request max_tokens,
randint(n // 20, n // 2). Temperature 0.6, end-of-text ignored, all requests added at once, after one other request as
warm-up; as with `LLM.generate`, nobody waits for single tokens. With 1,024 positions that is 51 to 512 tokens of each.
What counts is output tokens a second.

**prefix**: prompts that begin with the same n // 2 - 12 tokens (500 of 1,024) and end with 12 of their own, 16 tokens
of output each. The first is alone, then seven more one after the other, then the others at once. What counts is the
first one's time to its first token over that of the seven: what the prefix cache saves. Requests and tokens are counted
of all; what is a second, a share or a percentile is that of those at once.

**trace**: the requests of throughput, which come by a Poisson process (seed 0) at `rate`; by default at 0.7 of the
requests a second that throughput, which is then run before, has done. What counts are the times to the first token and
between tokens, at the median, the 95th and the 99th percentile.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nvg import hub
from nvg.bench.dummy import dummy_config
from nvg.bench.load import Report, compile_kernels, load_engine
from nvg.bench.measure import machine
from nvg.bench.options import WorkloadOptions
from nvg.bench.serving import Job, serve
from nvg.engine.engine import Engine
from nvg.model.config import read_config
from nvg.model.runner import default_kv_dtype
from nvg.params import EngineConfig, SamplingParams
from nvg.sampling.chain import Stage
from nvg.sampling.compose import resolve

TEMPERATURE = 0.6
LOAD = 0.7
_MOST_ID = 10_000
_OWN_TOKENS, _OUTPUT_TOKENS, _ONE_BY_ONE = 12, 16, 8


def throughput_jobs(num_requests: int, n_positions: int, num_ids: int) -> list[Job]:
    """The requests of the workload throughput (see the module)."""
    rng = random.Random(0)
    low, high = max(1, n_positions // 20), n_positions // 2
    most_id = min(_MOST_ID, num_ids - 1)
    prompts = [[rng.randint(0, most_id) for _ in range(rng.randint(low, high))] for _ in range(num_requests)]
    return [Job(prompt, rng.randint(low, high)) for prompt in prompts]


def prefix_jobs(num_requests: int, n_positions: int, num_ids: int) -> list[Job]:
    """The requests of the workload prefix (see the module)."""
    rng = random.Random(0)

    def ids(count: int) -> list[int]:
        return [rng.randint(0, num_ids - 1) for _ in range(count)]

    common = ids(max(1, n_positions // 2 - _OWN_TOKENS))
    return [Job([*common, *ids(_OWN_TOKENS)], _OUTPUT_TOKENS) for _ in range(num_requests)]


def poisson(jobs: list[Job], rate: float) -> list[Job]:
    """The jobs, arriving by chance, `rate` a second."""
    times = np.cumsum(np.random.default_rng(0).exponential(1 / rate, len(jobs)))
    return [replace(job, arrives_s=float(time_s)) for job, time_s in zip(jobs, times, strict=True)]


@dataclass(frozen=True)
class _Run:
    engine: Engine
    options: WorkloadOptions
    stages: tuple[Stage, ...]
    report: Report

    @property
    def num_ids(self) -> int:
        return min(self.engine.tokenizer.vocab_size, self.engine.runner.vocab_size)

    def warm_up(self) -> None:
        """Do a request, after every block of the pool was used: what is measured is an engine that has run for a while,
        and a virtual machine's memory can take milliseconds to be there for the first time."""
        blocks = np.arange(self.engine.pool.num_blocks, dtype=np.int32)
        self.engine.runner.copy_blocks(blocks, blocks)
        serve(self.engine, [Job([0] * min(32, self.engine.max_model_len // 2), 8)], self.stages)

    def throughput(self) -> dict[str, Any]:
        jobs = throughput_jobs(self.options.requests, self.engine.max_model_len, self.num_ids)
        self.report(f"{len(jobs)} requests at once ...")
        return serve(self.engine, jobs, self.stages, is_watched=False).record()

    def prefix(self) -> dict[str, Any]:
        jobs = prefix_jobs(self.options.requests, self.engine.max_model_len, self.num_ids)
        times = []
        for number, job in enumerate(jobs[:_ONE_BY_ONE]):
            times += serve(self.engine, [job], self.stages, number).first_token_s
        self.report(f"{len(jobs)} requests that begin with {len(jobs[0].prompt) - _OWN_TOKENS} common tokens ...")
        at_once = serve(self.engine, jobs[_ONE_BY_ONE:], self.stages, _ONE_BY_ONE).record()
        warm = statistics.median(times[1:])
        totals = {
            "requests": len(jobs),
            "prompt_tokens": sum(len(job.prompt) for job in jobs),
            "output_tokens": sum(job.max_tokens for job in jobs),
        }
        return {
            **at_once,
            **totals,
            "cold_first_token_s": times[0],
            "warm_first_token_s": warm,
            "speedup": times[0] / warm,
        }

    def trace(self) -> dict[str, Any]:
        rate = self.options.rate
        before = {}
        if rate is None:
            before = self.throughput()
            rate = LOAD * before["requests_s"]
        jobs = throughput_jobs(self.options.requests, self.engine.max_model_len, self.num_ids)
        jobs = [replace(job, prompt=job.prompt[::-1]) for job in jobs]  # which nothing has cached
        self.report(f"{len(jobs)} requests, {rate:.2f} a second ...")
        record = serve(self.engine, poisson(jobs, rate), self.stages, 10**6).record()
        return {**record, "rate": rate, "throughput": before or None}


def run_workload(
    config: EngineConfig,
    options: WorkloadOptions,
    report: Report,
    *,
    dummy: str | None = None,
    stages: tuple[Stage, ...] = (),
) -> dict[str, Any]:
    """Load `config.model`, or the `dummy` of that size, and run a workload on it, sampled through `stages` or at
    temperature 0.6. Raises what loading a model does, and ParameterError for a request that does not fit the pool."""
    model_config = read_config(hub.resolve_model(config.model)) if dummy is None else dummy_config(dummy)
    config = replace(config, kv_dtype=config.kv_dtype or default_kv_dtype(config.dtype))
    stages = stages or resolve(SamplingParams(temperature=TEMPERATURE))
    compile_s = compile_kernels(config, report)
    engine = load_engine(config, dummy, model_config, report)
    try:
        run = _Run(engine, options, stages, report)
        run.warm_up()
        workloads: dict[str, Callable[[], dict[str, Any]]] = {
            "throughput": run.throughput,
            "prefix": run.prefix,
            "trace": run.trace,
        }
        runner: Any = engine.runner  # one of a plugin need not tell its threads
        return {
            "workload": options.workload,
            "model": dummy or config.model,
            "dtype": config.dtype,
            "kv_dtype": config.kv_dtype,
            "threads": getattr(runner, "num_threads", config.threads),
            "max_num_seqs": engine.max_num_seqs,
            "kv_blocks": engine.pool.num_blocks,
            "sampler": [stage.name for stage in stages],
            "compile_s": compile_s,
            **workloads[options.workload](),
            **machine(),
        }
    finally:
        engine.runner.close()
