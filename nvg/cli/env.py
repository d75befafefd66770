"""`nvg env`"""

from __future__ import annotations

import json
import platform
import sys
from importlib.metadata import version
from typing import Any

import click

from nvg._version import __version__
from nvg.cli import options
from nvg.cli.table import print_table
from nvg.params import EngineConfig


@click.command()
@options.model
@options.dtype
@options.kv_dtype
@options.kv_memory
@click.option("--format", "output_format", type=click.Choice(["text", "json"]), default="text", show_default=True)
def env(output_format: str, **given: Any) -> None:
    """Show this machine, the versions and the caches: what a bug report needs; and how many sequences of a model fit
    the memory for keys and values at once."""
    with options.flags_in_errors():
        config = EngineConfig(**given)
    from nvg.engine import drawing
    from nvg.kernels import roofline
    from nvg.model import packed_files, runner
    from nvg.plugins import registry
    from nvg.runtime import cores, cpu
    from nvg.runtime.kernel_store import store

    triple, name, _ = cpu.target()
    able = cpu.features()
    steps = [*runner.compile_steps(config.dtype, config.kv_dtype), *roofline.compile_steps(), *drawing.compile_steps()]
    num_compiled = sum(step.is_cached() for step in steps)
    kept = packed_files.packed_files()
    names = registry()
    plugins = sorted(
        {entry.origin for kind in (names.samplers, names.tokenizers, names.models) for entry in kind.entries()}
    )
    facts = {
        "nvg": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
        **{package: version(package) for package in ("numba", "llvmlite", "numpy", "click", "pluggy")},
        "cpu": f"{name} ({triple})",
        "cpu features": " ".join(cpu.notable_features()) or "none of interest",
        "vector width": f"{able.vector_floats} x float32, {able.vector_registers} registers",
        "dot products": f"int8: {able.int8_dot}; bfloat16: {'dpbf16ps' if able.bf16_dot else 'plain'}",
        "cores": f"{cores.physical_cores(cores.allowed_cpus())} physical, {len(cores.allowed_cpus())} logical allowed",
        "default threads": str(cores.default_threads()),
        "free memory": f"{cores.available_memory() / 1e9:.1f} GB",
        "kv cache": _kv_cache(config),
        "compile cache": str(store.directory or "none"),
        "compiled": f"{num_compiled} of {len(steps)} kernels"
        + (" (nvg warmup compiles the rest)" if num_compiled < len(steps) else ""),
        "compiled size": f"{store.num_bytes() / 1e6:.1f} MB",
        "packed weights": str(packed_files.packed_directory()),
        "packed size": f"{sum(file.num_bytes for file in kept) / 1e6:.1f} MB in {len(kept)} files, "
        f"at most {packed_files.cap_bytes() / 1e9:g} GB",
        "plugins": ", ".join(plugins),
    }
    if output_format == "json":
        click.echo(json.dumps(facts))
    else:
        print_table(list(facts.items()))


def _kv_cache(config: EngineConfig) -> str:
    """What `--kv-memory`, or a share of the memory that is free now, holds of the model's keys and values."""
    from nvg.engine.sizing import num_kv_blocks
    from nvg.hub import resolve_model
    from nvg.model.config import read_config
    from nvg.model.costs import kv_block_bytes
    from nvg.model.runner import default_kv_dtype

    model = read_config(resolve_model(config.model))
    kv_dtype = config.kv_dtype or default_kv_dtype(config.dtype)
    block_bytes, context = kv_block_bytes(model, kv_dtype, config.block_size), model.n_positions
    num_blocks = num_kv_blocks(config, block_bytes, context)
    whole = num_blocks // -(-context // config.block_size)
    return (
        f"{config.model}, {kv_dtype}: {num_blocks} blocks of {config.block_size} tokens, "
        f"{num_blocks * block_bytes / 1e6:.0f} MB: {whole} of at most {config.max_num_seqs} sequences with all "
        f"{context} tokens at once"
    )
