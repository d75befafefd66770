"""`nvg warmup`"""

from __future__ import annotations

from pathlib import Path

import click

from nvg.cli import say
from nvg.cli.interrupt import interruptible
from nvg.params import DTYPES, EngineConfig


@click.command()
@click.option(
    "--dtype",
    "dtypes",
    type=click.Choice(["all", *DTYPES]),
    multiple=True,
    default=[EngineConfig.dtype],
    show_default=True,
    help="For weights of this precision; repeatable.",
)
def warmup(dtypes: tuple[str, ...]) -> None:
    """Compile the kernels for this machine now, so that no later run has to."""
    wanted = DTYPES if "all" in dtypes else tuple(dict.fromkeys(dtypes))
    click.echo(interruptible(lambda: _compile(wanted)))


def _compile(dtypes: tuple[str, ...]) -> Path:
    """Compile what is missing; the directory where it is kept."""
    from nvg.kernels import roofline
    from nvg.model import runner
    from nvg.runtime.compile_cache import cache_directory, prepare
    from nvg.sampling import chain

    steps = [*roofline.compile_steps(), *chain.compile_steps()]
    for dtype in dtypes:
        steps += [step for step in runner.compile_steps(dtype) if step.name not in {other.name for other in steps}]
    if all(step.is_cached() for step in steps):
        say("all kernels are compiled already")
    prepare(steps, say)
    return cache_directory()
