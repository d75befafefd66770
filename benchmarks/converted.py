"""Models converted for a peer: made once, in a process of their own, and found again."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any


def source_key(directory: Path) -> str:
    """Changes with the checkpoint: of the names, sizes and times of its files."""
    files = sorted(path for path in directory.iterdir() if path.is_file())
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def converted(path: Path, write: Callable[..., None], *arguments: Any) -> Path:
    """`path`, a file or a directory, written by `write(*arguments, unfinished_path)` unless it is there.

    The process of its own keeps what a converter imports (torch, mostly) and its memory away from what is measured.
    Raises what `write` raises.
    """
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            pool.submit(write, *arguments, unfinished).result()
        os.replace(unfinished, path)
    finally:
        if unfinished.is_dir():
            shutil.rmtree(unfinished)
        else:
            unfinished.unlink(missing_ok=True)
    return path
