"""The command line. `nvg --help` imports neither numba nor numpy nor plugins: a command's module is imported when it
runs, and those of plugins (entry points of group "nvg.commands") are listed from metadata."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import click

from nvg._version import __version__
from nvg.cli.stdout import command_output, own_descriptor
from nvg.errors import NvgError, cause

INTERRUPTED = 130
COMMANDS = {
    "generate": "Continue a prompt.",
    "tokenize": "Show how a text splits into tokens.",
    "samplers": "List the samplers, or show one with its options.",
    "presets": "List, show, save and remove chains with a name.",
    "tokenizers": "List the tokenizers.",
    "plugins": "List the plugins and what they add.",
    "warmup": "Compile all kernels ahead of the first run.",
    "env": "Show this machine, the versions and the caches.",
    "completion": "Print the shell's completion script.",
    "bench": "Measure speed, beside what the machine can do.",
    "perplexity": "Measure how well a model predicts a text.",
    "models": "List the models, check one, or remove what is kept of them.",
    "explain": "Make an HTML page of how a text was drawn.",
}
"""Built-in commands, each the function of its name in the module of its name, and their one-line help."""

_COMPLETE_VARIABLE = "_NVG_COMPLETE"


class _Commands(click.Group):
    """Commands that are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *sorted(plugin_commands())]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in COMMANDS:
            command: click.Command = getattr(importlib.import_module(f"nvg.cli.{name}"), name)
            return command
        point = plugin_commands().get(name)
        if point is None:
            return None
        try:
            loaded = point.load()
        except (Exception, SystemExit) as error:
            raise NvgError(f"the command {name!r} of {_origin(point)} could not be loaded: {cause(error)}") from error
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
        rows += [(name, f"(from {_origin(point)})") for name, point in sorted(plugin_commands().items())]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def plugin_commands() -> dict[str, Any]:
    """Entry points of commands that plugins add; a built-in name is never replaced."""
    if not _may_have_plugin_commands():
        return {}
    from nvg.plugins import COMMANDS_GROUP, LOAD_VARIABLE, plugin_entry_points

    points = plugin_entry_points(COMMANDS_GROUP, os.environ.get(LOAD_VARIABLE))
    return {point.name: point for point in points if point.name not in COMMANDS}


def _may_have_plugin_commands() -> bool:
    """Whether any installed distribution names commands: a look at the files, because importing importlib.metadata
    takes half as long as all the rest of `nvg --help`."""
    for directory in sys.path:
        try:
            with os.scandir(directory or ".") as entries:
                names = [entry.name for entry in entries if entry.name.endswith((".dist-info", ".egg-info"))]
        except NotADirectoryError:
            return True  # an archive: only importlib.metadata can look into it
        except OSError:
            continue
        for name in names:
            try:
                with open(os.path.join(directory, name, "entry_points.txt"), "rb") as file:
                    if b"[nvg.commands]" in file.read():
                        return True
            except OSError:
                continue
    return False


def _origin(point: Any) -> str:
    return str(point.dist.name if point.dist else point.value)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version", message="nvg %(version)s")
def cli() -> None:
    """Generate text with GPT-2 on the CPU.

    \b
    nvg generate "Once upon a time"
    nvg COMMAND --help

    Text goes to stdout, everything else to stderr. NVG_DEBUG=1 shows tracebacks. Exit codes: 0 ok, 1 error, 2 usage,
    4 model not found or invalid, 130 interrupted.
    """


def say(line: str) -> None:
    """A line for the user, on stderr."""
    with contextlib.suppress(OSError):  # nobody listens
        click.echo(f"nvg: {line}", err=True)


def main() -> None:
    """The console script."""
    if sys.argv[1:] and sys.argv[1] in COMMANDS:  # a plugin's command may let another program write its output
        own_descriptor()
    code = run(sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is said and done
    if "nvg.cli.interrupt" in sys.modules:
        from nvg.cli.interrupt import is_working

        if is_working():  # compiled code of an interrupted run, which can be neither stopped nor waited for
            os._exit(code)
    gc.freeze()  # what is left dies with the process; to look through it first takes 0.2 s
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run a command line; returns the exit code, and has told the user about any error."""
    if sys.stderr is None:  # closed
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (for as long as the process lives)
    if sys.stdout is None:
        say("error: stdout is closed; redirect it to a file or to /dev/null")
        return 1
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a model can produce what the terminal's encoding can't show
    with warnings.catch_warnings(), command_output():
        warnings.showwarning = _show_warning
        try:
            code = _invoke(arguments)
            sys.stdout.flush()
        except BrokenPipeError:  # the reader has what it wanted (nvg generate | head -c 10)
            _discard_stdout()
            code = 0
        except (KeyboardInterrupt, click.Abort):
            say("interrupted")
            code = INTERRUPTED
        except Exception as error:
            code = _report(error)
    return code


def _invoke(arguments: Sequence[str]) -> int:
    """What click's own `main` does, which would end with code 1 at a broken pipe."""
    try:
        if _COMPLETE_VARIABLE in os.environ:
            cli.main([], prog_name="nvg", complete_var=_COMPLETE_VARIABLE)
        with cli.make_context("nvg", list(arguments) or ["--help"]) as context:
            cli.invoke(context)
    except click.exceptions.Exit as error:
        return error.exit_code
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 0


def _report(error: Exception) -> int:
    """Tell the user about an error in one line, or with a traceback if NVG_DEBUG is 1; returns the exit code."""
    code = error.exit_code if isinstance(error, (NvgError, click.ClickException)) else 1
    if _is_full(error):
        _discard_stdout()
    if os.environ.get("NVG_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    else:
        say(f"error: {' '.join(line.strip() for line in _message(error).splitlines())}")
    return code


def _message(error: Exception) -> str:
    if isinstance(error, click.UsageError):
        message = error.format_message().rstrip(".")
        return f"{message} (see {error.ctx.command_path} --help)" if error.ctx else message
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, NvgError):
        return str(error)
    if _is_full(error):
        return f"stdout can't be written: {error.strerror}"  # type: ignore[attr-defined]
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename!r}: {error.strerror}"
    if isinstance(error, MemoryError):
        return f"there is not enough memory{f': {error}' if str(error) else ''}"
    return f"{cause(error)} (NVG_DEBUG=1 shows where)"


def _is_full(error: Exception) -> bool:
    """Whether this is a write to stdout that failed: a full disk, a device that is gone."""
    import errno

    failures = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
    return isinstance(error, OSError) and error.filename is None and error.errno in failures


def _discard_stdout() -> None:
    """Let what is still buffered for stdout go nowhere, or Python would fail on it at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _show_warning(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
    say(f"warning: {str(message).removeprefix('nvg: ')}")
