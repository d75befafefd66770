"""nvg beside other engines: the same weights, tokens and threads, taking turns in one run.

    python benchmarks/side_by_side.py --dummy gpt2

Precision by precision, each engine does the same work in turn, in a process of its own; each repetition has other
tokens and begins with another engine, so a ratio compares neighbours in time. Before anything is timed every engine's
logits are compared with nvg's in float32. Right after each of nvg's turns comes what the machine itself can do: how
fast the same threads read memory and repeat the fastest instruction; nvg's rates are shown as fractions of what that
allows.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from bounds import Bounds, Machine
from converted import source_key
from dummy import SIZES, write_checkpoint
from engines import PEERS, PRECISIONS, TOKEN_TOLERANCE, TOLERANCES, VARIANTS, EngineProcess, Setup, Variant
from load import forget
from report import Spread, facts, known_model, print_facts, print_table, write_json
from work import Logits, Task, Work

from nvg.bench.ceilings import ceilings
from nvg.errors import NvgError
from nvg.hub import resolve_model
from nvg.model.checkpoint import Checkpoint
from nvg.model.config import read_config
from nvg.model.packing import Layout
from nvg.runtime.cores import default_threads

WORK = "prefill-16,prefill-128,prefill-512,prefill-900,decode-1,decode-1-900,decode-8,decode-16,greedy-1,topp-1,topp-16"
_CHECK_TOKENS, _CHECK_STEPS, _CHECK_BATCH = 24, 4, 2


@dataclass
class Measured:
    """An engine at a precision and what was measured of it."""

    process: EngineProcess
    tok_s: dict[str, list[float]] = field(default_factory=dict)
    """Tokens a second of every repetition, by task."""
    difference: float | None = None
    """From nvg's float32 logits: root mean square in standard deviations; None where it shows no logits."""
    token_gap: float | None = None
    """Of an engine that shows none: how far below the greatest of nvg's float32 logits its choice was, as above."""
    wall_s: float = 0.0
    cpu_s: float = 0.0
    waiting_cpu_s: float = 0.0

    @property
    def variant(self) -> Variant:
        """What it is."""
        return self.process.variant

    @property
    def is_wrong(self) -> bool:
        """Whether it can't be the same model; NaN is wrong, too."""
        by_logits = self.difference is not None and not self.difference <= TOLERANCES[self.variant.precision]
        return by_logits or (self.token_gap is not None and not self.token_gap <= TOKEN_TOLERANCE)

    @property
    def cores(self) -> float:
        """Cores that were used on average while it worked: fewer than its threads if they had to share them."""
        return self.cpu_s / self.wall_s if self.wall_s else 0.0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", type=known_model, help="a built-in model's name or a Hugging Face GPT-2 directory")
    model.add_argument("--dummy", choices=SIZES, help="random weights of this size")
    parser.add_argument("--precision", default=",".join(PRECISIONS), help="comma-separated (default: %(default)s)")
    parser.add_argument("--engines", default=",".join(PEERS), help="comma-separated (default: %(default)s)")
    parser.add_argument(
        "--work",
        help="comma-separated: prefill-TOKENS, and decode-, greedy- and topp-BATCH or -BATCH-CONTEXT "
        f"(default: what the model's context holds of {WORK})",
    )
    parser.add_argument("--threads", type=int, default=default_threads(), help="default: %(default)s")
    parser.add_argument(
        "--new-tokens", type=int, default=64, help="steps at batch 1, a fourth at others (default: %(default)s)"
    )
    parser.add_argument("--repetitions", type=int, default=7, help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="keep and reuse the dummy model and converted models in this directory"
    )
    args = parser.parse_args()
    args.precision = _choices(parser, "precision", args.precision, PRECISIONS)
    args.engines = _choices(parser, "engine", args.engines, PEERS)
    for name in ("threads", "new_tokens", "repetitions"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(args, name)}; it must be at least 1")
    try:
        args.tasks = [Task.parse(name, args.new_tokens) for name in (args.work or WORK).split(",")]
    except ValueError as error:
        parser.error(str(error))
    return args


