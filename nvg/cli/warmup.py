"""`nvg warmup`"""

from __future__ import annotations

import click

from nvg.cli import say


@click.command()
def warmup() -> None:
    """Compile all kernels for this machine now, so that no later run has to."""
    from nvg.model.runner import compile_steps
    from nvg.runtime.compile_cache import cache_directory, prepare

    lines: list[str] = []

    def report(line: str) -> None:
        lines.append(line)
        say(line)

    prepare(compile_steps(), report)
    if not lines:
        say("all kernels are compiled already")
    click.echo(cache_directory())
