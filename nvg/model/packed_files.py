"""The cache's files of packed weights: what they are called, how much room they may take, how they are removed.

A file is in the format of safetensors: one tensor, of bytes, and in the header's metadata what it was made from.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from nvg.errors import ParameterError
from nvg.params import DTYPES
from nvg.runtime.caches import cache_root, is_abandoned, is_own, make_private, open_own

CAP_VARIABLE = "NVG_PACKED_CACHE_GB"
_DEFAULT_CAP_GB = 10
_MOST_CAP_GB = 1_000_000
_NUMBER = re.compile(r"\d+(\.\d*)?|\.\d+", re.ASCII)
_NAME = re.compile(
    rf"[\w-]+\.(?P<dtype>{'|'.join(DTYPES)})\.[0-9a-f]{{16}}\.packed(?P<unfinished>(\.[0-9]+){{2}}\.tmp)?"
)
_PAGE = 4096
_MOST_HEADER_BYTES = 2**20


@dataclass(frozen=True)
class PackedFile:
    """A file of packed weights, or the rest of one whose writer was killed."""

    path: Path
    num_bytes: int
    last_used: float
    """Seconds since the epoch."""
    dtype: str
    is_finished: bool

    @property
    def model(self) -> str:
        """The real path of the checkpoint's directory; empty where the header can't be read."""
        with contextlib.suppress(OSError, ValueError), open_own(self.path) as file:
            return read_header(file).metadata.get("model", "")
        return ""


@dataclass(frozen=True)
class Header:
    """What a file's beginning says about the rest."""

    metadata: dict[str, str]
    data_offset: int
    data_bytes: int


def packed_directory() -> Path:
    """Where the files are, or would be."""
    return cache_root() / "packed"


def cap_bytes() -> int:
    """Most bytes of all files together, from NVG_PACKED_CACHE_GB; 0 means no cache. Raises ParameterError."""
    text = os.environ.get(CAP_VARIABLE, "").strip() or str(_DEFAULT_CAP_GB)
    if not _NUMBER.fullmatch(text) or float(text) > _MOST_CAP_GB:
        raise ParameterError(
            f"{CAP_VARIABLE} is {text!r}; it must be a number of GB from 0 to {_MOST_CAP_GB}, as 2.5 (0: none are kept)"
        )
    return int(float(text) * 1e9)


def file_name(model: str, dtype: str, key: str) -> str:
    """Of the weights of the checkpoint in the directory `model`; `key` are 16 hexadecimal digits."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", os.path.basename(model))[:64] or "model"
    return f"{stem}.{dtype}.{key}.packed"


def packed_files() -> list[PackedFile]:
    """All there are, the latest used first. Links, and files that others own or that nvg did not name, are none."""
    found = []
    try:
        entries = list(os.scandir(packed_directory()))
    except (OSError, RuntimeError):  # there is no such directory, nor perhaps a home for it
        return []
    for entry in entries:
        name = _NAME.fullmatch(entry.name)
        with contextlib.suppress(OSError):  # gone meanwhile
            status = entry.stat(follow_symlinks=False)
            if name and is_own(status):
                done = name["unfinished"] is None
                found.append(PackedFile(Path(entry.path), status.st_size, status.st_mtime, name["dtype"], done))
    return sorted(found, key=lambda file: file.last_used, reverse=True)


def make_room(num_bytes: int) -> None:
    """Remove what was used longest ago until a file of `num_bytes` fits under the cap, and what nobody will use: files
    of checkpoints that are gone, and what killed writers left.

    Raises OSError, before anything is removed, if it can't fit: it is above the cap, or more than half of what is free
    on the disk.
    """
    cap = cap_bytes()
    if num_bytes > cap:
        raise OSError(
            f"they have {num_bytes / 1e9:.2f} GB, {CAP_VARIABLE} allows {cap / 1e9:g}: raise it, or set it to 0 to "
            "keep none"
        )
    free = shutil.disk_usage(make_private(packed_directory())).free
    if free < 2 * num_bytes:
        raise OSError(
            f"they have {num_bytes / 1e9:.2f} GB, and the disk of {packed_directory()} has no more than "
            f"{free / 1e9:.2f} GB free: half of it stays free. Set {CAP_VARIABLE} to 0 to keep none"
        )
    total = num_bytes
    for file in packed_files():
        is_useless = not os.path.isdir(file.model) if file.is_finished else is_abandoned(file.path)
        total += file.num_bytes
        if is_useless or total > cap:
            with contextlib.suppress(OSError):  # one that is in use, where such can't be removed
                file.path.unlink(missing_ok=True)
            total -= file.num_bytes


def header_bytes(metadata: dict[str, str], data_bytes: int) -> bytes:
    """A file's beginning, up to the data: whole pages."""
    tensor = {"dtype": "U8", "shape": [data_bytes], "data_offsets": [0, data_bytes]}
    text = json.dumps({"__metadata__": metadata, "arena": tensor}).encode()
    size = -(-(8 + len(text)) // _PAGE) * _PAGE - 8
    return size.to_bytes(8, "little") + text.ljust(size)


def read_header(file: BinaryIO) -> Header:
    """From the beginning of a file. Raises ValueError for one that is cut short, or of another kind."""
    size = int.from_bytes(file.read(8), "little")
    if size > _MOST_HEADER_BYTES:
        raise ValueError("no header of packed weights")
    try:
        header = json.loads(file.read(size))
        found = Header(dict(header["__metadata__"]), 8 + size, int(header["arena"]["shape"][0]))
    except (KeyError, TypeError, IndexError, RecursionError) as error:
        raise ValueError("no header of packed weights") from error
    if os.fstat(file.fileno()).st_size != found.data_offset + found.data_bytes:
        raise ValueError("packed weights that are cut short")
    return found
