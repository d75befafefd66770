"""Whole-process times: the command line beside a bare import of what it can't do without, and a first run's compiling.

    python benchmarks/startup.py

Each pair takes turns after one untimed run of both, so files and compiled kernels are cached; only `nvg warmup` is
timed cold, with an empty cache directory each time.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from report import Spread, facts, print_facts, print_table, write_json

# What `pip` installs; else, for a checkout that only lies on the path, the module.
_SCRIPT = Path(sysconfig.get_path("scripts")) / ("nvg.exe" if os.name == "nt" else "nvg")
NVG = [str(_SCRIPT)] if _SCRIPT.exists() else [sys.executable, "-m", "nvg"]
PYTHON = [sys.executable, "-c"]


@dataclass(frozen=True)
class Pair:
    """A command, the command that it is held against, and the ratio that it should stay under."""

    command: list[str]
    baseline: list[str]
    target: float


PAIRS = (
    Pair([*NVG, "generate", "Once upon a time", "-m", "tales", "--max-tokens", "1"], [*PYTHON, "import numba"], 3.0),
    Pair([*NVG, "--help"], [*PYTHON, "import click"], 2.5),
)
COLD_TARGET_S = 20.0


def wall_time(command: list[str], **environment: str) -> float:
    """Seconds from start to end of a process. Raises CalledProcessError if it fails."""
    start = time.perf_counter()
    subprocess.run(
        command,
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )
    return time.perf_counter() - start


def shown(command: list[str]) -> str:
    """The command as one would type it."""
    words = [Path(command[0]).name, *(f'"{word}"' if " " in word else word for word in command[1:])]
    return " ".join(words)


def measure_pair(pair: Pair, repetitions: int) -> dict[str, Any]:
    """Times of both commands and their ratios."""
    times: dict[str, list[float]] = {"command": [], "baseline": []}
    for repetition in range(repetitions + 1):
        for name, seconds in times.items():
            elapsed = wall_time(getattr(pair, name))
            if repetition:  # the first one warms up
                seconds.append(elapsed)
    return {
        "command": shown(pair.command),
        "baseline": shown(pair.baseline),
        "command_s": times["command"],
        "baseline_s": times["baseline"],
        "ratio": vars(Spread.of_ratios(times["command"], times["baseline"])),
        "target": pair.target,
    }


def measure_cold(repetitions: int) -> dict[str, Any]:
    """Times of `nvg warmup` with nothing compiled."""
    seconds = []
    for _ in range(repetitions):
        with tempfile.TemporaryDirectory(prefix="nvg-benchmark-") as directory:
            seconds.append(wall_time([*NVG, "warmup"], NVG_CACHE_DIR=directory))
    return {"command": shown([*NVG, "warmup"]), "command_s": seconds, "target_s": COLD_TARGET_S}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repetitions", type=int, default=9, help="of each pair (default: %(default)s)")
    parser.add_argument(
        "--cold-repetitions", type=int, default=2, help="of nvg warmup; 0 skips it (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    args = parser.parse_args()
    if args.repetitions < 1 or args.cold_repetitions < 0:
        parser.error("--repetitions must be at least 1, --cold-repetitions at least 0")
    machine = facts()
    print_facts(machine)
    pairs = [measure_pair(pair, args.repetitions) for pair in PAIRS]
    cold = measure_cold(args.cold_repetitions) if args.cold_repetitions else None
    print(
        f"seconds, whole process; median (least-greatest) of {args.repetitions} runs, files cached, kernels compiled\n"
    )
    rows = [["command", "seconds", "beside", "seconds", "ratio", "at most"]]
    for pair in pairs:
        row = [pair["command"], Spread.of(pair["command_s"]).text(3), pair["baseline"]]
        row += [Spread.of(pair["baseline_s"]).text(3), Spread(**pair["ratio"]).text(2), f"{pair['target']:.1f}"]
        rows.append(row)
    if cold is not None:
        cold_s, target = Spread.of(cold["command_s"]).text(1), f"about {COLD_TARGET_S:.0f} s"
        rows.append([f"{cold['command']} (nothing compiled)", cold_s, "", "", "", target])
    print_table(rows)
    write_json(args.json, {"machine": machine, "pairs": pairs, "cold": cold})


if __name__ == "__main__":
    main()
