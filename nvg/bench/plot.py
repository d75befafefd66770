"""A benchmark's result as a picture."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from nvg.bench.measure import BenchResult
from nvg.errors import NvgError

_RATES = {"prefill_tok_s": "prefill", "decode_tok_s": "decode"}
_PARTS = {"of_peak_flops": "prefill,\nof peak operations", "of_read_bandwidth": "decode,\nof read bandwidth"}


def check_plot(path: Path) -> None:
    """Raise NvgError if no picture could be drawn there."""
    if importlib.util.find_spec("matplotlib") is None:
        raise NvgError('--plot needs matplotlib, which is not installed: pip install "nvg[bench]"')
    if path.suffix.lower() != ".png":
        raise NvgError(f"--plot is {str(path)!r}; it must be the name of a .png file")
    if not path.absolute().parent.is_dir():
        raise NvgError(f"--plot is {str(path)!r}; the directory {str(path.absolute().parent)!r} does not exist")


def write_plot(result: BenchResult, path: Path) -> None:
    """Draw every repetition's rates, and the fractions of the machine's ceilings, into a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    options = result.options
    figure.suptitle(
        f"{result.model}, {result.config.dtype}, {result.threads} threads, batch {options.batch}: "
        f"prompts of {options.prompt_tokens}, {options.new_tokens} steps after {options.context}"
    )
    axes: Any = figure.subplots(1, 3)
    for axis, (name, label) in zip(axes, _RATES.items(), strict=False):
        values = [getattr(repetition, name) for repetition in result.repetitions]
        spread = result.spread(name)
        assert spread is not None
        numbers = range(1, len(values) + 1)
        axis.bar(numbers, values, color="tab:blue")
        axis.axhline(spread.median, color="black", linewidth=1)
        axis.set(title=f"{label}: {spread.median:.1f} tok/s", xlabel="repetition", xticks=numbers)
    names = []
    for number, (name, label) in enumerate(_PARTS.items()):
        spread = result.spread(name)
        if spread is not None:
            around = [[spread.median - spread.low], [spread.high - spread.median]]
            axes[2].bar(number, spread.median, yerr=around, capsize=6, color="tab:blue")
            names.append(f"{label}\n{spread.median:.2f}")
    axes[2].axhline(1, color="black", linewidth=1)
    axes[2].set(title="of the machine's ceiling", xticks=range(len(names)), xticklabels=names)
    figure.savefig(path, dpi=120)
