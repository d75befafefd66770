"""Plain tables on stdout."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Sequence

import click

_MIN_WIDTH = 20
_LONG_WORD = 32  # longer ones, such as addresses, are broken
# A full stop ends a sentence before a capital or at the end, but not in "Holtzman et al. 2019" or "0 .. 255".
_SENTENCE_END = re.compile(r"(?<!\bet al)(?<!\be\.g)(?<!\bi\.e)(?<![ .])\.(?:\s+(?=[A-Z`'\"(])|$)")


def print_table(rows: Sequence[Sequence[str]], indent: int = 0, prose: int | None = None) -> None:
    """Rows of equally many cells, in columns two spaces apart.

    `prose` is the column that is wrapped first where stdout is a terminal too narrow for all, before the widest others.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if prose is not None and sys.stdout.isatty():
        excess = indent + sum(widths) + 2 * (len(widths) - 1) - shutil.get_terminal_size().columns
        longest = [
            max((len(word) for cell in column for word in cell.split()), default=0)
            for column in zip(*rows, strict=True)
        ]
        whole_words = [max(_MIN_WIDTH, min(length, _LONG_WORD)) for length in longest]
        for least in (whole_words, [_MIN_WIDTH] * len(widths)):
            for column in (prose, *sorted(range(len(widths)), key=widths.__getitem__, reverse=True)):
                cut = max(0, min(excess, widths[column] - least[column]))
                widths[column] -= cut
                excess -= cut
    for row in rows:
        lines = [
            textwrap.wrap(cell, width, break_on_hyphens=False) if len(cell) > width else [cell]
            for cell, width in zip(row, widths, strict=True)
        ]
        for number in range(max(map(len, lines))):
            cells = (line[number] if number < len(line) else "" for line in lines)
            text = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
            click.echo(f"{' ' * indent}{text}".rstrip())


def first_sentence(text: str) -> str:
    """The first sentence of a paragraph, without its full stop, on one line."""
    return _SENTENCE_END.split(" ".join(text.split()), maxsplit=1)[0]
