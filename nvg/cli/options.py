"""Options that several commands share, and what they are read from."""

from __future__ import annotations

import os
import stat
import sys
from typing import Any

import click

from nvg.errors import ParameterError
from nvg.params import EngineConfig


def _complete_samplers(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from nvg.plugins import registry

    return [name for name in registry().samplers.names() if name.startswith(incomplete)]


def _complete_tokenizers(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from nvg.plugins import registry

    return [name for name in registry().tokenizers.names() if name.startswith(incomplete)]


def _complete_models(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    from click.shell_completion import CompletionItem

    from nvg.hub import BUILT_IN

    names = [CompletionItem(name, help=text) for name, text in BUILT_IN.items() if name.startswith(incomplete)]
    return [*names, CompletionItem(incomplete, type="dir")]


model = click.option(
    "-m",
    "--model",
    default=EngineConfig.model,
    show_default=True,
    shell_complete=_complete_models,
    help="A built-in model's name, or the path of a Hugging Face GPT-2 directory.",
)
tokenizer = click.option(
    "--tokenizer",
    metavar="NAME",
    shell_complete=_complete_tokenizers,
    help="A tokenizer plugin, instead of the checkpoint's own.",
)
samplers = click.option(
    "--sampler",
    "samplers",
    metavar="NAME",
    multiple=True,
    shell_complete=_complete_samplers,
    help="A stage of the sampling chain, instead of the default chain; repeatable, in order. Also FILE.py:NAME.",
)


def piped_stdin() -> str | None:
    """All of stdin if something is piped or redirected into it, else None; one newline at its end is not text.

    Raises ParameterError for what is not UTF-8.
    """
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError, AttributeError):  # no stdin at all
        return None
    if not (stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)):
        return None
    data = sys.stdin.buffer.read()
    try:
        return data.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise ParameterError(
            f"stdin is not UTF-8: byte {data[error.start]:#04x} at {error.start}; convert it first (iconv -t UTF-8)"
        ) from None
