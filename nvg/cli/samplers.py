"""`nvg samplers`"""

from __future__ import annotations

import click

from nvg.cli import say
from nvg.cli.table import first_sentence, print_table


@click.command()
@click.argument("name", required=False)
def samplers(name: str | None) -> None:
    """List the samplers with their options and where each comes from; or show NAME (or FILE.py:NAME) in full."""
    from nvg.errors import PluginError
    from nvg.plugins import registry, sampler_entry
    from nvg.sampling.options import REQUIRED, options_of

    if name is not None:
        entry = sampler_entry(name)
        spec_class = entry.load()
        click.echo(f"{entry.name}  ({entry.origin}, {entry.location})\n")
        click.echo((spec_class.__doc__ or "").strip().split("\n\n")[0])
        listed = options_of(spec_class)
        if listed:
            click.echo("\nOptions (-o NAME=VALUE):")
            rows = [
                (o.name, o.type_name, "required" if o.default is REQUIRED else f"default {o.default}", o.help)
                for o in listed
            ]
            print_table(rows, indent=2)
        return
    rows = []
    for entry in registry().samplers.entries():
        try:
            spec_class = entry.load()
            shown = ", ".join(
                o.name if o.default is REQUIRED else f"{o.name}={o.default}" for o in options_of(spec_class)
            )
            rows.append((entry.name, shown, first_sentence(spec_class.__doc__), entry.origin))
        except PluginError as error:
            say(f"warning: {error}")
    print_table([("NAME", "OPTIONS", "WHAT IT DOES", "FROM"), *rows])
    for line in registry().warnings():
        say(f"warning: {line}")
