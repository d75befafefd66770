"""nvg beside other engines: the same weights, tokens and threads, taking turns in one run.

    python benchmarks/side_by_side.py --dummy gpt2

Prefill is one call over the whole prompt, decode is one call a token after an untimed context; both end with the last
token's logits, nothing is sampled. Each repetition has other tokens, and each engine its turn in it, so a ratio
compares neighbours in time. Before the first one every engine's logits are compared with nvg's.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from dummy import SIZES, write_checkpoint
from engines import ENGINES, EngineProcess, Logits, Work
from report import Spread, facts, print_facts, print_table, write_json

from nvg.errors import NvgError
from nvg.hub import resolve_model
from nvg.model.config import read_config
from nvg.runtime.cores import default_threads

PHASES = ("prefill", "decode")


@dataclass
class Measured:
    """An engine and what was measured of it: tokens a second of every repetition, by phase."""

    process: EngineProcess
    tok_s: dict[str, list[float]] = field(default_factory=lambda: {phase: [] for phase in PHASES})
    logits_difference: float = 0.0
    """Greatest absolute difference from nvg's."""
    relative_difference: float = 0.0
    """The same in standard deviations of nvg's logits."""
    seconds: float = 0.0
    cpu_s: float = 0.0
    waiting_cpu_s: float = 0.0

    @property
    def cores(self) -> float:
        """Cores that were used on average while it worked: fewer than its threads if they had to share them."""
        return self.cpu_s / self.seconds


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", help="a built-in model's name or a Hugging Face GPT-2 directory")
    model.add_argument("--dummy", choices=SIZES, help="random weights of this size")
    parser.add_argument("--engines", default=",".join(ENGINES), help="comma-separated (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=default_threads(), help="default: %(default)s")
    parser.add_argument("--prompt-tokens", type=int, default=512, help="default: %(default)s")
    parser.add_argument("--context", type=int, default=32, help="tokens before decode begins (default: %(default)s)")
    parser.add_argument("--new-tokens", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--repetitions", type=int, default=7, help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep and reuse the dummy model in this directory")
    args = parser.parse_args()
    args.engines = args.engines.split(",")
    for name in args.engines:
        if name not in ENGINES:
            parser.error(f"no engine {name!r}; there are {', '.join(ENGINES)}")
    if "nvg" not in args.engines:
        args.engines.insert(0, "nvg")
    for name in ("threads", "prompt_tokens", "context", "new_tokens", "repetitions"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(args, name)}; it must be at least 1")
    return args


def draw_work(args: argparse.Namespace, vocab_size: int, repetition: int) -> dict[str, Work]:
    """A repetition's work by phase, the same for every engine."""
    rng = random.Random(repetition)

    def tokens(count: int) -> list[int]:
        return [rng.randrange(vocab_size) for _ in range(count)]

    return {"prefill": Work(tokens(args.prompt_tokens)), "decode": Work(tokens(args.context), tokens(args.new_tokens))}


def compare_logits(engines: list[Measured], work: dict[str, Work]) -> None:
    """Warm every engine up, and note how far its logits are from nvg's."""
    for phase in PHASES:
        wanted: Logits | None = None
        for engine in engines:
            done = engine.process.run(work[phase])
            if done is None:
                continue
            if wanted is None:
                wanted = done.logits
            difference = float(np.abs(done.logits - wanted).max())
            engine.logits_difference = max(engine.logits_difference, difference)
            engine.relative_difference = max(engine.relative_difference, difference / float(wanted.std()))


def measure(engines: list[Measured], args: argparse.Namespace, vocab_size: int) -> None:
    """Take turns; who begins changes with the repetition."""
    counts = {"prefill": args.prompt_tokens, "decode": args.new_tokens}
    for repetition in range(args.repetitions):
        work = draw_work(args, vocab_size, repetition + 1)
        begin = repetition % len(engines)
        for phase in PHASES:
            for engine in engines[begin:] + engines[:begin]:
                done = engine.process.run(work[phase])
                if done is not None:
                    engine.tok_s[phase].append(counts[phase] / done.seconds)
                    engine.seconds += done.seconds
                    engine.cpu_s += done.cpu_s
                    engine.waiting_cpu_s += done.waiting_cpu_s


def print_results(engines: list[Measured], missing: list[EngineProcess], args: argparse.Namespace) -> None:
    nvg = engines[0]
    print(f"tokens a second, {args.threads} threads; median (least-greatest) of {args.repetitions} repetitions\n")
    columns = (f"prefill {args.prompt_tokens}", f"decode {args.new_tokens} after {args.context}")
    rows = [["", columns[0], "nvg is x", columns[1], "nvg is x"]]
    for engine in engines:
        row = [engine.process.name]
        for phase in PHASES:
            ratio = "" if engine is nvg else Spread.of_ratios(nvg.tok_s[phase], engine.tok_s[phase]).text(2)
            row += [Spread.of(engine.tok_s[phase]).text(0 if phase == "prefill" else 1), ratio]
        rows.append(row)
    rows += [[process.name, process.problem or "", "", "", ""] for process in missing]
    print_table(rows)
    print()
    rows = [["", "what", "logits differ from nvg's by", "cores used", "CPU time while waiting"]]
    for engine in engines:
        difference = f"{engine.logits_difference:.1e} ({engine.relative_difference:.1e} sigma)"
        waiting = f"{engine.waiting_cpu_s:.2f} s"
        difference = "" if engine is nvg else difference
        rows.append([engine.process.name, engine.process.description, difference, f"{engine.cores:.2f}", waiting])
    print_table(rows)


def as_json(
    engines: list[Measured], missing: list[EngineProcess], args: argparse.Namespace, machine: dict[str, Any]
) -> dict[str, Any]:
    result: dict[str, Any] = {"machine": machine}
    settings = ("model", "dummy", "threads", "prompt_tokens", "context", "new_tokens", "repetitions")
    result["settings"] = {name: getattr(args, name) for name in settings}
    result["engines"] = {
        engine.process.name: {
            "description": engine.process.description,
            "load_s": engine.process.load_s,
            **{f"{phase}_tok_s": engine.tok_s[phase] for phase in PHASES},
            "logits_difference": engine.logits_difference,
            "relative_difference": engine.relative_difference,
            "cores_used": engine.cores,
            "waiting_cpu_s": engine.waiting_cpu_s,
        }
        for engine in engines
    }
    result["engines"].update({process.name: {"problem": process.problem} for process in missing})
    nvg = engines[0]
    result["ratios"] = {
        engine.process.name: {phase: vars(Spread.of_ratios(nvg.tok_s[phase], engine.tok_s[phase])) for phase in PHASES}
        for engine in engines[1:]
    }
    return result


def run(args: argparse.Namespace, directory: Path, scratch: Path) -> int:
    config = read_config(directory)
    context = max(args.prompt_tokens, args.context + args.new_tokens)
    if context > config.n_positions:
        print(f"error: {context} tokens do not fit the model's context of {config.n_positions}", file=sys.stderr)
        return 2
    machine = facts()
    print_facts(machine)
    with ExitStack() as stack:
        processes = []
        for name in args.engines:
            process = EngineProcess(name, directory, args.threads, context, scratch)
            stack.callback(process.close)
            processes.append(process)
        engines = [Measured(process) for process in processes if process.problem is None]
        if not engines or engines[0].process.name != "nvg":
            print(f"error: nvg itself {processes[0].problem}", file=sys.stderr)
            return 1
        compare_logits(engines, draw_work(args, config.vocab_size, 0))
        engines = [engine for engine in engines if engine.process.problem is None]
        measure(engines, args, config.vocab_size)
    engines = [engine for engine in engines if engine.process.problem is None]
    missing = [process for process in processes if process.problem is not None]
    print_results(engines, missing, args)
    write_json(args.json, as_json(engines, missing, args, machine))
    wrong = [engine for engine in engines if not engine.relative_difference <= ENGINES[engine.process.name].tolerance]
    for engine in wrong:
        print(f"error: {engine.process.name} does not compute the same model: see its logits", file=sys.stderr)
    return 1 if wrong else 0


def main() -> int:
    args = parse()
    with tempfile.TemporaryDirectory(prefix="nvg-benchmark-") as temporary:
        scratch = Path(temporary)
        if args.dummy:
            directory = write_checkpoint((args.keep or scratch) / args.dummy, args.dummy)
        else:
            directory = resolve_model(args.model)
        return run(args, directory, scratch)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except NvgError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
