"""Packed weights from the cache, or from the checkpoint and then into the cache.

A file is taken if it was made from the very same source by the same code, and its bytes have the checksum that they had
when it was written. It is mapped: its memory is the system's file cache, which costs next to nothing. It is written
when the model is closed: nobody waits for an answer then, and each piece of memory is given back for the file's.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import math
import mmap
import os
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np

from nvg.kernels.checksum import CHUNK_BYTES, checksum_chunks
from nvg.model import packed_files
from nvg.model.checkpoint import Checkpoint
from nvg.model.packing import Bytes, Layout, pack_weights
from nvg.runtime import cpu
from nvg.runtime.arena import HUGE_PAGE, PATIENCE_S, Arena, Patience
from nvg.runtime.caches import open_own, replacing
from nvg.runtime.kernel_store import Report, sources_digest

SMALLEST_BYTES = 64_000_000
"""Of a model's parameters as float32: fewer are packed about as fast as a file is looked for and checked."""
_MUCH_BYTES = 1_000_000_000
_LARGE_PIECE_BYTES = 4 * HUGE_PAGE
_SMALL_PIECE_BYTES = 2**16
_MOST_LOST_S = 3.0
"""On huge pages that are slow to come, for a file that every later run reads at every token, a few per cent faster from
them. 250 of them, 500 MB, took 0.8 s longer to write where a virtual machine's host had to bring them."""


class CachedWeights:
    """The packed weights of a checkpoint."""

    arena: Bytes
    """Filled as the layout says; perhaps read-only."""
    is_from_cache: bool

    def __init__(self, checkpoint: Checkpoint, layout: Layout, num_threads: int, report: Report | None = None) -> None:
        """Raises CheckpointError, MemoryError, ParameterError. `report` is told when much is written."""
        self._report = report or (lambda line: None)
        self._file = _file_for(checkpoint, layout)
        self._unkept: Arena | None = None
        self._process = os.getpid()
        mapped = self._file.load(num_threads) if self._file else None
        self.is_from_cache = mapped is not None
        if mapped is not None:
            self.arena = mapped
            return
        # Weights that are made up are there to measure speed with: what it is from the second run on.
        packed = Arena(layout.size, PATIENCE_S if isinstance(checkpoint, Checkpoint) else math.inf)
        pack_weights(checkpoint, layout, packed, num_threads)
        if isinstance(checkpoint, Checkpoint):
            checkpoint.check_unchanged()
        self.arena = packed.bytes
        if self._file and self._file.source == _source(checkpoint):  # it did not change meanwhile
            self._unkept = packed
            atexit.register(self._keep, release=False)  # if nobody closes the model

    def close(self) -> None:
        """Write the file if there is none; nobody may read `arena` any more."""
        self._keep(release=True)

    def _keep(self, release: bool) -> None:
        packed, self._unkept = self._unkept, None
        atexit.unregister(self._keep)
        if packed is not None and self._file is not None and os.getpid() == self._process:
            if self.arena.size > _MUCH_BYTES:
                self._report(
                    f"keeping {self.arena.size / 1e9:.1f} GB of packed weights, so that the next load is short"
                )
            try:
                self._file.save(packed, release)
            except (OSError, RuntimeError) as error:  # a full disk, a directory of another user: then without
                self._report(f"the packed weights are not kept: {error}")
        elif self.is_from_cache:
            with contextlib.suppress(OSError):
                packed_files.make_room(0)  # a cap that was lowered


