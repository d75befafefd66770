"""`nvg samplers`"""

from __future__ import annotations

import inspect
import json
from typing import Any

import click

from nvg.cli import options, say
from nvg.cli.table import first_sentence, print_table


@click.command()
@click.argument("name", required=False, shell_complete=options.complete_samplers)
def samplers(name: str | None) -> None:
    """List the samplers with their options and where each comes from; or show NAME (or FILE.py:NAME) in full."""
    if name is None:
        _list()
    else:
        _show(name)


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
            rows.append((entry.name, shown, first_sentence(summary(spec_class)), entry.origin))
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
