"""`nvg models verify`"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from nvg.cli import options, say
from nvg.cli.interrupt import interruptible
from nvg.cli.table import print_table
from nvg.errors import CheckpointError
from nvg.params import EngineConfig


@click.command()
@click.argument("model")
@click.option(
    "--compare",
    type=click.Path(),
    metavar="FILE",
    help="Compare the logits with those of FILE: the JSON that this command printed for the same model.",
)
@options.dtype
@options.tokenizer
@click.option(
    "--threads", type=int, metavar="N", help="Compute threads, 1 to 256.  [default: the physical cores allowed]"
)
@click.option("--format", "output_format", type=click.Choice(["text", "json"]), default="text", show_default=True)
def verify(compare: str | None, output_format: str, **given: Any) -> None:
    """Check all files of MODEL, a name or path as for -m, and show what is in them.

    \b
    nvg models verify ./gpt2
    nvg models verify ./gpt2 --format json > gpt2.json
    nvg models verify ./my-copy --compare gpt2.json

    Looked at are the config's values, the generation defaults, the tensors' names, shapes, dtypes and values (nan and
    inf are faults), the tokenizer, and whether it and the weights agree. Then the logits of a fixed text are computed:
    a fingerprint, which does not depend on the machine but for rounding. The exit code is 4 if anything is bad, or the
    logits are those of another model than FILE's.
    """
    with options.flags_in_errors():
        config = EngineConfig(max_num_seqs=1, **given)
        from nvg.verify.checks import verify as check
        from nvg.verify.fingerprint import load

        saved = None if compare is None else load(compare)
        found = interruptible(lambda: check(config, saved, say))
    if output_format == "json":
        findings = [asdict(finding) for finding in found.findings]
        header = {"model": found.model, "path": found.path, "sound": found.is_sound}
        click.echo(json.dumps({**header, "findings": findings, **found.facts}))
    else:
        rows = [(one.check, one.state, one.text) for one in found.findings]
        print_table([("CHECK", "STATE", "WHAT"), *rows], prose=2)
    if not found.is_sound:
        click.get_current_context().exit(CheckpointError.exit_code)
