"""One run of the benchmark: load, warm up, time the work and the machine's ceilings in turns."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np

from nvg import hub
from nvg._version import __version__
from nvg.bench.ceilings import ceilings
from nvg.bench.dummy import dummy_config
from nvg.bench.load import Report, compile_kernels, load_engine
from nvg.bench.options import BenchOptions
from nvg.bench.work import BareSteps, SampledSteps, Work
from nvg.engine.engine import Engine
from nvg.engine.sizing import num_kv_blocks
from nvg.errors import ParameterError
from nvg.kernels.roofline import instruction_for
from nvg.model.config import ModelConfig, read_config
from nvg.model.contract import Int32
from nvg.model.costs import decode_kv_bytes, kv_block_bytes, prefill_operations, streamed_weight_bytes
from nvg.model.runner import default_kv_dtype
from nvg.params import EngineConfig, SamplingParams
from nvg.runtime import cores, cpu
from nvg.runtime.interrupts import Stop
from nvg.sampling.chain import Stage
from nvg.sampling.compose import resolve

_WARM_UP_STEPS = 4


@dataclass(frozen=True)
class Repetition:
    """What one repetition gave. None where the model runner does not tell the bytes of its weights."""

    prefill_tok_s: float
    decode_tok_s: float
    """Of all sequences together."""
    read_gb_s: float
    """The machine's: 10^9 bytes a second that the threads read from memory."""
    peak_gflop_s: float
    """The machine's: 10^9 operations a second of the fastest instruction for the weights' dtype."""
    of_read_bandwidth: float | None
    """Bytes that the decode steps must read, per second, over what the machine reads."""
    of_peak_flops: float
    """Operations of prefill's matmuls, per second, over what the machine computes."""


@dataclass(frozen=True)
class Spread:
    """The median of repetitions with the least and the greatest."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class BenchResult:
    """What was measured, of what, and on what."""

    model: str
    config: EngineConfig
    options: BenchOptions
    sampler: tuple[str, ...]
    """Names of the chain's stages; empty where nothing was sampled."""
    threads: int
    load_s: float
    """From the files to a model that can run, compiling not included."""
    compile_s: float
    """Compiling what was not in the cache, else 0."""
    first_token_s: float
    """From the first prompt after loading to its first token; the prompt is one token shorter than prompt_tokens where
    that fills the model's context."""
    peak_rss_bytes: int | None
    """The most that the process had resident up to the end of the first repetition."""
    weight_bytes: int | None
    kv_bytes_per_token: float
    instruction: str
    """The one whose rate is peak_gflop_s."""
    repetitions: tuple[Repetition, ...]

    def spread(self, name: str) -> Spread | None:
        """Of a field of Repetition."""
        values = [getattr(repetition, name) for repetition in self.repetitions]
        if None in values:
            return None
        return Spread(statistics.median(values), min(values), max(values))

    def record(self) -> dict[str, Any]:
        """All of it as JSON can hold it. Medians under their names, and in `spreads` [least, greatest]."""
        spreads = {name: self.spread(name) for name in Repetition.__dataclass_fields__}
        medians = {name: spread and spread.median for name, spread in spreads.items()}
        peak = self.peak_rss_bytes
        return {
            "model": self.model,
            "dtype": self.config.dtype,
            "kv_dtype": self.config.kv_dtype,
            "threads": self.threads,
            "sampler": list(self.sampler),
            **asdict(self.options),
            "prefill_tok_s": medians.pop("prefill_tok_s"),
            "decode_tok_s": medians.pop("decode_tok_s"),
            "load_s": self.load_s,
            "compile_s": self.compile_s,
            "first_token_s": self.first_token_s,
            "peak_rss_mb": None if peak is None else peak / 1e6,
            **medians,
            "spreads": {name: spread and [spread.low, spread.high] for name, spread in spreads.items()},
            "peak_instruction": self.instruction,
            "weight_bytes": self.weight_bytes,
            "kv_bytes_per_token": self.kv_bytes_per_token,
            **machine(),
        }


