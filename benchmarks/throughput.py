"""nvg beside other engines that serve many requests at once: output tokens a second of the whole.

    python benchmarks/throughput.py --dummy gpt2

The requests are those of `nvg bench --workload throughput`: prompts and outputs of 51 to 512 tokens (of 1,024
positions), all there from the beginning, up to 64 at once, temperature 0.6. Each engine has a process of its own and
batches as it does; in each repetition all do the same requests one after the other, and another one begins.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from batching import Requests, Served
from bounds import least_seconds
from converted import source_key
from dummy import SIZES, write_checkpoint
from engines import EngineProcess, Setup, Variant
from report import Spread, facts, known_model, print_facts, print_table, write_json

from nvg.bench.ceilings import Ceilings, ceilings
from nvg.bench.serving import Job
from nvg.bench.workloads import throughput_jobs
from nvg.errors import NvgError
from nvg.hub import resolve_model
from nvg.kernels.roofline import instruction_for
from nvg.model.config import ModelConfig, read_config
from nvg.model.runner import default_kv_dtype
from nvg.runtime.cores import default_threads

PRECISIONS = ("float32", "bfloat16", "int8")
_LLAMA_TYPES = {"float32": "f32", "bfloat16": "f16", "int8": "q8_0"}


def _variants(precision: str) -> list[Variant]:
    def variant(name: str, peer: str, kind: str, **options: Any) -> Variant:
        return Variant(name, peer, precision, f"batching:{kind}Batching", options=options)

    other_kv = [variant("nvg-bf16-kv", "nvg-bf16-kv", "Nvg", kv="bfloat16")] if precision == "float32" else []
    peer_kv = [variant("openvino-genai-f32-kv", "openvino-genai", "OpenVino", kv="f32")] if other_kv else []
    return [
        variant("nvg", "nvg", "Nvg"),
        *other_kv,  # what it has anyway at the other precisions
        variant("nvg-int8-kv", "nvg-int8-kv", "Nvg", kv="int8"),
        variant("llama.cpp", "llama.cpp", "LlamaCpp", type=_LLAMA_TYPES[precision]),
        variant("openvino-genai", "openvino-genai", "OpenVino"),
        *peer_kv,
        variant("ctranslate2", "ctranslate2", "CTranslate2"),
    ]


ENGINES = tuple(variant.name for variant in _variants("float32"))


@dataclass
class Measured:
    """An engine at a precision and its output tokens a second, repetition by repetition."""

    process: EngineProcess
    tok_s: list[float] = field(default_factory=list)
    of_ceiling: list[float] = field(default_factory=list)
    """nvg's as a fraction of what the machine could have done at most, measured right after."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", type=known_model, help="a built-in model's name or a Hugging Face GPT-2 directory")
    model.add_argument("--dummy", choices=SIZES, help="random weights of this size")
    parser.add_argument("--precision", default=",".join(PRECISIONS), help="comma-separated (default: %(default)s)")
    parser.add_argument("--engines", default=",".join(ENGINES), help="comma-separated (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=256, help="default: %(default)s")
    parser.add_argument("--slots", type=int, default=64, help="sequences at once (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=default_threads(), help="default: %(default)s")
    parser.add_argument("--repetitions", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="keep and reuse the dummy model and converted models in this directory"
    )
    args = parser.parse_args()
    for name, allowed in (("precision", PRECISIONS), ("engines", ENGINES)):
        words = getattr(args, name).split(",")
        for word in words:
            if word not in allowed:
                parser.error(f"--{name} has {word!r}; there are {', '.join(allowed)}")
        setattr(args, name, [word for word in allowed if word in words])
    for name in ("requests", "slots", "threads", "repetitions"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} is {getattr(args, name)}; it must be at least 1")
    return args


def measure(engine: Measured, work: Requests, config: ModelConfig, machine: Ceilings) -> None:
    """Do the requests once. An engine that made too few tokens has a problem."""
    done = engine.process.run(work)
    if done is None:
        return
    served: Served = done.outcome
    wanted = [job.max_tokens for job in work.jobs]
    if served.lengths != wanted:
        engine.process.problem = f"wrong: made {sum(served.lengths)} tokens of {sum(wanted)}"
        return
    engine.tok_s.append(work.num_output_tokens / served.seconds)
    variant = engine.process.variant
    if variant.peer.startswith("nvg"):
        rates = machine.operations_s(instruction_for(variant.precision)), machine.read_bytes_s()
        kv_dtype = variant.options.get("kv") or default_kv_dtype(variant.precision)
        engine.of_ceiling.append(least_seconds(config, work.jobs, kv_dtype, *rates) / served.seconds)


def run_precision(
    precision: str, args: argparse.Namespace, setup: Setup, jobs: list[Job], config: ModelConfig
) -> list[Measured]:
    """All engines of a precision, with what was measured or with their problem."""
    with ExitStack() as stack:
        machine = stack.enter_context(ceilings(args.threads))
        engines = []
        for variant in _variants(precision):
            if variant.name not in args.engines:
                continue
            print(f"{precision}: {variant.name}", file=sys.stderr, flush=True)
            process = EngineProcess(variant, replace(setup, precision=precision, options=variant.options))
            stack.callback(process.close)
            engines.append(Measured(process))
            # warms up, and memory that is written for the first time is slow on a virtual machine
            process.run(Requests([Job(job.prompt[::-1], 8) for job in jobs[: args.slots]], 0))
        for repetition in range(args.repetitions):
            # each time the prompts end differently, so that no cache knows them
            changed = [replace(job, prompt=[*job.prompt[repetition:], *job.prompt[:repetition]]) for job in jobs]
            begin = repetition % max(len(engines), 1)
            for engine in engines[begin:] + engines[:begin]:
                measure(engine, Requests(changed, 1000 * repetition), config, machine)
    return engines


def ratios(engines: list[Measured]) -> dict[str, dict[str, Spread]]:
    """Of each kind of nvg: its tokens a second by each peer's, repetition by repetition."""
    ours = [engine for engine in engines if engine.process.variant.peer.startswith("nvg")]
    peers = [engine for engine in engines if engine not in ours]
    return {
        engine.process.variant.name: {
            peer.process.variant.name: Spread.of_ratios(engine.tok_s, peer.tok_s)
            for peer in peers
            if engine.tok_s and len(engine.tok_s) == len(peer.tok_s)
        }
        for engine in ours
    }


def print_precision(precision: str, engines: list[Measured]) -> None:
    compared = ratios(engines)
    rows = [[precision, "output tok/s", "of the ceiling", *(f"{name} is x" for name in compared), "what"]]
    for engine in engines:
        name, process = engine.process.variant.name, engine.process
        tok_s = Spread.of(engine.tok_s).text(1) if engine.tok_s else "-"
        ceiling = Spread.of(engine.of_ceiling).text(2) if engine.of_ceiling else ""
        beside = [by_peer[name].text(2) if name in by_peer else "" for by_peer in compared.values()]
        rows.append([f"  {name}", tok_s, ceiling, *beside, process.problem or process.description])
    print_table(rows)
    print()


def run(args: argparse.Namespace, directory: Path, scratch: Path) -> int:
    config = read_config(directory)
    machine = facts()
    print_facts(machine)
    jobs = throughput_jobs(args.requests, config.n_positions, config.vocab_size)
    tokens = sum(len(job.prompt) for job in jobs), sum(job.max_tokens for job in jobs)
    print(
        f"{args.requests} requests, {tokens[0]} tokens in, {tokens[1]} out, up to {args.slots} at once, {args.threads} "
        f"threads; median (least-greatest) of {args.repetitions} repetitions\n"
    )
    settings = {name: getattr(args, name) for name in ("model", "dummy", "requests", "slots", "threads", "repetitions")}
    result: dict[str, Any] = {"machine": machine, "settings": settings, "precisions": {}}
    setup = Setup(directory, scratch, "float32", args.threads, config.n_positions, args.slots)
    for precision in args.precision:
        engines = run_precision(precision, args, setup, jobs, config)
        print_precision(precision, engines)
        result["precisions"][precision] = {
            "engines": {
                engine.process.variant.name: {
                    "tok_s": engine.tok_s,
                    "of_ceiling": engine.of_ceiling,
                    "description": engine.process.description,
                    "problem": engine.process.problem,
                }
                for engine in engines
            },
            "is_x": {
                name: {peer: vars(spread) for peer, spread in by_peer.items()}
                for name, by_peer in ratios(engines).items()
            },
        }
    write_json(args.json, result)
    return 0


def main() -> int:
    args = parse()
    with tempfile.TemporaryDirectory(prefix="nvg-benchmark-") as temporary:
        scratch = (args.keep or Path(temporary)).resolve()
        directory = write_checkpoint(scratch / args.dummy, args.dummy) if args.dummy else resolve_model(args.model)
        return run(args, directory, scratch / f"converted-{source_key(directory)}")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except NvgError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