def _choices(parser: argparse.ArgumentParser, what: str, text: str, allowed: tuple[str, ...]) -> list[str]:
    """The words of a comma-separated list, in the order of `allowed`."""
    words = text.split(",")
    for word in words:
        if word not in allowed:
            parser.error(f"no {what} {word!r}; there are {', '.join(allowed)}")
    return [word for word in allowed if word in words]


def check_works(vocab_size: int) -> list[Work]:
    """What logits are compared on: the ends of prompts, alone and together, and of a few steps after them."""
    prefill = Task("prefill", 1, _CHECK_TOKENS)
    decode = Task("decode", _CHECK_BATCH, _CHECK_TOKENS, _CHECK_STEPS)
    drawn = [replace(prefill.draw(vocab_size, seed), is_check=True) for seed in range(2)]
    works = [replace(work, prompts=work.prompts[:1]) for work in drawn]
    return [*works, replace(decode.draw(vocab_size, 0), is_check=True)]


def reference(setup: Setup, works: list[Work]) -> list[Logits]:
    """nvg's float32 logits of each work; of decode, after the prompts and after the steps. Raises RuntimeError."""
    variant = next(variant for variant in VARIANTS if variant.peer == "nvg" and variant.precision == "float32")
    process = EngineProcess(variant, replace(setup, precision="float32"))
    logits = []
    try:
        for work in works:
            done = process.run(work)
            if done is None:
                raise RuntimeError(f"nvg in float32 {process.problem}")
            logits.append(done.outcome.logits)
    finally:
        process.close()
    return logits


def compare(engine: Measured, works: list[Work], wanted: list[Logits]) -> None:
    """Note how far an engine's logits, or the tokens that it chooses, are from nvg's in float32."""
    for work, logits in zip(works, wanted, strict=True):
        done = engine.process.run(work)
        if done is None:
            return
        given, chosen = done.outcome.logits, done.outcome.first_token_ids
        if given is not None:
            difference = float(np.sqrt(np.square(given - logits).mean()) / logits.std())
            engine.difference = max(engine.difference or 0.0, difference)
        elif chosen is not None and work.kind == "prefill":
            gap = float((logits[0].max() - logits[0, chosen[0]]) / logits[0].std())
            engine.token_gap = max(engine.token_gap or 0.0, gap)


def measure(
    engines: list[Measured], tasks: list[Task], vocab_size: int, repetitions: int, machine: Machine, threads: int
) -> None:
    """Take turns; who begins changes with the repetition, and the first one, which warms up, is not counted."""
    with ceilings(threads) as measured:
        for repetition in range(repetitions + 1):
            take_turns(engines, tasks, vocab_size, repetition, lambda task: machine.measure(measured, task))


def take_turns(
    engines: list[Measured], tasks: list[Task], vocab_size: int, repetition: int, after_nvg: Callable[[Task], None]
) -> None:
    """A repetition."""
    begin = repetition % len(engines)
    for task in tasks:
        work = task.draw(vocab_size, repetition)
        for engine in engines[begin:] + engines[:begin]:
            if task.kind in ("greedy", "topp") and not engine.variant.has_sampler:
                continue
            done = engine.process.run(work)
            if done is not None and repetition:
                engine.tok_s.setdefault(task.name, []).append(work.num_tokens / done.outcome.seconds)
                engine.wall_s += done.wall_s
                engine.cpu_s += done.cpu_s
                engine.waiting_cpu_s += done.waiting_cpu_s
                if engine.variant.peer == "nvg":
                    after_nvg(task)


