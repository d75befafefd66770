"""`nvg plugins`"""

from __future__ import annotations

import click

from nvg.cli import plugin_commands, say
from nvg.cli.table import print_table


@click.command()
def plugins() -> None:
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
