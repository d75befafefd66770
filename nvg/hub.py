"""A model's name -> the directory that holds it."""

from __future__ import annotations

import difflib
import os
import stat
from pathlib import Path

from nvg import hub_cache
from nvg.errors import ModelNotFoundError, ParameterError, shown
from nvg.hub_cache import SHORT_NAMES, HubName

BUILT_IN = {"tales": "a GPT-2 of 5.9 M parameters, trained on public-domain fairy tales"}
"""Models that come with the package: name -> what it is. Their directories lie in nvg/data/."""

_WHAT_A_MODEL_IS = (
    "a Hugging Face GPT-2 directory (config.json, model.safetensors, and tokenizer.json or vocab.json with merges.txt)"
)


def resolve_model(name: str | os.PathLike[str]) -> Path:
    """The directory of a model: a built-in name, a path (`./tales` is the path, `tales` the built-in model), or the
    name of a model that was downloaded from the Hugging Face hub (`gpt2`, `ORG/NAME`, either with `@REVISION`).

    Nothing is downloaded. Raises ModelNotFoundError, which says what was looked for and how to get a model,
    CheckpointError for files that are links to elsewhere (see `hub_cache.refuse_links_out`), and ParameterError for no
    name.
    """
    text = os.fspath(name)
    if not text:
        raise ParameterError(f"model is {text!r}; it must be a model's name or the path of its directory")
    if text in BUILT_IN:
        path = Path(__file__).parent / "data" / text
        if not (path / "config.json").is_file():
            raise ModelNotFoundError(f"the built-in model {text!r} is missing from {path}: install nvg again")
        return path
    hub_name = HubName.parse(text)
    path = Path(os.path.expanduser(text))
    if not _is_model(path, text):
        cached = hub_cache.find(hub_name) if hub_name else None
        if cached is None:
            raise _missing(text, hub_name, is_directory=_is_directory(path))
        path = cached
        if not hub_cache.has_weights(path):
            raise ModelNotFoundError(
                f"the model {_quoted(text)} is in the hub's cache without its weights, or some of them ({path}): "
                f"`nvg models pull {hub_name}` downloads what is missing"
            )
    hub_cache.refuse_links_out(path)
    return path


def _is_model(path: Path, text: str) -> bool:
    """Whether the path is that of a directory with a config.json. Raises ModelNotFoundError for what can't be read."""
    try:
        if not stat.S_ISDIR(path.stat().st_mode):
            raise ModelNotFoundError(
                f"the model {_quoted(text)} is a file, not a directory: give the directory that holds config.json and "
                "model.safetensors"
            )
        if not stat.S_ISREG((path / "config.json").stat().st_mode):
            raise ModelNotFoundError(
                f"{_quoted(str(path / 'config.json'))} is not a regular file: put the model's there"
            )
        return True
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a name that no file can have
        return False
    except OSError as error:
        raise ModelNotFoundError(f"the model {_quoted(text)} can't be read: {error.strerror}") from error


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except ValueError:  # before Python 3.14, for a name that no file can have
        return False


def _quoted(name: str) -> str:
    return shown(name, 300)


def _missing(text: str, hub_name: HubName | None, *, is_directory: bool) -> ModelNotFoundError:
    """The error for a model that is nowhere: what was looked for, and the one command that gets it."""
    if is_directory:
        return ModelNotFoundError(
            f"the directory {_quoted(text)} is not a model: it has no config.json. A model is {_WHAT_A_MODEL_IS}"
        )
    what = (
        f"no model {_quoted(text)}: it is neither a built-in model ({', '.join(BUILT_IN)}) nor the path of a directory"
    )
    if hub_name and hub_name.is_known:
        return ModelNotFoundError(
            f"{what}, nor in the hub's cache ({hub_cache.hub_cache()}): `nvg models pull {hub_name}` downloads it"
        )
    near = difflib.get_close_matches(text.lower(), [*BUILT_IN, *SHORT_NAMES], n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ModelNotFoundError(
        f"{what}.{hint} Give the path of {_WHAT_A_MODEL_IS}, or get one from the hub: `nvg models pull gpt2`"
    )