def machine() -> dict[str, Any]:
    """The processor that is compiled for, and the versions that decide how fast its code is."""
    triple, name, _ = cpu.target()
    packages = {package: version(package) for package in ("numba", "llvmlite", "numpy")}
    return {
        "cpu": f"{name} ({triple})",
        "features": cpu.notable_features(),
        "platform": platform.platform(),
        "versions": {"nvg": __version__, "python": platform.python_version(), **packages},
    }


def run(
    config: EngineConfig,
    options: BenchOptions,
    report: Report,
    *,
    dummy: str | None = None,
    stages: tuple[Stage, ...] = (),
    stop: Stop | None = None,
) -> BenchResult:
    """Measure `config.model`, or the `dummy` of that size instead; through `stages` if there are any. `stop` can make
    it end after fewer repetitions.

    Limits of `config` that depend on the work are set here. Raises what loading a model does, and ParameterError for
    work that does not fit it, before it is loaded.
    """
    model_config = read_config(hub.resolve_model(config.model)) if dummy is None else dummy_config(dummy)
    options = options.for_model(model_config.n_positions, sampled=bool(stages))
    config = replace(
        config,
        kv_dtype=config.kv_dtype or default_kv_dtype(config.dtype),
        max_num_seqs=options.batch,
        max_num_batched_tokens=options.max_batched_tokens,
        max_model_len=min(options.longest(sampled=bool(stages)) + 1, model_config.n_positions),  # 1: first_token
    )
    _check_batch(config, kv_block_bytes(model_config, str(config.kv_dtype), config.block_size))
    compile_s = compile_kernels(config, report)
    start = time.perf_counter()
    engine = load_engine(config, dummy, model_config, report)
    load_s = time.perf_counter() - start
    try:
        _check_batch(config, engine.runner.bytes_per_block(config.block_size))  # a plugin's model may need more
        work = SampledSteps(engine, stages) if stages else BareSteps(engine)
        num_ids = min(engine.tokenizer.vocab_size, engine.runner.vocab_size)
        bench = _Bench(engine, work, model_config, config, options, num_ids)
        first_token_s = bench.first_token(stages)
        bench.warn_of_cache(report)
        peak, repetitions = bench.repeat(report, stop or Stop())
        return BenchResult(
            model=dummy or config.model,
            config=config,
            options=replace(options, repetitions=len(repetitions)),
            sampler=tuple(stage.name for stage in stages),
            threads=bench.num_threads,
            load_s=load_s,
            compile_s=compile_s,
            first_token_s=first_token_s,
            peak_rss_bytes=peak,
            weight_bytes=bench.weight_bytes,
            kv_bytes_per_token=bench.bytes_per_block / config.block_size,
            instruction=bench.instruction,
            repetitions=tuple(repetitions),
        )
    finally:
        engine.runner.close()


