"""Plain tables on stdout."""

from __future__ import annotations

from collections.abc import Sequence

import click


def print_table(rows: Sequence[Sequence[str]], indent: int = 0) -> None:
    """Rows of equally many cells, in columns two spaces apart."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo(" " * indent + line.rstrip())


def first_sentence(docstring: str | None) -> str:
    """A docstring's first sentence, on one line."""
    text = " ".join((docstring or "").strip().split("\n\n")[0].split())
    return text.split(". ")[0].rstrip(".")