def run_precision(
    machine: Machine, args: argparse.Namespace, setup: Setup, works: list[Work], wanted: list[Logits]
) -> list[Measured]:
    """All engines of a precision, with what was measured or with their problem; the wrong ones are not timed."""
    precision = machine.bounds.precision
    variants = [variant for variant in VARIANTS if variant.precision == precision and variant.peer in args.engines]
    with ExitStack() as stack:
        engines = []
        for variant in variants:
            print(f"{precision}: {variant.name}", file=sys.stderr, flush=True)
            process = EngineProcess(variant, replace(setup, precision=precision, options=variant.options))
            stack.callback(process.close)
            engines.append(Measured(process))
            compare(engines[-1], works, wanted)
        right = [engine for engine in engines if engine.process.problem is None and not engine.is_wrong]
        if right:
            vocab_size = wanted[0].shape[-1]
            print(f"{precision}: measuring {', '.join(e.variant.name for e in right)}", file=sys.stderr, flush=True)
            measure(right, args.tasks, vocab_size, args.repetitions, machine, args.threads)
    return engines


def ratios(engines: list[Measured], task: str) -> dict[str, Spread]:
    """nvg's tokens a second by each peer's, repetition by repetition."""
    nvg = next((engine.tok_s.get(task) for engine in engines if engine.variant.peer == "nvg"), None)
    if nvg is None:
        return {}
    peers = [
        engine for engine in engines if engine.variant.peer != "nvg" and len(engine.tok_s.get(task, ())) == len(nvg)
    ]
    return {engine.variant.name: Spread.of_ratios(nvg, engine.tok_s[task]) for engine in peers}


def print_precision(machine: Machine, engines: list[Measured], tasks: list[Task]) -> None:
    """A table for each task, and one of the engines."""
    precision = machine.bounds.precision
    problems = {engine.variant.name: engine.process.problem for engine in engines if engine.process.problem}
    problems |= {engine.variant.name: "wrong: another model by its logits" for engine in engines if engine.is_wrong}
    rows = []
    for task in tasks:
        by_name = ratios(engines, task.name)
        rows.append([f"{precision}, {task.name}", "tok/s", "nvg is x; nvg: of what the machine can"])
        for engine in engines:
            name = engine.variant.name
            tok_s = engine.tok_s.get(task.name)
            if tok_s:
                text = Spread.of(tok_s).text(0 if task.kind == "prefill" else 1)
            else:
                text = problems.get(name) or "has no sampler"
                text = text if len(text) < 40 else f"{text[:36]}..."
            beside = by_name[name].text(2) if name in by_name else ""
            if tok_s and engine.variant.peer == "nvg":
                bound, fraction = machine.of_ceiling(task, tok_s)
                beside = f"{fraction.text(2)} of {bound}"
            rows.append([f"  {name}", text, beside])
    print_table(rows)
    print()
    rows = [[precision, "what", "from nvg's float32", "cores used", "CPU time while waiting"]]
    for engine in engines:
        name, what = engine.variant.name, problems.get(engine.variant.name) or engine.process.description
        if engine.variant.name in problems and engine.process.description:
            what += f" ({engine.process.description})"
        if engine.difference is not None:
            difference = f"{engine.difference:.1e} sigma"
        else:
            difference = "" if engine.token_gap is None else f"its token by {engine.token_gap:.2f} sigma"
        rows.append([f"  {name}", what, difference, f"{engine.cores:.2f}", f"{engine.waiting_cpu_s:.2f} s"])
    print_table(rows)
    if machine.read_bytes_s:
        rates = machine.read_bytes_s, machine.operations_s
        read, rate = (Spread.of([value / 1e9 for each in by_task.values() for value in each]) for by_task in rates)
        print(f"\nthe machine reads {read.text(1)} GB/s and computes {rate.text(0)} GFLOP/s ({precision})")
    print()


