"""`nvg plugins`: list, check, new"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nvg.cli import plugin_commands, say
from nvg.cli.interrupt import interruptible
from nvg.cli.options import output_format
from nvg.cli.table import print_table

if TYPE_CHECKING:
    from nvg.testing.results import Result

CHECK_LIMIT_S = 60.0
"""A check that takes longer has failed."""


@click.group(invoke_without_command=True)
@click.pass_context
def plugins(context: click.Context) -> None:
    """List what is registered, check a sampler or tokenizer against its contract, or write a new plugin."""
    if context.invoked_subcommand is None:
        context.invoke(list_plugins)


@plugins.command("list")
def list_plugins() -> None:
    """List what is registered, of which kind, by which distribution, and what is broken."""
    from nvg.plugins import registry

    names = registry()
    rows = [
        (entry.origin, entry.kind, entry.name, entry.location)
        for kind in (names.samplers, names.tokenizers, names.models)
        for entry in kind.entries()
    ]
    rows += [
        (f"{point.dist.name} {point.dist.version}" if point.dist else "?", "command", name, point.value)
        for name, point in plugin_commands().items()
    ]
    print_table([("FROM", "KIND", "NAME", "WHERE"), *sorted(rows)])
    for line in names.warnings():
        say(f"warning: {line}")


@plugins.command()
@click.argument("kind", type=click.Choice(["sampler", "tokenizer"]))
@click.argument("name")
@click.option("--directory", type=click.Path(path_type=Path), help="Where to.  [default: nvg-NAME]")
def new(kind: Any, name: str, directory: Path | None) -> None:
    """Write a plugin package that works: a sampler or tokenizer called NAME, its test, README and pyproject.toml."""
    from nvg.scaffold import write_plugin

    written = write_plugin(kind, name, directory)
    for path in written:
        click.echo(path)
    root = next(path.parent for path in written if path.name == "pyproject.toml")
    say(f'next: pip install -e "{root}[test]" && pytest {root}, then nvg plugins check {name}')


@plugins.command()
@click.argument("name")
@click.option("-o", "options", metavar="NAME=VALUE", multiple=True, help="An option of the sampler; repeatable.")
@click.option("--max-us", type=float, metavar="US", help="Fail a sampler that takes longer for 50,257 candidates.")
@click.option("--kind", type=click.Choice(["sampler", "tokenizer"]), help="Which, where both have the name.")
@click.option("-m", "--model", help="The model whose files a tokenizer reads.  [default: the built-in one]")
@click.option("--lossy", is_flag=True, help="The tokenizer changes text on purpose: decoding need not give it back.")
@output_format
def check(
    name: str,
    options: tuple[str, ...],
    max_us: float | None,
    kind: str | None,
    model: str | None,
    lossy: bool,
    output_format: str,
) -> None:
    """Check that the sampler or tokenizer NAME (or FILE.py:NAME) keeps its contract; exit 1 if it does not.

    NVG_DEBUG=1 shows the traceback of what it raises.
    """
    title, names, running = interruptible(lambda: _check(name, options, max_us, kind, model, lossy))
    marks = {"passed": "ok", "failed": "FAILED", "skipped": "-"}
    width = max(map(len, names))
    results: list[Result] = []

    def print_row(*cells: str) -> None:
        check, mark, detail = cells
        print_table([(check.ljust(width), mark.ljust(len("FAILED")), detail)], prose=2)

    while (result := interruptible(lambda: next(running, None))) is not None:
        if output_format == "text" and not results:
            print_row("CHECK", "", "WHAT WAS SEEN")
        results.append(result)
        if output_format == "text":
            print_row(result.check, marks[result.status], result.detail)
            sys.stdout.flush()
    failed = [result for result in results if result.status == "failed"]
    if output_format == "json":
        click.echo(json.dumps({"name": name, "passed": not failed, "checks": [asdict(result) for result in results]}))
    if failed:
        say(f"error: {title} breaks its contract: {', '.join(result.check for result in failed)} failed")
        click.get_current_context().exit(1)


def _check(
    name: str, options: tuple[str, ...], max_us: float | None, kind: str | None, model: str | None, lossy: bool
) -> tuple[str, Collection[str], Iterator[Result]]:
    """The title of what is checked, the names of its checks, and their results as they come."""
    from nvg import hub
    from nvg.errors import ParameterError
    from nvg.params import EngineConfig
    from nvg.plugins import registry, sampler_entry, unknown_name
    from nvg.sampling.options import parse_option
    from nvg.testing.results import run_checks
    from nvg.testing.samplers import SAMPLER_CHECKS, subject_of
    from nvg.testing.tokenizers import TOKENIZER_CHECKS, TokenizerSubject

    names = registry()
    if kind is None and name in names.samplers and name in names.tokenizers:
        raise ParameterError(f"{name!r} is a sampler and a tokenizer: say which with --kind")
    if kind == "tokenizer" or (kind is None and name in names.tokenizers):
        directory = hub.resolve_model(model or EngineConfig.model)
        title, tokenizer = names.tokenizers[name].title, TokenizerSubject(name, directory, not lossy)
        return title, TOKENIZER_CHECKS, run_checks(TOKENIZER_CHECKS, tokenizer, CHECK_LIMIT_S)
    if kind is None and name not in names.samplers and ".py" not in name:
        raise unknown_name("sampler or tokenizer", name, {*names.samplers, *names.tokenizers})
    entry = sampler_entry(name)
    values = {}
    for text in options:
        option, equals, value = text.partition("=")
        if not equals:
            raise ParameterError(f"option {text!r} is not NAME=VALUE")
        values[option.strip()] = parse_option(entry.name, entry.load(), option.strip(), value)
    sampler = subject_of(name, options=values, max_us=max_us)
    return entry.title, SAMPLER_CHECKS, run_checks(SAMPLER_CHECKS, sampler, CHECK_LIMIT_S)
