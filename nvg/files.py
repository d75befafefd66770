"""The files of a model's directory: which there are, and how they are opened.

Nothing outside of the directory is read, whatever a link in it says, but a hub cache's blobs, which its snapshots are
links to. Nothing but regular files is opened: a pipe would never end.
"""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import IO, Any

from nvg.errors import CheckpointError
from nvg.errors import shown as shown

MAX_JSON_BYTES = 2**24
"""Of a JSON file or header; those of the largest GPT-2 have two million. Parsed, it takes up to 25 times as much."""
SHARD_NAME = re.compile(r"[\w-][\w.-]{0,240}\.safetensors", re.ASCII)
"""What an index may name: only files of its directory, as an index must not make nvg open anything else."""
_INDEX = "model.safetensors.index.json"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_OWN_DATA = Path(os.path.realpath(Path(__file__).parent)) / "data"


def open_file(path: Path) -> IO[bytes]:
    """Open a file of a model's directory for reading, unbuffered.

    Raises CheckpointError for a link that leads out of the directory and for what is not a regular file, OSError.
    """
    real = os.path.realpath(path)
    if not any(Path(real).is_relative_to(root) for root in roots(path.parent)):
        raise CheckpointError(
            f"{path} is a link to {shown(real)}, outside of the model's directory; put the file itself there"
        )
    without_waiting = getattr(os, "O_NONBLOCK", 0)  # for somebody to write into a pipe
    file = open(path, "rb", buffering=0, opener=lambda _, flags: os.open(real, flags | without_waiting))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise CheckpointError(f"{path} is not a regular file")
    return file


def roots(directory: Path) -> list[Path]:
    """Where the files of a model's directory may really lie."""
    real = Path(os.path.realpath(directory))
    if real.is_relative_to(_OWN_DATA):
        return [Path(real.anchor)]  # some installers make links to all files of a package
    if real.parent.name == "snapshots":
        return [real, real.parent.parent / "blobs"]
    return [real]


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a model's directory. Raises CheckpointError where there is none."""
    try:
        with open_file(path) as file:
            data = json.loads(read_up_to(file, MAX_JSON_BYTES).decode("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}") from None
    except RecursionError:
        raise CheckpointError(f"{path} is not valid JSON: it is nested too deeply; copy the file again") from None
    except ValueError as error:  # bad JSON, bad UTF-8, an endless integer
        raise CheckpointError(f"{path} is not valid JSON: {shown(str(error))}; copy the file again") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds a JSON {type(data).__name__}; it must be an object")
    return data


def read_up_to(file: IO[bytes], most: int) -> bytes:
    """All that is left of a file. Raises ValueError for more than `most` bytes."""
    parts = []
    while part := file.read(2**16):
        parts.append(part)
        most -= len(part)
        if most < 0:
            raise ValueError("it is too long")
    return b"".join(parts)


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint: model.safetensors, else the shards that the index names.

    Raises CheckpointError, also where one is missing.
    """
    paths = weight_paths(directory)
    for path in paths:
        if not os.path.lexists(path):
            raise CheckpointError(f"{path} is missing; {_INDEX} names it")
    return paths


def weight_paths(directory: Path) -> list[Path]:
    """As `weight_files`, but not all of the shards need be there."""
    single = directory / "model.safetensors"
    index = directory / _INDEX
    if os.path.lexists(single):
        return [single]
    if os.path.lexists(index):
        return _shards(index)
    for name in _PICKLES:
        if os.path.lexists(directory / name):
            raise CheckpointError(
                f"{directory} has {name} but no model.safetensors; nvg never opens pickle files, which can run code: "
                "if you trust it, convert it with transformers: "
                "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(DIR, safe_serialization=True)"
            )
    raise CheckpointError(f"{directory} has no model.safetensors, nor shards with {_INDEX}")


def size_text(num_bytes: int) -> str:
    """A file's size for the user: "12.1 MB"."""
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1e5 else f"{num_bytes / 1e3:.1f} kB"


def _shards(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map must be an object of tensor names and file names")
    for name in weight_map.values():
        if not isinstance(name, str) or not SHARD_NAME.fullmatch(name):
            raise CheckpointError(
                f"{index}: weight_map has the file {shown(name)}; it must be the plain name of a .safetensors file"
            )
    return [index.with_name(name) for name in sorted(set(weight_map.values()))]
