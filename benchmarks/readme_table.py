"""Writes the README's table of speeds from benchmarks/results/side_by_side.json, between its two markers.

    python benchmarks/readme_table.py

For each kind of work and precision: nvg's median tokens a second, what fraction that is of what reading or computing
allows, and its ratio to each peer's with the spread of the repetitions. A peer in several variants is given by the one
that was fastest at that work.
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any

from report import ROOT

README, RESULTS = ROOT / "README.md", ROOT / "benchmarks" / "results" / "side_by_side.json"
BEGIN, END = "<!-- speed:begin -->", "<!-- speed:end -->"


def cell(work: dict[str, Any], variants: list[str]) -> str:
    """nvg's ratio to the fastest of a peer's variants."""
    measured = [name for name in variants if name in work["nvg_is_x"] and name in work["tok_s"]]
    if not measured:
        return "-"
    fastest = max(measured, key=lambda name: statistics.median(work["tok_s"][name]))
    spread = work["nvg_is_x"][fastest]
    return f"{spread['median']:.2f} ({spread['low']:.2f}-{spread['high']:.2f})"


def table(result: dict[str, Any]) -> str:
    """The table in Markdown, with a line that says where and when it was measured."""
    peers = []
    for measured in result["precisions"].values():
        for engine in measured["engines"].values():
            if engine["peer"] != "nvg" and engine["peer"] not in peers and not engine["problem"]:
                peers.append(engine["peer"])
    lines = [
        "| work | precision | nvg tok/s | of the machine's | " + " | ".join(f"x {peer}" for peer in peers) + " |",
        "|---" * (4 + len(peers)) + "|",
    ]
    tasks = list(next(iter(result["precisions"].values()))["work"])
    for task in tasks:
        for precision, measured in result["precisions"].items():
            work = measured["work"][task]
            if "nvg" not in work["tok_s"]:
                continue
            cells = []
            for peer in peers:
                variants = [n for n, e in measured["engines"].items() if e["peer"] == peer and not e["problem"]]
                cells.append(cell(work, variants))
            median = statistics.median(work["tok_s"]["nvg"])
            limit = work["nvg_of_ceiling"]
            fraction = f"{limit['median']:.2f} of {limit['bound']}"
            lines.append(f"| {task} | {precision} | {median:.0f} | {fraction} | " + " | ".join(cells) + " |")
    machine, settings = result["machine"], result["settings"]
    where = (
        f"Measured on {machine['date'][:10]}, {machine['processor']} ({machine['cpu'].split(' ')[0]}), "
        f"{settings['threads']} threads, {settings['repetitions']} repetitions."
    )
    return "\n".join([*lines, "", where])


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0]).parse_args()
    text = README.read_text("utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    result = json.loads(RESULTS.read_text("utf-8"))
    README.write_text(f"{before}{BEGIN}\n{table(result)}\n{END}{after}", "utf-8")


if __name__ == "__main__":
    main()
