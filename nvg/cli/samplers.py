"""`nvg samplers`"""

from __future__ import annotations

import inspect
import json
import re
import sys
from typing import Any

import click

from nvg.cli import options, say
from nvg.cli.table import first_sentence, print_table

# "(Holtzman et al. 2019, https://...)", which a terminal has no room for.
_SOURCE = re.compile(r"\s*\([^()]*(?:https?://|\.py\b|\b(?:19|20)\d\d\b)[^()]*\)")


@click.command()
@click.argument("name", required=False, shell_complete=options.complete_samplers)
@options.output_format
def samplers(name: str | None, output_format: str) -> None:
    """List the samplers with their options and where each comes from; or show NAME (or FILE.py:NAME) in full."""
    if output_format == "json":
        _print_json(name)
    elif name is None:
        _list()
    else:
        _show(name)


def _print_json(name: str | None) -> None:
    """An object for NAME, or an array of one for each sampler."""
    from nvg.errors import PluginError
    from nvg.plugins import registry, sampler_entry

    if name is not None:
        click.echo(json.dumps(_record(sampler_entry(name)), default=str))
        return
    records = []
    for entry in registry().samplers.entries():
        try:
            records.append(_record(entry))
        except PluginError as error:
            say(f"warning: {error}")
    for line in registry().warnings():
        say(f"warning: {line}")
    click.echo(json.dumps(records, default=str))


def _record(entry: Any) -> dict[str, Any]:
    from nvg.sampling.options import REQUIRED, options_of, summary

    spec_class = entry.load()
    listed = [
        {"name": option.name, "type": option.type_name, "required": option.default is REQUIRED, "help": option.help}
        | ({} if option.default is REQUIRED else {"default": option.default})
        for option in options_of(spec_class)
    ]
    return {
        "name": entry.name,
        "origin": entry.origin,
        "location": entry.location,
        "summary": summary(spec_class),
        "options": listed,
    }


def _list() -> None:
    from nvg.errors import PluginError
    from nvg.plugins import registry
    from nvg.sampling.options import REQUIRED, options_of, summary

    rows = []
    for entry in registry().samplers.entries():
        try:
            spec_class = entry.load()
            shown = ", ".join(
                o.name if o.default is REQUIRED else f"{o.name}={_shown(o.default)}" for o in options_of(spec_class)
            )
            what = first_sentence(summary(spec_class))
            what = _SOURCE.sub("", what) if sys.stdout.isatty() else what
            rows.append((entry.name, shown, what, entry.origin))
        except PluginError as error:
            say(f"warning: {error}")
    print_table([("NAME", "OPTIONS", "WHAT IT DOES", "FROM"), *rows], prose=2)
    for line in registry().warnings():
        say(f"warning: {line}")


def _shown(default: Any) -> str:
    """A default as -o takes it."""
    return json.dumps(default) if isinstance(default, (tuple, dict)) else str(default)


def _show(name: str) -> None:
    from nvg.plugins import sampler_entry
    from nvg.sampling.options import REQUIRED, options_of, summary

    entry = sampler_entry(name)
    spec_class = entry.load()
    listed = options_of(spec_class)
    click.echo(f"{entry.name}  ({entry.origin}, {entry.location})")
    if summary(spec_class):
        help_lines = {f"{option.name}:" for option in listed}
        paragraphs = inspect.cleandoc(spec_class.__doc__ or "").split("\n\n")
        for paragraph in paragraphs:
            if paragraph.partition(" ")[0] not in help_lines:
                click.echo(f"\n{paragraph}")
    if listed:
        click.echo("\nOptions (-o NAME=VALUE):")
        rows = [
            (o.name, o.type_name, "required" if o.default is REQUIRED else f"default {_shown(o.default)}", o.help)
            for o in listed
        ]
        print_table(rows, indent=2, prose=3)
