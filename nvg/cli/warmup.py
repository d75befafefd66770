"""`nvg warmup`"""

from __future__ import annotations

from pathlib import Path

import click

from nvg.cli import say
from nvg.cli.interrupt import interruptible
from nvg.params import DTYPES, KV_DTYPES, EngineConfig


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
@click.option(
    "--kv-dtype",
    "kv_dtypes",
    type=click.Choice(["all", *KV_DTYPES]),
    multiple=True,
    help="For keys and values of this precision; repeatable.  [default: float32 with float32 weights, else bfloat16; "
    "all with --dtype all]",
)
def warmup(dtypes: tuple[str, ...], kv_dtypes: tuple[str, ...]) -> None:
    """Compile the kernels for this machine now, so that no later run has to."""
    if "all" in (kv_dtypes or dtypes):
        wanted_kv: tuple[str | None, ...] = KV_DTYPES
    else:
        wanted_kv = kv_dtypes or (None,)
    pairs = [(dtype, kv) for dtype in (DTYPES if "all" in dtypes else dtypes) for kv in wanted_kv]
    click.echo(interruptible(lambda: _compile(pairs)))


def _compile(pairs: list[tuple[str, str | None]]) -> Path | None:
    """Compile what is missing for (weights, keys and values); the directory where it is kept."""
    from nvg.engine import drawing
    from nvg.kernels import roofline
    from nvg.model import runner
    from nvg.runtime.compile_cache import prepare
    from nvg.runtime.kernel_store import store
    from nvg.tokenizers import bpe_compiled

    with store.required():
        steps = {step.name: step for pair in pairs for step in runner.compile_steps(*pair)}
        others = [*drawing.compile_steps(), *bpe_compiled.compile_steps(), *roofline.compile_steps()]
        steps |= {step.name: step for step in others}
        if all(step.is_cached() for step in steps.values()):
            say("all kernels are compiled already")
        prepare(list(steps.values()), say, about_s=15 + 5 * len(pairs))
        return store.directory
