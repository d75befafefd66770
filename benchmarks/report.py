"""What every benchmark prints and writes: the machine it ran on, tables, and ratios with their spread."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Spread:
    """The median of repetitions with the least and the greatest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    @classmethod
    def of_ratios(cls, values: Sequence[float], others: Sequence[float]) -> Spread:
        """Of values[i] / others[i]: pairs measured side by side, so that the machine's drift cancels."""
        return cls.of([value / other for value, other in zip(values, others, strict=True)])

    def text(self, digits: int) -> str:
        """As `median (low-high)`."""
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}-{self.high:.{digits}f})"


def known_model(name: str) -> str:
    """An argument of the command line that must be a model's name or directory, as nvg resolves it."""
    from nvg.errors import NvgError
    from nvg.hub import resolve_model

    try:
        resolve_model(name)
    except NvgError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return name


def facts() -> dict[str, Any]:
    """Machine, versions, commit and load average, as JSON can hold them."""
    env = subprocess.run(
        [sys.executable, "-m", "nvg", "env", "--format", "json"], check=True, capture_output=True, text=True
    )
    machine = json.loads(env.stdout)
    machine["python"] = machine["python"].split(" ")[0]  # results are published: no paths of the machine
    del machine["compile cache"], machine["packed weights"]
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "processor": _processor(),
        "load average": [round(load, 2) for load in os.getloadavg()],
        **machine,
    }


def _commit() -> str:
    try:
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _processor() -> str:
    """The processor's name as the system gives it; "unknown" where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return "unknown"
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown")


def print_facts(facts: dict[str, Any]) -> None:
    """The header of a benchmark's output."""
    shown = ("date", "commit", "processor", "cpu", "cpu features", "cores", "platform", "python", "numba", "numpy")
    print_table([[name, str(facts[name])] for name in (*shown, "load average")])
    print()


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Rows of equally many cells, in columns two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip(), flush=True)


def write_json(path: Path | None, result: dict[str, Any]) -> None:
    """Write `result`, if a path was asked for."""
    if path is not None:
        path.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
        print(f"\nwritten: {path}")