def _check_batch(config: EngineConfig, block_bytes: int) -> None:
    """Raise ParameterError where a KV pool of blocks of so many bytes does not hold the batch."""
    assert config.max_model_len
    needed = config.max_num_seqs * -(-config.max_model_len // config.block_size)
    num_blocks = num_kv_blocks(config, block_bytes, config.max_model_len)
    if num_blocks < needed:
        raise ParameterError(
            f"batch is {config.max_num_seqs}; as many sequences of {config.max_model_len} tokens need {needed} blocks; "
            f"free memory holds {num_blocks}: lower the batch"
        )


class _Bench:
    """A loaded model, its work, and what of it is compared with the machine's ceilings."""

    def __init__(
        self,
        engine: Engine,
        work: Work,
        model_config: ModelConfig,
        config: EngineConfig,
        options: BenchOptions,
        num_ids: int,
    ) -> None:
        runner: Any = engine.runner  # one of a plugin need not tell its threads and bytes
        self._engine = engine
        self._work = work
        self._model_config = model_config
        self._options = options
        assert options.prompt_tokens is not None
        self._prompt_tokens = options.prompt_tokens
        self._num_ids = num_ids
        self._block_size = config.block_size
        self.num_threads: int = getattr(runner, "num_threads", config.threads or cores.default_threads())
        self.weight_bytes: int | None = getattr(runner, "weight_bytes", None)
        self.bytes_per_block: int = runner.bytes_per_block(config.block_size)
        self.instruction = instruction_for(config.dtype)

    def first_token(self, stages: Sequence[Stage]) -> float:
        """Seconds from a prompt to its first token; greedy, if nothing is sampled else."""
        chain = tuple(stages) or resolve(SamplingParams(temperature=0))
        length = max(1, min(self._prompt_tokens, self._engine.max_model_len - 1))
        return SampledSteps(self._engine, chain).prefill(self._random(0, (1, length)))

    def repeat(self, report: Report, stop: Stop) -> tuple[int | None, list[Repetition]]:
        """(peak resident bytes of loading and work, all repetitions). The first steps of all are not timed."""
        options = self._options
        self._work.decode(self._random(1, (options.batch, options.context)), self._steps(1)[:_WARM_UP_STEPS])
        peak = None
        repetitions: list[Repetition] = []
        with ExitStack() as stack:
            machine = None
            for number in range(options.repetitions):
                if stop.is_wanted:
                    break
                report(f"repetition {number + 1} of {options.repetitions} ...")
                prompts = self._random(2 + number, (options.batch, self._prompt_tokens))
                prefill_s = self._work.prefill(prompts)
                contexts = self._random(-2 - number, (options.batch, options.context))
                num_decoded, decode_s = self._work.decode(contexts, self._steps(2 + number))
                if machine is None:
                    peak = cores.peak_resident_bytes()  # before there is the buffer of the ceilings
                    machine = stack.enter_context(ceilings(self.num_threads))
                read, peak_rate = machine.read_bytes_s(), machine.operations_s(self.instruction)
                step_bytes = self._step_bytes()
                operations = options.batch * prefill_operations(self._model_config, self._prompt_tokens)
                repetitions.append(
                    Repetition(
                        prefill_tok_s=prompts.size / prefill_s,
                        decode_tok_s=num_decoded / decode_s,
                        read_gb_s=read / 1e9,
                        peak_gflop_s=peak_rate / 1e9,
                        of_read_bandwidth=step_bytes and step_bytes * options.new_tokens / decode_s / read,
                        of_peak_flops=operations / prefill_s / peak_rate,
                    )
                )
                stop.has_something = True
        return peak, repetitions

    def warn_of_cache(self, report: Report) -> None:
        """Tell if what a decode step reads could stay in the processor's caches, whose speed is another."""
        step_bytes, cache_bytes = self._step_bytes(), cores.last_level_cache_bytes()
        if step_bytes and step_bytes < 2 * cache_bytes:
            report(
                f"a decode step reads {step_bytes / 1e6:.0f} MB and the caches hold {cache_bytes / 1e6:.0f} MB: "
                "memory does not bound it, and its fraction of the read bandwidth can be above 1"
            )

    def _step_bytes(self) -> float | None:
        """Bytes that a decode step must read, on average: weights once, and every sequence's keys and values."""
        if self.weight_bytes is None:
            return None
        options = self._options
        kv = decode_kv_bytes(self.bytes_per_block, self._block_size, options.context, options.new_tokens)
        return streamed_weight_bytes(self._model_config, self.weight_bytes) + options.batch * kv

    def _steps(self, number: int) -> Int32:
        return self._random(1_000_000 + number, (self._options.new_tokens, self._options.batch))

    def _random(self, number: int, shape: tuple[int, int]) -> Int32:
        """Token ids, int32, others for each number, the same in every run."""
        rng = np.random.default_rng([number & 0xFFFFFFFF, 20])
        return rng.integers(0, self._num_ids, shape, np.int32)
