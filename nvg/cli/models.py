"""`nvg models`"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from nvg.cli import say
from nvg.cli.table import print_table
from nvg.cli.verify import verify

if TYPE_CHECKING:
    from nvg.model.packed_files import PackedFile


@click.group(invoke_without_command=True)
@click.pass_context
def models(context: click.Context) -> None:
    """List the models, download one, or remove what is kept of them.

    Models from the Hugging Face hub are in its own cache, which other programs share (HF_HOME or HF_HUB_CACHE names
    its place): nvg adds to it with `pull`, and removes nothing from it (`hf cache rm model/ORG/NAME` does).

    When a model is closed, its weights are kept as they were packed in memory, and the next time they are mapped from
    there. NVG_PACKED_CACHE_GB is the most GB that all of them may take, by default 10, up to 1000000; 0 keeps
    and uses none.
    """
    if context.invoked_subcommand is None:
        context.invoke(list_models)


models.add_command(verify)


@models.command("list")
@click.option("--format", "output_format", type=click.Choice(["text", "json"]), default="text", show_default=True)
def list_models(output_format: str = "text") -> None:
    """List built-in models, those in the hub's cache, and packed weights, with their sizes and places."""
    from nvg.hub import BUILT_IN, resolve_model
    from nvg.hub_cache import cached_models
    from nvg.model.packed_files import cap_bytes, packed_files

    cap = cap_bytes()
    built_in = [(name, resolve_model(name)) for name in BUILT_IN]
    sizes = {name: sum(file.stat().st_size for file in path.iterdir() if file.is_file()) for name, path in built_in}
    models = [(name, "built-in", sizes[name], path, True) for name, path in built_in]
    models += [(str(one.name), "hub", one.num_bytes, one.directory, one.is_complete) for one in cached_models()]
    packed = [(_name_of(file.model), file) for file in packed_files()]
    if output_format == "json":
        facts: dict[str, Any] = {
            "models": [
                {"model": name, "kind": kind, "bytes": size, "path": str(path), "complete": is_complete}
                for name, kind, size, path, is_complete in models
            ],
            "packed": [
                {
                    "model": name or None,
                    "dtype": file.dtype,
                    "bytes": file.num_bytes,
                    "last_used": file.last_used,
                    "finished": file.is_finished,
                    "path": str(file.path),
                }
                for name, file in packed
            ],
            "packed_cap_bytes": cap,
        }
        click.echo(json.dumps(facts))
        return
    rows = []
    for name, kind, size, path, is_complete in models:
        told = kind.replace("-", " ") + ("" if is_complete else ", incomplete")
        rows.append((name, told, _megabytes(size), "", str(path)))
    for name, file in packed:
        kind = f"packed {file.dtype}" if file.is_finished else "unfinished"
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(file.last_used))
        rows.append((name or "?", kind, _megabytes(file.num_bytes), used, str(file.path)))
    print_table([("MODEL", "KIND", "SIZE", "LAST USED", "WHERE"), *rows])


@models.command("pull")
@click.argument("name", metavar="NAME[@REVISION]")
def pull_model(name: str) -> None:
    """Download a model from the Hugging Face hub into its cache, and print its directory.

    NAME is gpt2, gpt2-medium, gpt2-large, gpt2-xl, distilgpt2 or ORG/NAME; -m takes the same. Only the files that nvg
    reads are downloaded, and none that are there; weights that were cut off go on where they were. This needs the
    extra: pip install 'nvg[hub]'. A token for private and gated models is taken from HF_TOKEN or from `hf auth login`;
    HF_ENDPOINT names another hub.
    """
    from nvg.errors import ParameterError, shown
    from nvg.hub import BUILT_IN, resolve_model
    from nvg.hub_cache import SHORT_NAMES, HubName
    from nvg.hub_download import pull
    from nvg.model.config import read_config

    if name in BUILT_IN:
        say(f"{name} comes with nvg: there is nothing to download")
        click.echo(resolve_model(name))
        return
    hub_name = HubName.parse(name)
    if hub_name is None or not hub_name.is_known:
        raise ParameterError(
            f"{shown(name)} is no model of the hub; it must be {', '.join(SHORT_NAMES)} or ORG/NAME[@REVISION]"
        )
    click.echo(pull(hub_name, read_config, say))


def _complete_packed(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from nvg.model.packed_files import packed_files

    return sorted({name for file in packed_files() if (name := _name_of(file.model)).startswith(incomplete)} - {""})


@models.command("rm")
@click.argument("names", metavar="[MODEL]...", nargs=-1, shell_complete=_complete_packed)
@click.option("--all", "all_of_them", is_flag=True, help="Of every model.")
def remove(names: Sequence[str], all_of_them: bool) -> None:
    """Remove the packed weights of MODEL; checkpoints stay, those in the hub's cache too.

    MODEL is a name or path as for -m. A checkpoint that is gone can still be named.
    """
    from nvg.model.packed_files import packed_files

    if bool(names) == all_of_them:
        raise click.UsageError("give either MODEL or --all", click.get_current_context())
    files = packed_files()
    chosen = files if all_of_them else [file for name in dict.fromkeys(names) for file in _of_model(name, files)]
    for file in dict.fromkeys(chosen):
        file.path.unlink(missing_ok=True)
        click.echo(f"removed {file.path}")
    say(f"{_megabytes(sum(file.num_bytes for file in dict.fromkeys(chosen)))} freed")


def _of_model(name: str, files: Sequence[PackedFile]) -> list[PackedFile]:
    """The files of the model that the user calls `name`. Raises ModelNotFoundError if there are none."""
    from nvg.errors import ModelNotFoundError, shown
    from nvg.hub_cache import HubName

    directories = _directories()
    called = next((key for key in (name, str(HubName.parse(name))) if key in directories), None)
    directory = os.path.realpath(directories[called] if called else os.path.expanduser(name))  # it may be gone
    found = [file for file in files if file.model == directory]
    if not found:
        known = sorted({_name_of(file.model) for file in files} - {""})
        there = f"there are those of {', '.join(known)}" if known else "there are none of any model"
        repository = os.path.basename(os.path.dirname(os.path.dirname(directory)))  # if it is in the hub's cache
        is_cached = called is not None and repository.startswith("models--")
        removal = f"`hf cache rm {repository.replace('models--', 'model/').replace('--', '/')}`"
        raise ModelNotFoundError(
            f"no packed weights of {shown(name, 300)}; {there}{f'; {removal} removes the model itself' * is_cached}"
        )
    return found


def _name_of(directory: str) -> str:
    """What the user calls the model in `directory`, a real path."""
    return {os.path.realpath(path): name for name, path in _directories().items()}.get(directory, directory)


def _directories() -> dict[str, str]:
    """Of the built-in models and those in the hub's cache, by name."""
    from nvg.hub import BUILT_IN, resolve_model
    from nvg.hub_cache import cached_models

    hub = {str(model.name): str(model.directory) for model in cached_models()}
    return hub | {name: str(resolve_model(name)) for name in BUILT_IN}


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB"
