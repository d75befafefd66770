"""`nvg tokenizers`"""

from __future__ import annotations

import inspect

import click

from nvg.cli import say
from nvg.cli.table import first_sentence, print_table


@click.command()
def tokenizers() -> None:
    """List the tokenizers and where each comes from."""
    from nvg.errors import PluginError
    from nvg.plugins import registry

    rows = []
    for entry in registry().tokenizers.entries():
        try:
            paragraph = (inspect.getdoc(entry.load()) or "").partition("\n\n")[0]
            rows.append((entry.name, first_sentence(paragraph), entry.origin))
        except PluginError as error:
            say(f"warning: {error}")
    print_table([("NAME", "WHAT IT IS", "FROM"), *rows], prose=1)
    for line in registry().warnings():
        say(f"warning: {line}")
