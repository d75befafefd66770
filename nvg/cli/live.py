"""What the chain does to each token, on stderr while the text is made."""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata
from collections.abc import Sequence
from typing import Any

import click

from nvg.params import Distribution, Explanation, Piece

_COLUMNS = {"left": 8, "removed": 10, "entropy/nats": 14, "rank": 7, "prob": 10}
_NARROW = {"left": 7, "removed": 9, "nats": 6, "rank": 6, "prob": 8}
_DROPPED = ("rank", "nats", "left", "removed")
"""In this order, where even the narrow ones don't fit."""
_HEADS_EVERY = 8
_BAR = " ▏▎▍▌▋▊▉█"
_NUM_OTHERS = 5
_MOST_NAME = 16
_LEAST_BAR, _MOST_BAR = 4, 30
_NO_TERMINAL_WIDTH = 120


class LiveView:
    """A block for each token: a line for the model and for each stage, and what else might have come.

    Colours and bars only where stderr is a terminal; colours unless NO_COLOR is set or TERM is "dumb".
    """

    def __init__(self, tokenizer: Any, stages: Sequence[str], num_choices: int) -> None:
        self._tokenizer = tokenizer
        self._num_choices = num_choices
        self._num_tokens = [0] * num_choices
        self._num_shown = 0
        self._stages = [_clipped(_shown(stage)) for stage in stages]
        self._names = max(map(_width, ["model", *self._stages]))
        self._is_terminal = sys.stderr.isatty()
        self._has_colours = self._is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._has_blocks = self._is_terminal and _can_encode(_BAR)

    @property
    def shares_terminal(self) -> bool:
        """Whether stdout's text would come between the lines."""
        return self._is_terminal and sys.stdout.isatty()

    def add(self, piece: Piece) -> None:
        """Show the tokens of a piece."""
        for explanation in piece.explanations or ():
            self._num_tokens[piece.index] += 1
            choice = f"choice {piece.index + 1}, " if self._num_choices > 1 else ""
            self._token(explanation, f"{choice}token {self._num_tokens[piece.index]}")

    def _token(self, explanation: Explanation, number: str) -> None:
        token = self._style(self._text(explanation.token_id), bold=True, fg="yellow")
        lines = [f"{token} {self._style(number, dim=True)}", self._line("model", explanation.model, None)]
        if self._num_shown % _HEADS_EVERY == 0:
            heads = "".join(f"{name:>{width}}" for name, width in self._columns().items())
            lines.insert(0, self._style(f"{' ' * (self._names + 2)}{heads}", dim=True))
        self._num_shown += 1
        lines += [
            self._line(name, stage.after, stage.removed)
            for name, stage in zip(self._stages, explanation.stages, strict=True)
        ]
        others = self._others(explanation)
        if others:
            lines.append(others)
        click.echo("\n".join([*lines, ""]), err=True, color=self._has_colours)

    def _line(self, name: str, after: Distribution, removed: float | None) -> str:
        entropy = f"{after.entropy:.2f}"
        cells = {
            "left": str(after.num_candidates),
            "removed": f"-{percent(removed)}" if removed else "",
            "entropy/nats": entropy,
            "nats": entropy,
            "rank": str(after.rank),
            "prob": percent(after.prob),
        }
        columns = self._columns()
        texts = {head: f"{cells[head]:>{width}}" for head, width in columns.items()}
        if removed and "removed" in texts:
            texts["removed"] = self._style(texts["removed"], fg="red")
        line = f"  {name}{' ' * (self._names - _width(name))}{''.join(texts.values())}"
        room = min(_columns() - self._names - sum(columns.values()) - 4, _MOST_BAR)
        if self._has_blocks and room >= _LEAST_BAR:
            line += "  " + self._style(_bar(after.prob, room), fg="cyan")
        return line

    def _columns(self) -> dict[str, int]:
        """The columns' heads and widths."""
        room = _columns() - 2 - self._names
        if sum(_COLUMNS.values()) <= room:
            return _COLUMNS
        columns = dict(_NARROW)
        for head in _DROPPED:
            if sum(columns.values()) > room:
                del columns[head]
        return columns

    def _others(self, explanation: Explanation) -> str:
        """The most probable candidates after the chain, as many as there is room for."""
        line = "  also:"
        for token_id, probs in explanation.candidates.items():
            prob = probs[-1]
            if token_id == explanation.token_id or prob is None:
                continue
            text = f"{self._text(token_id)} {percent(prob)}"
            if _width(line) + 2 + _width(text) > _columns() or line.count(" %") == _NUM_OTHERS:
                break
            line += f"  {text}"
        return self._style(line, dim=True) if line != "  also:" else ""

    def _text(self, token_id: int) -> str:
        return f'"{_shown(self._tokenizer.token_bytes(token_id).decode("utf-8", "backslashreplace"))}"'

    def _style(self, text: str, **style: Any) -> str:
        return click.style(text, **style) if self._has_colours else text


def percent(prob: float) -> str:
    """A probability with three digits, or with its power of ten."""
    value = 100 * prob
    if value == 0 or value >= 0.001:
        return f"{value:.{1 if value >= 9.95 else 2 if value >= 0.095 else 3}f} %"
    return f"{value:.0e} %"


def _columns() -> int:
    return shutil.get_terminal_size().columns if sys.stderr.isatty() else _NO_TERMINAL_WIDTH


def _bar(share: float, room: int) -> str:
    eighths = round(8 * room * share)
    return (_BAR[8] * (eighths // 8) + _BAR[eighths % 8]).rstrip()


def _shown(text: str) -> str:
    """Text without what would command a terminal, change its direction, or end its line."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _clipped(name: str) -> str:
    return name if len(name) <= _MOST_NAME else name[: _MOST_NAME - 1] + "…"


def _width(text: str) -> int:
    """Columns that a text takes."""
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + wide - sum(unicodedata.combining(char) > 0 for char in text)


def _can_encode(text: str) -> bool:
    try:
        text.encode(sys.stderr.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