class _File:
    """The place in the cache for one checkpoint's weights in one dtype."""

    def __init__(self, path: Path, model: str, layout: Layout, source: str) -> None:
        self.source = source
        self._path = path
        self._size = layout.size
        self._metadata = {"model": model, "dtype": layout.dtype, "source": source}

    def load(self, num_threads: int) -> Bytes | None:
        """The weights, mapped read-only; None if there are none that can be used."""
        try:
            with open_own(self._path) as file:
                header = packed_files.read_header(file)
                if header.metadata.get("source") != self.source or header.data_bytes != self._size:
                    return None
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):
            return None
        with contextlib.suppress(OSError):  # a kernel, or a disk, that allows neither
            os.utime(self._path)  # the oldest go first
            if sys.platform == "linux":
                mapped.madvise(mmap.MADV_HUGEPAGE)  # what must come from the disk is read 2 MB at a time
        arena = np.frombuffer(mapped, np.uint8, self._size, header.data_offset)
        if _checksum(arena, num_threads) != header.metadata.get("checksum"):
            warnings.warn(f"nvg: {self._path} was damaged and is replaced", RuntimeWarning, stacklevel=2)
            return None
        return arena

    def save(self, packed: Arena, release: bool) -> None:
        """Write the weights, giving their memory back on the way if `release`.

        Raises OSError; then there is no file, or the one that was there before.
        """
        packed_files.make_room(self._size)
        checksum = _checksum(packed.bytes, 1)  # at the interpreter's end no thread can be started
        header = packed_files.header_bytes({**self._metadata, "checksum": checksum}, self._size)
        with replacing(self._path, buffering=0) as file:
            _write(file, memoryview(header))
            done, step, patience = 0, _LARGE_PIECE_BYTES, Patience(0.001, _MOST_LOST_S)
            while done < self._size:  # up to a boundary in the file, where its next huge page begins
                end = min(self._size, done + step - (len(header) + done) % step)
                _write(file, packed.bytes[done:end].data)
                if patience.is_over(end - done):
                    step = _SMALL_PIECE_BYTES
                done = end
                if release:
                    packed.release(done)


def _file_for(checkpoint: Checkpoint, layout: Layout) -> _File | None:
    """None where it is not worth the while, not wanted, or not possible."""
    if packed_files.cap_bytes() == 0:
        return None
    is_from_files = isinstance(checkpoint, Checkpoint)
    if not is_from_files or 4 * sum(math.prod(checkpoint.shape(name)) for name in checkpoint.names) < SMALLEST_BYTES:
        return None
    try:
        directory = packed_files.packed_directory()
    except RuntimeError:  # no home
        return None
    model = os.path.realpath(checkpoint.directory)
    key = hashlib.sha256(repr((model, cpu.features())).encode()).hexdigest()[:16]
    path = directory / packed_files.file_name(model, layout.dtype, key)
    return _File(path, model, layout, _source(checkpoint))


def _source(checkpoint: Checkpoint) -> str:
    """What decides every byte of a checkpoint's packed weights: its files, and the code that reads and packs them."""
    return hashlib.sha256(f"{checkpoint.fingerprint} {_code_digest()}".encode()).hexdigest()


@cache
def _code_digest() -> str:
    here = Path(__file__).parent
    digest = hashlib.sha256(sources_digest().encode())
    for name in ("safetensors_header.py", "checkpoint.py", "packing.py"):
        digest.update((here / name).read_bytes())
    return digest.hexdigest()


def _checksum(arena: Bytes, num_threads: int) -> str:
    """Digest of the sums of all chunks; touches all of the memory."""
    words = arena.view(np.uint64)
    words.flags.writeable = False  # one type for the compiler, whatever the memory is
    sums = np.empty((-(-arena.size // CHUNK_BYTES), 2), np.uint64)

    def take(thread: int) -> None:
        first, end = (len(sums) * share // num_threads for share in (thread, thread + 1))
        checksum_chunks(words[first * CHUNK_BYTES // 8 : end * CHUNK_BYTES // 8], sums[first:end])

    if num_threads == 1:
        take(0)
    else:
        with ThreadPoolExecutor(num_threads) as pool:
            list(pool.map(take, range(num_threads)))
    return hashlib.sha256(sums.tobytes()).hexdigest()


def _write(file: BinaryIO, data: memoryview) -> None:
    while data:
        data = data[file.write(data) :]
