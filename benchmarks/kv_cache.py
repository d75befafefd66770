"""What the KV cache is for: time per token with it, and when every token recomputes all that came before.

    python benchmarks/kv_cache.py

Without a cache the n-th token costs a pass over n tokens, so a text of N tokens costs a multiple of N squared; with it,
one token's pass and attention over what is stored. Both paths run here on the same runner, and give the same bits.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from dummy import SIZES, write_checkpoint
from engine_nvg import Nvg
from engines import Setup
from report import facts, known_model, print_facts, print_table, write_json

from nvg.errors import NvgError
from nvg.hub import resolve_model
from nvg.model.config import read_config
from nvg.runtime.cores import default_threads


def positions(length: int, every: int) -> list[int]:
    """Which tokens are measured: the first, each `every`-th, and the last of `length` (from 1)."""
    return sorted({1, *range(every, length + 1, every), length})


def measure(engine: Nvg, token_ids: list[int], at: list[int], repetitions: int) -> dict[str, list[float]]:
    """Median seconds of the forward pass that gives the logits at each position of `at`, with the cache and without.

    Raises RuntimeError if the two ways differ in any bit of the logits.
    """
    seconds: dict[str, list[float]] = {"cached_s": [], "recomputed_s": []}
    engine.prefill([token_ids[:1]])  # warm up
    for position in at:
        cached, cached_logits = _timed(
            engine, token_ids[: position - 1], token_ids[position - 1 : position], repetitions
        )
        recomputed, recomputed_logits = _timed(engine, [], token_ids[:position], repetitions)
        if not np.array_equal(cached_logits, recomputed_logits):
            raise RuntimeError(f"position {position}: cached and recomputed logits differ")
        seconds["cached_s"].append(cached)
        seconds["recomputed_s"].append(recomputed)
    return seconds


def _timed(
    engine: Nvg, before: list[int], token_ids: list[int], repetitions: int
) -> tuple[float, np.ndarray[Any, Any]]:
    """Median seconds of computing `token_ids` after `before`, and their logits."""
    times = []
    for _ in range(repetitions):
        engine.reset()
        if before:
            engine.feed([before])
        start = time.perf_counter()
        engine.feed([token_ids])
        times.append(time.perf_counter() - start)
    return statistics.median(times), engine.logits()


def total(at: list[int], seconds: list[float]) -> float:
    """Seconds for all tokens up to the last position, by the trapezoidal rule between those measured."""
    pairs = zip(zip(at, seconds, strict=True), zip(at[1:], seconds[1:], strict=True), strict=False)
    return seconds[0] + sum((q - p) * (s + t) / 2 for (p, s), (q, t) in pairs)


def draw_plot(path: Path, title: str, at: list[int], seconds: dict[str, list[float]]) -> None:
    """Write both curves as an image. Raises ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.2, 4.2), layout="constrained")
    curves = (
        ("recomputed_s", "no cache: every token recomputes all before it", "#c0392b"),
        ("cached_s", "KV cache: one token's pass", "#1f6fb2"),
    )
    for name, label, colour in curves:
        milliseconds = [1000 * value for value in seconds[name]]
        axes.plot(at, milliseconds, "o-", color=colour, label=label, markersize=3.5, linewidth=1.6)
        whole = f"about {total(at, seconds[name]):.2g} s for all {at[-1]}"
        axes.annotate(
            whole, (at[-1], milliseconds[-1]), (-4, 8), textcoords="offset points", ha="right", color=colour, fontsize=9
        )
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel("position of the token in the sequence (tokens)")
    axes.set_ylabel("time per token (ms)")
    axes.set_xlim(0, at[-1] * 1.02)
    axes.set_ylim(0, 1150 * max(max(values) for values in seconds.values()))  # ms, with room for the labels
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", frameon=False, fontsize=9)
    figure.savefig(path, dpi=160)
    pyplot.close(figure)


def run(args: argparse.Namespace, directory: Path, name: str, scratch: Path) -> int:
    config = read_config(directory)
    length = args.length or config.n_positions
    if length > config.n_positions:
        print(f"error: --length is {length}; the model's context holds {config.n_positions}", file=sys.stderr)
        return 2
    machine = facts()
    print_facts(machine)
    rng = random.Random(1)
    token_ids = [rng.randrange(config.vocab_size) for _ in range(length)]
    at = positions(length, args.every)
    engine = Nvg(Setup(directory, scratch, "float32", args.threads, context=length, batch=1))
    seconds = measure(engine, token_ids, at, args.repetitions)
    print(f"{name}, {args.threads} threads; milliseconds per token, median of {args.repetitions}")
    print("logits are equal in every bit, with the cache and without\n")
    rows = [["position", "KV cache", "no cache", "ratio"]]
    for position, cached, recomputed in zip(at, seconds["cached_s"], seconds["recomputed_s"], strict=True):
        rows.append([str(position), f"{1000 * cached:.2f}", f"{1000 * recomputed:.2f}", f"{recomputed / cached:.1f}"])
    totals = {key.replace("_s", "_total_s"): total(at, values) for key, values in seconds.items()}
    whole = [f"{value:.2f} s" for value in totals.values()]
    rows.append([f"all {length}", *whole, f"{totals['recomputed_total_s'] / totals['cached_total_s']:.1f}"])
    print_table(rows)
    settings = {"model": name, "threads": args.threads, "repetitions": args.repetitions}
    write_json(args.json, {"machine": machine, "settings": settings, "positions": at, **seconds, **totals})
    try:
        draw_plot(args.plot, f"{name}, float32, {args.threads} threads, {machine['processor']}", at, seconds)
    except ImportError as error:
        print(f"no plot: {error}; `pip install matplotlib`", file=sys.stderr)
    else:
        print(f"\nwritten: {args.plot}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    model = parser.add_mutually_exclusive_group()
    model.add_argument(
        "--model",
        type=known_model,
        default="tales",
        help="a built-in model or a GPT-2 directory (default: %(default)s)",
    )
    model.add_argument("--dummy", choices=SIZES, help="random weights of this size")
    parser.add_argument("--threads", type=int, default=default_threads(), help="default: %(default)s")
    parser.add_argument("--length", type=int, help="last position (default: the model's context)")
    parser.add_argument("--every", type=int, default=32, help="positions between measurements (default: %(default)s)")
    parser.add_argument("--repetitions", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--plot", type=Path, default=Path("kv_cache.png"), help="image file (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep and reuse the dummy model in this directory")
    args = parser.parse_args()
    for name in ("threads", "length", "every", "repetitions"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} is {getattr(args, name)}; it must be at least 1")
    with tempfile.TemporaryDirectory(prefix="nvg-benchmark-") as temporary:
        scratch = Path(temporary)
        if args.dummy:
            directory = write_checkpoint((args.keep or scratch) / args.dummy, args.dummy)
            return run(args, directory, f"random {args.dummy}", scratch)
        return run(args, resolve_model(args.model), args.model, scratch)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except NvgError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
