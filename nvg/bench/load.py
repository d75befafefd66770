"""A model for a benchmark: compiled, and loaded into an engine."""

from __future__ import annotations

import time
from collections.abc import Callable

from nvg import hub
from nvg.bench.dummy import DummyCheckpoint, NumberTokenizer
from nvg.engine.engine import Engine
from nvg.errors import CheckpointError
from nvg.model.checkpoint import Checkpoint
from nvg.model.config import ModelConfig
from nvg.model.runner import compile_steps
from nvg.params import EngineConfig
from nvg.plugins import registry
from nvg.runtime.compile_cache import prepare

Report = Callable[[str], None]


def compile_kernels(config: EngineConfig, report: Report) -> float:
    """Seconds that compiling took; 0 if all was in the cache, which loading then reads."""
    steps = compile_steps(config.dtype, config.kv_dtype)
    if all(step.is_cached() for step in steps):
        return 0.0
    start = time.perf_counter()
    prepare(steps, report)
    return time.perf_counter() - start


def load_engine(config: EngineConfig, dummy: str | None, model_config: ModelConfig, report: Report) -> Engine:
    """The engine of `config.model`, or of the `dummy` of that size; `model_config` is its. Close its runner."""
    report(f"loading {dummy or config.model} ...")
    model_class = registry().models.load(model_config.model_type)
    if dummy is not None:
        tokenizer = NumberTokenizer(model_config.vocab_size)
        runner = model_class.from_checkpoint(model_config, DummyCheckpoint(model_config), config, report)
    else:
        directory = hub.resolve_model(config.model)
        tokenizer = registry().tokenizers.load(config.tokenizer or "gpt2").from_dir(directory)
        with Checkpoint(directory) as checkpoint:
            for line in checkpoint.warnings:
                report(line)
            if tokenizer.vocab_size > model_config.vocab_size:
                raise CheckpointError(
                    f"{directory}: the tokenizer has {tokenizer.vocab_size} ids, the weights have rows for "
                    f"{model_config.vocab_size}: they belong to different models"
                )
            runner = model_class.from_checkpoint(model_config, checkpoint, config, report)
    try:
        return Engine(config, runner, tokenizer)
    except BaseException:
        runner.close()
        raise
