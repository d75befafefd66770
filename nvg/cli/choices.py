"""The choices of `nvg generate` as their pieces come, and how they are written: text, json or jsonl."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import click

from nvg.cli import say
from nvg.params import Explanation, Piece, TokenLogprobs

# What would command a terminal rather than show on it.
_CONTROLS = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


@dataclass
class Choice:
    """One of the continuations, as far as it has come."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    explanations: list[Explanation] = field(default_factory=list)
    finish_reason: str | None = None
    error: str | None = None

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        self.token_ids += piece.token_ids
        self.logprobs += piece.logprobs or ()
        self.explanations += piece.explanations or ()
        self.finish_reason, self.error = piece.finish_reason, piece.error

    def record(self, prefix: str, with_logprobs: bool) -> dict[str, Any]:
        """The choice for JSON; its text begins with `prefix`."""
        record: dict[str, Any] = {
            "text": prefix + self.text,
            "token_ids": self.token_ids,
            "finish_reason": self.finish_reason or "aborted",
        }
        if self.error:
            record["error"] = self.error
        if with_logprobs:
            record["logprobs"] = [asdict(one) for one in self.logprobs]
        return record


class Writer(Protocol):
    """Writes choices to stdout while they grow."""

    def update(self, choice: Choice) -> None:
        """`choice` has grown, or is finished."""

    def finish(self) -> None:
        """Nothing more comes; choices without a finish_reason were interrupted."""


class TextWriter:
    """Streams the first choice as it comes, then the others, each from a line of its own."""

    def __init__(self, choices: Sequence[Choice], prefix: str) -> None:
        self._choices = choices
        self._prefix = prefix
        self._is_terminal = sys.stdout.isatty()
        self._current = 0
        self._begin()

    def update(self, choice: Choice) -> None:
        while choice.index == self._current:
            self._write_new()
            if choice.finish_reason is None:
                return
            self._next()
            if self._current == len(self._choices):
                return
            choice = self._choices[self._current]

    def finish(self) -> None:
        while self._current < len(self._choices):
            self._write_new()
            self._next()

    def _next(self) -> None:
        self._write("\n")
        self._current += 1
        if self._current < len(self._choices):
            self._begin()

    def _begin(self) -> None:
        self._written = 0
        if len(self._choices) > 1:
            say(f"choice {self._current + 1} of {len(self._choices)}:")
        self._write(self._prefix)

    def _write_new(self) -> None:
        text, first = self._choices[self._current].text, self._written
        self._written = len(text)  # first, so that Ctrl-C during the writing can't lead to the same text twice
        self._write(text[first:])

    def _write(self, text: str) -> None:
        if text:
            sys.stdout.write(text.translate(_CONTROLS) if self._is_terminal else text)
            sys.stdout.flush()


class JsonLinesWriter:
    """Writes each choice when it ends, as an object on a line."""

    def __init__(self, choices: Sequence[Choice], prefix: str, header: dict[str, Any], with_logprobs: bool) -> None:
        self._choices = choices
        self._prefix = prefix
        self._header = header
        self._with_logprobs = with_logprobs

    def update(self, choice: Choice) -> None:
        if choice.finish_reason:
            self._write(choice)

    def finish(self) -> None:
        for choice in self._choices:
            if not choice.finish_reason:
                self._write(choice)

    def _write(self, choice: Choice) -> None:
        record = choice.record(self._prefix, self._with_logprobs)
        print(json.dumps({"index": choice.index, **self._header, **record}), flush=True)


def print_logprobs(tokenizer: Any, choices: Sequence[Choice]) -> None:
    """A line for each token on stderr: its log-probability and the likeliest tokens."""

    def shown(token_id: int) -> str:
        return repr(tokenizer.decode([token_id]))

    for choice in choices:
        number = f"{choice.index + 1}: " if len(choices) > 1 else ""
        for one in choice.logprobs:
            top = "  ".join(f"{shown(i)} {value:.3f}" for i, value in one.top.items())
            click.echo(f"{number}{one.logprob:9.4f} {shown(one.token_id):<16} {top}".rstrip(), err=True)
