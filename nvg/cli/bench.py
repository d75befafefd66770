"""`nvg bench`"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nvg.bench.options import (
    DEFAULT_PROMPT_TOKENS,
    DUMMY_SIZES,
    LEAST_REQUESTS_OF_PREFIX,
    MAX_REQUESTS,
    WORKLOADS,
    BenchOptions,
    WorkloadOptions,
)
from nvg.cli import options, say
from nvg.cli.interrupt import interruptible
from nvg.cli.table import print_table
from nvg.params import EngineConfig, SamplingParams
from nvg.runtime.interrupts import Stop

if TYPE_CHECKING:
    from nvg.bench.measure import BenchResult
    from nvg.sampling.chain import Stage

_WORK = ("prompt_tokens", "new_tokens", "batch", "context", "repetitions")
_WORKLOAD = ("requests", "rate", "max_num_seqs", "kv_memory")
_ROWS = {
    "prefill_tok_s": ("prefill, tok/s", 1),
    "decode_tok_s": ("decode, tok/s", 1),
    "of_peak_flops": ("prefill, of the machine's peak", 3),
    "of_read_bandwidth": ("decode, of the read bandwidth", 3),
    "read_gb_s": ("the machine reads, GB/s", 1),
    "peak_gflop_s": ("the machine's peak, GFLOP/s", 0),
}


@click.command()
@options.model
@click.option("--dummy", type=click.Choice(list(DUMMY_SIZES)), help="Random weights of that size, without a file.")
@options.dtype
@options.kv_dtype
@click.option(
    "--threads", type=int, metavar="N", help="Compute threads, 1 to 256.  [default: the physical cores allowed]"
)
@click.option(
    "--sampler",
    "samplers",
    metavar="NAME",
    multiple=True,
    shell_complete=options.complete_samplers,
    help="Sample through this stage (repeatable, in order), and time that too.  [default: nothing is sampled]",
)
@click.option(
    "-o", "sampler_options", metavar="NAME=VALUE", multiple=True, help="An option of a stage: k=40, or topk.k=40."
)
@click.option(
    "--prompt-tokens",
    type=int,
    metavar="N",
    help=f"Length of the prompts whose prefill is timed.  [default: {DEFAULT_PROMPT_TOKENS}, or what fits]",
)
@click.option(
    "--new-tokens",
    type=int,
    metavar="N",
    default=BenchOptions.new_tokens,
    show_default=True,
    help="How many decode steps are timed.",
)
@click.option(
    "--batch",
    type=int,
    metavar="N",
    default=BenchOptions.batch,
    show_default=True,
    help="How many sequences run together.",
)
@click.option(
    "--context",
    type=int,
    metavar="N",
    default=BenchOptions.context,
    show_default=True,
    help="Tokens before the first decode step that is timed.",
)
@click.option(
    "--repetitions",
    type=int,
    metavar="N",
    default=BenchOptions.repetitions,
    show_default=True,
    help="How often it is timed, each time with other tokens.",
)
@click.option(
    "--workload",
    type=click.Choice(WORKLOADS),
    help="Measure the whole engine with many requests instead: all at once, beginning alike, or coming by chance.",
)
@click.option(
    "--requests",
    type=int,
    metavar="N",
    default=WorkloadOptions.requests,
    show_default=True,
    help=f"How many a workload has, up to {MAX_REQUESTS}; prefix needs {LEAST_REQUESTS_OF_PREFIX} or more.",
)
@click.option("--rate", type=float, metavar="R", help="Requests a second of trace.  [default: 0.7 of what it can do]")
@click.option(
    "--max-num-seqs",
    type=int,
    metavar="N",
    default=EngineConfig.max_num_seqs,
    show_default=True,
    help="How many sequences of a workload run together.",
)
@options.kv_memory
@click.option("--format", "output_format", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw the result into this PNG file.")
def bench(
    model: str,
    dummy: str | None,
    dtype: str,
    kv_dtype: str | None,
    threads: int | None,
    samplers: tuple[str, ...],
    sampler_options: tuple[str, ...],
    workload: str | None,
    output_format: str,
    plot: Path | None,
    **work: Any,
) -> None:
    """Measure prefill and decode beside what this machine can do, or the engine with many requests.

    \b
    nvg bench --dummy gpt2 --threads 2
    nvg bench -m ./gpt2 --sampler topp -o p=0.9 --batch 8 --format json
    nvg bench --dummy gpt2 --dtype int8 --workload throughput

    Figures are medians of the repetitions, with the least and the greatest. Each repetition also measures how fast
    the same threads read memory and multiply: a decode step must read all weights and the keys and values before it,
    a prefill must do its multiply-adds, and both are also given as the fraction that they reach. Close other programs
    first.
    """
    context = click.get_current_context()
    if dummy is not None and context.get_parameter_source("model") is click.core.ParameterSource.COMMANDLINE:
        raise click.UsageError("--dummy stands for a model: give it or --model, not both", context)
    if sampler_options and not samplers:
        raise click.UsageError("-o sets an option of a --sampler, and there is none", context)
    _check_flags(context, workload)
    if workload is not None:
        with options.flags_in_errors():
            workload_options = WorkloadOptions(workload=workload, requests=work["requests"], rate=work["rate"])
            limits = {name: work[name] for name in ("max_num_seqs", "kv_memory")}
            config = EngineConfig(model=model, dtype=dtype, kv_dtype=kv_dtype, threads=threads, **limits)
            record = interruptible(lambda: _serve(config, workload_options, dummy, samplers, sampler_options))
        if output_format == "json":
            click.echo(json.dumps(record))
        else:
            _print_workload(record)
        return
    with options.flags_in_errors():
        bench_options = BenchOptions(**{name: work[name] for name in _WORK})
        config = EngineConfig(model=model, dtype=dtype, kv_dtype=kv_dtype, threads=threads)
        stop = Stop()
        result = interruptible(lambda: _run(config, bench_options, dummy, samplers, sampler_options, plot, stop), stop)
    if output_format == "json":
        click.echo(json.dumps(result.record()))
    else:
        _print(result)
    if plot is not None:
        from nvg.bench.plot import write_plot

        write_plot(result, plot)
        say(f"drawn: {plot}")
    if stop.is_wanted:
        raise KeyboardInterrupt


def _check_flags(context: click.Context, workload: str | None) -> None:
    """Raise UsageError for a flag that says nothing about this measurement."""
    for names, belongs in (((*_WORK, "plot"), workload is None), (_WORKLOAD, workload is not None)):
        for name in names:
            if not belongs and context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
                flag = f"--{name.replace('_', '-')}"
                raise click.UsageError(f"{flag} {'is for' if workload is None else 'is not for'} a --workload", context)


def _serve(
    config: EngineConfig,
    workload_options: WorkloadOptions,
    dummy: str | None,
    samplers: tuple[str, ...],
    sampler_options: tuple[str, ...],
) -> dict[str, Any]:
    from nvg.bench.workloads import run_workload

    return run_workload(config, workload_options, say, dummy=dummy, stages=_stages(samplers, sampler_options))


def _run(
    config: EngineConfig,
    bench_options: BenchOptions,
    dummy: str | None,
    samplers: tuple[str, ...],
    sampler_options: tuple[str, ...],
    plot: Path | None,
    stop: Stop,
) -> BenchResult:
    from nvg.bench.measure import run
    from nvg.bench.plot import check_plot

    if plot is not None:
        check_plot(plot)
    return run(config, bench_options, say, dummy=dummy, stages=_stages(samplers, sampler_options), stop=stop)


def _stages(samplers: tuple[str, ...], sampler_options: tuple[str, ...]) -> tuple[Stage, ...]:
    from nvg.plugins import registry
    from nvg.sampling.compose import resolve

    for line in registry().warnings():
        say(f"warning: {line}")
    return resolve(SamplingParams(sampler=samplers), (), sampler_options) if samplers else ()


def _threads(number: int) -> str:
    return f"{number} thread{'s' if number > 1 else ''}"


def _print(result: BenchResult) -> None:
    """The table."""
    work = result.options
    sampled = f"sampled through {', '.join(result.sampler)}" if result.sampler else "nothing sampled"
    dtypes = f"{result.config.dtype}, KV {result.config.kv_dtype}"
    click.echo(f"{result.model}, {dtypes}, {_threads(result.threads)}, batch {work.batch}, {sampled}")
    click.echo(
        f"prompts of {work.prompt_tokens} tokens, {work.new_tokens} decode steps after {work.context}, "
        f"{work.repetitions} repetitions"
    )
    rows = [("", "median", "least", "greatest")]
    for name, (label, digits) in _ROWS.items():
        spread = result.spread(name)
        values = ("-",) * 3 if spread is None else (spread.median, spread.low, spread.high)
        rows.append((label, *(value if isinstance(value, str) else f"{value:.{digits}f}" for value in values)))  # type: ignore[arg-type]
    peak = "-" if result.peak_rss_bytes is None else f"{result.peak_rss_bytes / 1e6:.0f}"
    rows += [
        ("load, s", f"{result.load_s:.2f}", "", ""),
        ("compile, s", f"{result.compile_s:.1f}", "", ""),
        ("first token, s", f"{result.first_token_s:.3f}", "", ""),
        ("peak memory, MB", peak, "", ""),
    ]
    print_table(rows)


def _print_workload(record: dict[str, Any]) -> None:
    """The table of a workload."""
    click.echo(
        f"{record['model']}, {record['dtype']}, KV {record['kv_dtype']}, {_threads(record['threads'])}, "
        f"{record['workload']}: "
        f"{record['requests']} requests, {record['prompt_tokens']} tokens in, {record['output_tokens']} out, "
        f"up to {record['max_num_seqs']} at once, sampled through {', '.join(record['sampler'])}"
    )
    rows = [
        ("output, tok/s", f"{record['output_tok_s']:.1f}"),
        ("prompts and output, tok/s", f"{record['total_tok_s']:.1f}"),
        ("requests a second", f"{record['requests_s']:.2f}"),
        *_times("first token", record["first_token_s"]),
        *_times("between tokens", record["between_tokens_s"]),
        ("tokens drawn in a step", f"{record['rows_per_step']:.1f}"),
        ("outside the model, of the time", f"{record['outside_model']:.3f}"),
        ("tokens from the prefix cache", str(record["cached_tokens"])),
        ("preemptions", str(record["preemptions"])),
        ("most KV waste, of the pool", f"{record['most_kv_waste']:.4f}"),
    ]
    if record["full_slots"] is not None:
        shares = f"{record['full_slots']:.3f} ({record['decoding_slots']:.3f} drew a token)"
        rows.append(("slots taken while work waited", shares))
    if "speedup" in record:
        cold, warm = (record[f"{name}_first_token_s"] * 1e3 for name in ("cold", "warm"))
        rows.append(
            (
                "first token with a cached beginning",
                f"{record['speedup']:.1f} x as fast: {warm:.1f} ms, {cold:.1f} ms without",
            )
        )
    if "rate" in record:
        rows.append(("they came, a second", f"{record['rate']:.2f}"))
    print_table(rows)


def _times(what: str, percentiles: dict[str, float] | None) -> list[tuple[str, str]]:
    if percentiles is None:
        return []
    return [(f"{what}, ms, p50 p95 p99", " ".join(f"{seconds * 1e3:.1f}" for seconds in percentiles.values()))]
