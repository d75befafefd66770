"""`nvg warmup`"""

from __future__ import annotations

from pathlib import Path

import click

from nvg.cli import say
from nvg.cli.interrupt import interruptible


@click.command()
def warmup() -> None:
    """Compile all kernels for this machine now, so that no later run has to."""
    click.echo(interruptible(_compile))


def _compile() -> Path:
    """Compile what is missing; the directory where it is kept."""
    from nvg.kernels import roofline
    from nvg.model.runner import compile_steps
    from nvg.runtime.compile_cache import cache_directory, prepare

    steps = [*compile_steps(), *roofline.compile_steps()]
    if all(step.is_cached() for step in steps):
        say("all kernels are compiled already")
    prepare(steps, say)
    return cache_directory()
