"""Where compiled kernels are kept: a private directory that is keyed by everything that decides the machine code but
that Numba's own cache does not see: our kernel sources, all of them, and the versions of the compilers."""

from __future__ import annotations

import contextlib
import hashlib
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import BinaryIO

import llvmlite
import numba

from nvg._version import __version__
from nvg.errors import NvgError
from nvg.runtime.caches import cache_root, check_private, make_private

Report = Callable[[str], None]
_WAITING = "another process is compiling them; waiting for it ..."


@cache
def sources_digest() -> str:
    """Digest of every source file that can reach machine code, and of the compilers' versions."""
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256(f"{__version__} {numba.__version__} {llvmlite.__version__} {sys.version}".encode())
    rooms = ("kernels", "runtime", "sampling", "tokenizers")
    for path in sorted(path for room in rooms for path in package.glob(f"{room}/*.py")):
        source = path.read_bytes()
        compiles = any(word in source for word in (b"njit", b"intrinsic", b"Job("))
        if compiles or path.parent.name in rooms[:2]:  # the others are plain Python
            digest.update(path.name.encode() + source)
    return digest.hexdigest()[:16]


class KernelStore:
    """The directory of compiled kernels. State: where it is, whether its one warning was given, and whether it is an
    error that nothing can be kept (`required`)."""

    def __init__(self) -> None:
        self._warned = False
        self._is_required = False

    def warn(self, problem: str, cost: str = "kernels are compiled again on each run") -> None:
        """The process's one warning about the cache."""
        if not self._warned:
            self._warned = True
            warnings.warn(f"nvg: {problem}; {cost}", RuntimeWarning, stacklevel=2)

    def fail(self, problem: str) -> None:
        """Warn that what is compiled can't be kept. Raises NvgError where it must be."""
        problem = f"{problem}; NVG_CACHE_DIR names another place"
        if self._is_required:
            raise NvgError(f"compiled kernels can't be kept: {problem}")
        self.warn(problem)

    @cached_property
    def directory(self) -> Path | None:
        """The private, keyed directory, made when there is something to keep; None where it can't be used or isn't
        ours alone."""
        try:
            directory = cache_root() / "kernels" / sources_digest()
            with contextlib.suppress(FileNotFoundError):
                check_private(directory)
            return directory
        except (OSError, RuntimeError) as error:
            self.fail(f"the compile cache can't be used ({error})")
            return None

    def num_bytes(self) -> int:
        """Bytes of all that is in the directory."""
        if self.directory is None or not self.directory.is_dir():
            return 0
        return sum(file.stat().st_size for file in self.directory.iterdir())

    @contextlib.contextmanager
    def required(self) -> Iterator[None]:
        """Within this block, NvgError is raised rather than that something is compiled that can't be kept."""
        self._is_required = True
        try:
            yield
        finally:
            self._is_required = False

    @contextlib.contextmanager
    def lock(self, report: Report) -> Iterator[bool]:
        """Hold the directory's lock, so that of several first runs one compiles and the others wait for it. Gives
        whether what is compiled can be kept."""
        can_be_kept = False
        with contextlib.ExitStack() as stack:  # closing the file, or dying, gives the lock back
            if self.directory is not None:
                try:
                    handle = stack.enter_context(open(make_private(self.directory) / "lock", "a+b"))
                except OSError as error:
                    self.fail(f"the compile cache can't be written ({error})")
                else:
                    can_be_kept = True
                    with contextlib.suppress(OSError):  # no locks here: then two may compile the same
                        _wait_for_lock(handle, report)
            yield can_be_kept


def _wait_for_lock(handle: BinaryIO, report: Report) -> None:
    if sys.platform == "win32":
        import msvcrt

        handle.seek(0)
        while True:
            try:
                msvcrt.locking(handle.fileno(), msvcrt.LK_LOCK, 1)  # gives up after ten seconds
                break
            except OSError:
                report(_WAITING)
    else:
        import fcntl

        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(_WAITING)
            fcntl.flock(handle, fcntl.LOCK_EX)


store = KernelStore()
