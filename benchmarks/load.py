"""How soon a model is ready: from its checkpoint, and from the cache of packed weights, beside safetensors' load_file.

    python benchmarks/load.py --dummy gpt2

"Ready" is from a directory's path to a model runner that can take a step. Each load is made in a fresh process, where
all is imported and the compiled kernels are loaded before the clock starts; the checkpoint is in the system's file
cache. In each repetition all kinds take turns. Packed weights are kept in nvg's own cache, and removed at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from report import Spread, facts, known_model, print_facts, print_table, write_json
from startup import NVG, wall_time

DTYPES = ("float32", "bfloat16", "int8", "int4")
KINDS = {
    "load_file": "safetensors.numpy.load_file",
    "source": "nvg, packed weights off",
    "first": "nvg, packed weights kept at the end",
    "packed": "nvg, packed weights found",
}
"""What takes turns, in this order: each needs what the one before leaves."""
TARGETS = {"source": 1.5, "packed": 0.4}
"""Most that float32 should take, as a multiple of load_file."""


def load_with_safetensors(directory: Path) -> dict[str, Any]:
    """In a fresh process: all tensors as arrays."""
    from safetensors.numpy import load_file

    start = time.perf_counter()
    tensors = load_file(directory / "model.safetensors")
    ready = time.perf_counter()
    assert tensors
    return {"ready_s": ready - start}


def load_with_nvg(directory: Path, dtype: str, num_steps: int) -> dict[str, Any]:
    """In a fresh process: a runner, steps of one token, and the end."""
    import numpy as np

    from nvg.model.checkpoint import Checkpoint
    from nvg.model.contract import Batch
    from nvg.model.runner import GPT2Runner, compile_steps
    from nvg.params import EngineConfig
    from nvg.runtime.compile_cache import prepare

    prepare(compile_steps(dtype))
    config = EngineConfig(model=str(directory), dtype=dtype, max_num_seqs=1)
    start = time.perf_counter()
    with Checkpoint(directory) as checkpoint:
        runner = GPT2Runner.from_checkpoint(checkpoint.config, checkpoint, config)
    ready = time.perf_counter()
    tables = np.arange(-(-2 * num_steps // config.block_size), dtype=np.int32)[None]
    runner.allocate_kv(tables.size, config.block_size)

    def decode(first: int) -> float:
        begin = time.perf_counter()
        for position in range(first, first + num_steps):
            runner.execute(
                Batch(
                    token_ids=np.array([position], np.int32),
                    positions=np.array([position], np.int32),
                    query_offsets=np.array([0, 1], np.int32),
                    block_tables=tables,
                    context_lens=np.array([position + 1], np.int32),
                    logits_rows=np.array([0], np.int32),
                )
            )
        return num_steps / (time.perf_counter() - begin)

    decode(0)  # whatever the first steps still wait for
    decode_tok_s = decode(num_steps)
    end = time.perf_counter()
    runner.close()
    return {
        "ready_s": ready - start,
        "decode_tok_s": decode_tok_s,
        "close_s": time.perf_counter() - end,
        "is_from_cache": runner.is_from_cache,
        "weight_bytes": runner.weight_bytes,
    }


def measure(directory: Path, dtype: str, repetitions: int, num_steps: int) -> dict[str, Any]:
    """What each repetition gave, by kind: the load in a process of its own, and a whole `nvg generate`.

    Ends this process if one of them fails, having said why.
    """
    loads: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    generates: dict[str, list[float]] = {kind: [] for kind in KINDS if kind != "load_file"}
    generate = [*NVG, "generate", "The", "-m", str(directory), "--dtype", dtype, "--max-tokens", str(num_steps)]
    options = ["--model", str(directory), "--dtype", dtype, "--new-tokens", str(num_steps)]
    for _ in range(repetitions):
        forget(directory)
        for kind, runs in loads.items():
            child = [sys.executable, __file__, "--child", kind, *options]
            done = subprocess.run(child, stdout=subprocess.PIPE, env={**os.environ, **_environment(kind)})
            if done.returncode:
                sys.exit(done.returncode)
            runs.append(json.loads(done.stdout))
            if kind != "load_file" and runs[-1]["is_from_cache"] != (kind == "packed"):
                sys.exit(f"error: {directory} was not kept and found again: too little room, or too small a model")
        forget(directory)
        for kind, seconds in generates.items():
            seconds.append(wall_time(generate, **_environment(kind)))
    return {"loads": loads, "generate_s": generates}


def _environment(kind: str) -> dict[str, str]:
    return {"NVG_PACKED_CACHE_GB": "0" if kind == "source" else "1000"}


def forget(directory: Path) -> None:
    """Remove the directory's packed weights; there may be none."""
    subprocess.run([*NVG, "models", "rm", str(directory)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def summary(measured: dict[str, Any]) -> dict[str, Any]:
    """Ratios of `measure`'s result: of load times to load_file's, of decode rates and `nvg generate` to packed off."""
    loads, generates = measured["loads"], measured["generate_s"]
    ready = {kind: [run["ready_s"] for run in runs] for kind, runs in loads.items()}
    rates = {kind: [run["decode_tok_s"] for run in loads[kind]] for kind in generates}
    return {
        "ready_over_load_file": {kind: vars(Spread.of_ratios(ready[kind], ready["load_file"])) for kind in generates},
        "decode_over_source": {kind: vars(Spread.of_ratios(rates[kind], rates["source"])) for kind in generates},
        "generate_over_source": {
            kind: vars(Spread.of_ratios(seconds, generates["source"])) for kind, seconds in generates.items()
        },
    }


def print_result(dtype: str, measured: dict[str, Any], found: dict[str, Any]) -> None:
    rows = [[dtype, "ready, ms", "x load_file", "at most", "decode tok/s", "close, ms", "nvg generate, s"]]
    for kind, runs in measured["loads"].items():
        row = [KINDS[kind], Spread.of([1000 * run["ready_s"] for run in runs]).text(0)]
        if kind != "load_file":
            target = TARGETS.get(kind) if dtype == "float32" else None
            row += [Spread(**found["ready_over_load_file"][kind]).text(2), f"{target:.1f}" if target else ""]
            row += [Spread.of([run["decode_tok_s"] for run in runs]).text(0)]
            row += [Spread.of([1000 * run["close_s"] for run in runs]).text(0)]
            row += [Spread.of(measured["generate_s"][kind]).text(2)]
        rows.append([*row, *[""] * (len(rows[0]) - len(row))])
    print_table(rows)
    print()


def run(directory: Path, args: argparse.Namespace) -> None:
    machine = facts()
    print_facts(machine)
    print(f"median (least-greatest) of {args.repetitions} repetitions, each load in a fresh process\n")
    result: dict[str, Any] = {}
    try:
        for dtype in args.dtype.split(","):
            subprocess.run([*NVG, "warmup", "--dtype", dtype], check=True, capture_output=True)
            measured = measure(directory, dtype, args.repetitions, args.new_tokens)
            result[dtype] = {**summary(measured), **measured}
            print_result(dtype, measured, result[dtype])
    finally:
        forget(directory)
    settings = {"model": args.model, "dummy": args.dummy, "new_tokens": args.new_tokens}
    write_json(args.json, {"machine": machine, "settings": settings, "targets": TARGETS, "dtypes": result})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", type=known_model, help="a GPT-2 directory with one model.safetensors")
    model.add_argument("--dummy", metavar="SIZE", help="random weights: gpt2, gpt2-medium, gpt2-large or gpt2-xl")
    parser.add_argument("--dtype", default=",".join(DTYPES), help="comma-separated (default: %(default)s)")
    parser.add_argument("--repetitions", type=int, default=7, help="default: %(default)s")
    parser.add_argument("--new-tokens", type=int, default=64, help="steps that are timed (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep and reuse the dummy model in this directory")
    parser.add_argument("--child", choices=KINDS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.repetitions < 1 or args.new_tokens < 1 or not set(args.dtype.split(",")) <= set(DTYPES):
        parser.error(f"--repetitions and --new-tokens must be at least 1, --dtype some of {', '.join(DTYPES)}")
    if args.child == "load_file":
        print(json.dumps(load_with_safetensors(Path(args.model))))
    elif args.child:
        print(json.dumps(load_with_nvg(Path(args.model), args.dtype, args.new_tokens)))
    elif args.model:
        from nvg.hub import resolve_model

        run(resolve_model(args.model), args)
    else:
        with tempfile.TemporaryDirectory(prefix="nvg-benchmark-") as temporary:
            directory = (args.keep or Path(temporary)) / args.dummy
            writer = [sys.executable, str(Path(__file__).with_name("dummy.py")), args.dummy, str(directory)]
            status = subprocess.run(writer, stdout=subprocess.DEVNULL).returncode
            if status:
                sys.exit(status)
            run(directory, args)


if __name__ == "__main__":
    main()
