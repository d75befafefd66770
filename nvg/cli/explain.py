"""`nvg explain`"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from nvg.cli import options, say
from nvg.errors import ParameterError

SUFFIX = ".jsonl"
"""What a trace's name ends in."""
LIVE = ""
"""The value of --explain without a file."""
_FILE = re.compile(r"\S+\.\w{1,5}|\S*[/\\]\S*")  # what looks like a file's name rather than a prompt

_Command = TypeVar("_Command", bound=Callable[..., Any])
_OPTIONS = (
    click.option(
        "--explain",
        is_flag=False,
        flag_value=LIVE,
        multiple=True,
        metavar=f"[FILE{SUFFIX}]",
        help="Show on stderr what each stage of the chain does to each token, or write it to a file whose name ends in "
        f"{SUFFIX}, as JSON lines; give it twice for both.",
    ),
    click.option(
        "--branches",
        type=click.IntRange(0, 9),
        metavar="N",
        default=0,
        help="Write N alternatives to each token into --explain's file, and what would have followed.",
    ),
    click.option(
        "--branch-tokens",
        type=click.IntRange(0),
        metavar="N",
        default=8,
        show_default=True,
        help="How many tokens follow an alternative, each the most probable one.",
    ),
)


def generate_options(command: _Command) -> _Command:
    """What `nvg generate` takes."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def files_and_prompt(explain: tuple[str, ...], prompt: str | None) -> tuple[list[str], str | None]:
    """The files among --explain's values, and PROMPT, which is one of these where it follows a bare --explain.

    Raises click.UsageError for a value that is neither.
    """
    files = []
    for value in explain:
        if value.endswith(SUFFIX):
            files.append(value)
        elif value == LIVE:
            pass
        elif prompt is None and not _FILE.fullmatch(value):
            prompt = options.TEXT(value)
        else:
            hint = "; a prompt goes before --explain" if prompt is None else ""
            raise click.UsageError(f"--explain is {value!r}: the name of its file must end in {SUFFIX}{hint}")
    if len(files) > 1:
        raise click.UsageError(f"--explain has {len(files)} files; it writes one")
    return files, prompt


@click.command()
@click.argument("trace", type=click.Path())
@click.option("-o", "--output", type=click.Path(), metavar="FILE", help="The page; - is stdout.  [default: TRACE.html]")
def explain(trace: str, output: str | None) -> None:
    """Make an HTML page of a TRACE that nvg generate --explain FILE wrote.

    \b
    nvg generate "Once upon a time" --explain trace.jsonl --branches 3
    nvg explain trace.jsonl -o page.html

    The page is one file that needs nothing else: each token can be pointed at, clicked and reached by keys, and shows
    its candidates through all stages of the chain and the branches that the trace has.
    """
    from nvg.explain.page import make_page, may_replace
    from nvg.explain.reader import read_trace

    if output is None:
        output = os.path.splitext(trace)[0] + ".html"
    if output != "-" and os.path.exists(output) and os.path.exists(trace) and os.path.samefile(output, trace):
        raise ParameterError(f"--output is {output!r}, the trace itself: give another file")
    if output != "-" and not may_replace(output):
        raise ParameterError(f"--output is {output!r}, which exists and is no page of nvg explain: give another file")
    read = read_trace(trace, lambda line: say(f"warning: {line}"))
    page = make_page(read)
    if output == "-":
        sys.stdout.write(page)
        return
    try:
        with open(output, "w", encoding="utf-8") as file:
            file.write(page)
    except OSError as error:  # a full disk has no file's name in it
        raise OSError(error.errno, error.strerror, output) from error
    say(f"{sum(map(len, read.tokens.values()))} tokens in {output}")
