"""`nvg presets`"""

from __future__ import annotations

import json
from typing import Any

import click

from nvg.cli import options, say
from nvg.cli.table import print_table
from nvg.params import SamplingParams


@click.group(invoke_without_command=True)
@click.pass_context
def presets(context: click.Context) -> None:
    """List, show, save and remove chains of samplers with a name.

    A preset of your own is a TOML file in NVG_CONFIG_DIR, by default the platform's directory for configuration, and
    is used by its name, as in nvg generate --preset NAME.
    """
    if context.invoked_subcommand is None:
        context.invoke(list_presets, output_format="text")


@presets.command("list")
@options.output_format
def list_presets(output_format: str) -> None:
    """List all presets with their chains and where each comes from."""
    from nvg.errors import NvgError
    from nvg.sampling.presets import find_preset, preset_names, preset_warnings

    records, rows = [], [("NAME", "WHAT IT DOES", "CHAIN", "FROM")]
    for name in preset_names():
        try:
            found = find_preset(name)
            chain = [stage.name for stage in found.stages]
            rows.append((name, found.description, ", ".join(chain) or "empty", found.origin))
            records.append({"name": name, "description": found.description, "chain": chain, "origin": found.origin})
        except NvgError as error:
            say(f"warning: {error}")
    for line in preset_warnings():
        say(f"warning: {line}")
    if output_format == "json":
        click.echo(json.dumps(records))
    else:
        print_table(rows, prose=1)


@presets.command("show")
@click.argument("name", shell_complete=options.complete_presets)
def show(name: str) -> None:
    """Print NAME (or FILE.toml) as a TOML file, with every option of every stage."""
    from nvg.sampling.presets import find_preset, to_toml

    found = find_preset(name)
    click.echo(to_toml(found.description, found.stages), nl=False)


@presets.command("save", cls=options.SamplingCommand)
@click.argument("name")
@click.option("--description", type=options.TEXT, default="", help="What it is for.")
@click.option("--replace", is_flag=True, help="If there is one of that name.")
@options.sampling
def save(
    name: str,
    description: str,
    replace: bool,
    preset: str | None,
    samplers: tuple[str, ...],
    sampler_options: tuple[str, ...],
    **shortcuts: Any,
) -> None:
    """Save a chain, written as for nvg generate, as NAME.

    \b
    nvg presets save mine --sampler topp -o p=0.9 --sampler temperature
    nvg presets save bolder --preset creative --temperature 1.2
    """
    from nvg.sampling.compose import resolve
    from nvg.sampling.presets import save_preset

    with options.flags_in_errors():
        params = SamplingParams(sampler=samplers or None, **shortcuts)
        stages = resolve(params, options.base_chain(preset, samplers), sampler_options)
    say(f"saved as {save_preset(name, description, stages, replace=replace)}")


@presets.command("rm")
@click.argument("name", shell_complete=options.complete_presets)
def remove(name: str) -> None:
    """Remove NAME, a preset of your own."""
    from nvg.sampling.presets import remove_preset

    click.echo(f"removed {remove_preset(name)}")