def as_json(machine: Machine, engines: list[Measured], tasks: list[Task]) -> dict[str, Any]:
    """A precision's part of the JSON file."""
    described = {}
    for engine in engines:
        described[engine.variant.name] = {
            "peer": engine.variant.peer,
            "problem": engine.process.problem or ("wrong: another model by its logits" if engine.is_wrong else None),
            "description": engine.process.description,
            "load_s": engine.process.load_s,
            "logits_rms_sigma": engine.difference,
            "token_gap_sigma": engine.token_gap,
            "cores_used": engine.cores,
            "waiting_cpu_s": engine.waiting_cpu_s,
        }
    work = {}
    for task in tasks:
        by_name = {engine.variant.name: engine.tok_s[task.name] for engine in engines if task.name in engine.tok_s}
        compared = {name: vars(spread) for name, spread in ratios(engines, task.name).items()}
        work[task.name] = {"tok_s": by_name, "nvg_is_x": compared}
        for name in by_name.keys() & {"nvg"}:
            bound, fraction = machine.of_ceiling(task, by_name[name])
            work[task.name]["nvg_of_ceiling"] = {"bound": bound, **vars(fraction)}
    rates = {"read_bytes_s": machine.read_bytes_s, "operations_s": machine.operations_s}
    return {"engines": described, "work": work, "machine": rates}


def fitting(args: argparse.Namespace, n_positions: int) -> str | None:
    """Leave only tasks that fit in args.tasks, saying which do not; an error's line if they were asked for."""
    too_long = [task for task in args.tasks if task.tokens > n_positions]
    if too_long and args.work:
        names = ", ".join(f"{task.name} ({task.tokens} tokens)" for task in too_long)
        return f"{names}: the model's context holds {n_positions}"
    args.tasks = [task for task in args.tasks if task.tokens <= n_positions]
    if too_long:
        names = ", ".join(task.name for task in too_long)
        print(f"left out, the model's context holds {n_positions} tokens: {names}\n")
    return None


def run(args: argparse.Namespace, directory: Path, scratch: Path) -> int:
    config = read_config(directory)
    problem = fitting(args, config.n_positions)
    if problem is not None:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    about = facts()
    print_facts(about)
    with Checkpoint(directory) as checkpoint:
        weight_bytes = {precision: Layout(checkpoint, precision).size for precision in args.precision}
    context = max(*(task.tokens for task in args.tasks), _CHECK_TOKENS + _CHECK_STEPS)
    batch = max(*(task.batch for task in args.tasks), _CHECK_BATCH)
    setup = Setup(directory, scratch, "float32", args.threads, context, batch)
    works = check_works(config.vocab_size)
    wanted = reference(setup, works)
    print(f"tokens a second, {args.threads} threads; median (least-greatest) of {args.repetitions} repetitions\n")
    result: dict[str, Any] = {"machine": about}
    settings = ("model", "dummy", "threads", "new_tokens", "repetitions")
    result["settings"] = {name: getattr(args, name) for name in settings}
    result["precisions"] = {}
    wrong = []
    for precision in args.precision:
        machine = Machine(Bounds(config, precision, weight_bytes[precision]))
        engines = run_precision(machine, args, setup, works, wanted)
        print_precision(machine, engines, args.tasks)
        result["precisions"][precision] = as_json(machine, engines, args.tasks)
        wrong += [f"{engine.variant.name} in {precision}" for engine in engines if engine.is_wrong]
    write_json(args.json, result)
    for name in wrong:
        print(f"error: {name} does not compute the same model: see how far it is from nvg's float32", file=sys.stderr)
    return 1 if wrong else 0


def main() -> int:
    args = parse()
    with tempfile.TemporaryDirectory(prefix="nvg-benchmark-") as temporary:
        scratch = (args.keep or Path(temporary)).resolve()
        directory = write_checkpoint(scratch / args.dummy, args.dummy) if args.dummy else resolve_model(args.model)
        try:
            return run(args, directory, scratch / f"converted-{source_key(directory)}")
        finally:
            if args.dummy and not args.keep:
                forget(directory)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except NvgError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
