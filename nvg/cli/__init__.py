"""The command line. `nvg --help` imports neither numba nor numpy nor plugins: a command's module is imported when it
runs, and those of plugins (entry points of group "nvg.commands") are listed from metadata."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from typing import Any

import click

from nvg._version import __version__
from nvg.errors import NvgError

INTERRUPTED = 130
COMMANDS = {
    "generate": "Continue a prompt.",
    "tokenize": "Show how a text splits into tokens.",
    "samplers": "List the samplers, or show one with its options.",
    "tokenizers": "List the tokenizers.",
    "plugins": "List the plugins and what they add.",
    "warmup": "Compile all kernels ahead of the first run.",
    "env": "Show this machine, the versions and the caches.",
    "completion": "Print the shell's completion script.",
}
"""Built-in commands, each the function of its name in the module of its name, and their one-line help."""


class _Commands(click.Group):
    """Commands that are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *sorted(_plugin_commands())]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in COMMANDS:
            command: click.Command = getattr(importlib.import_module(f"nvg.cli.{name}"), name)
            return command
        point = _plugin_commands().get(name)
        if point is None:
            return None
        try:
            loaded = point.load()
        except Exception as error:
            raise NvgError(f"the command {name!r} of {_origin(point)} could not be loaded: {error}") from error
        if not isinstance(loaded, click.Command):
            raise NvgError(f"the command {name!r} of {_origin(point)} is no click command but {loaded!r}")
        return loaded

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(self.list_commands(ctx))}"
            raise click.UsageError(f"no command {args[0]!r}{hint}", ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = list(COMMANDS.items())
        rows += [(name, f"(from {_origin(point)})") for name, point in sorted(_plugin_commands().items())]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _plugin_commands() -> dict[str, Any]:
    """Entry points of commands that plugins add; a built-in name is never replaced."""
    from nvg.plugins import COMMANDS_GROUP, LOAD_VARIABLE, plugin_entry_points

    points = plugin_entry_points(COMMANDS_GROUP, os.environ.get(LOAD_VARIABLE))
    return {point.name: point for point in points if point.name not in COMMANDS}


def _origin(point: Any) -> str:
    return point.dist.name if point.dist else point.value


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version", message="nvg %(version)s")
def cli() -> None:
    """Generate text with GPT-2 on the CPU.

    Text goes to stdout, everything else to stderr. NVG_DEBUG=1 shows tracebacks. Exit codes: 0 ok, 1 error, 2 usage,
    4 model not found or invalid, 130 interrupted.
    """


def say(line: str) -> None:
    """A line for the user, on stderr."""
    click.echo(f"nvg: {line}", err=True)


def main() -> None:
    """The console script."""
    warnings.showwarning = _show_warning
    try:
        code = cli.main(prog_name="nvg", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has what it wanted (nvg generate | head -c 10)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except (KeyboardInterrupt, click.Abort):
        code = INTERRUPTED
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.ClickException as error:
        _print_error(error.format_message(), error)
        code = error.exit_code
    except NvgError as error:
        _print_error(str(error), error)
        code = error.exit_code
    except Exception as error:
        _print_error(f"{type(error).__name__}: {error} (NVG_DEBUG=1 shows where)", error)
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _print_error(message: str, error: BaseException) -> None:
    if os.environ.get("NVG_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    else:
        click.echo(f"nvg: error: {message}", err=True)


def _show_warning(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
    say(f"warning: {str(message).removeprefix('nvg: ')}")
