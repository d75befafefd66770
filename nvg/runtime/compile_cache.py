"""The one file that imports njit: compiles kernels once per machine into a private cache.

The cache directory is keyed by everything that decides the machine code but that Numba's own cache does not see (our
kernel sources, all of them, and the versions of the compilers); each entry's name also holds the signature, the CPU's
name, its features and what of these is used. Entries are pickles: the directory is private (0700), and each file
carries a digest that is checked before it is loaded, because damaged machine code would crash rather than fail. A cache
that can't be used costs a recompilation and one warning, never the run.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import pickle
import re
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core import types
from numba.core.caching import _Cache
from numba.core.ccallback import CFunc
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

from nvg._version import __version__
from nvg.runtime import cpu
from nvg.runtime.caches import cache_root, make_private

Report = Callable[[str], None]
_WAITING = "another process is compiling them; waiting for it ..."
_JOB_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
_DIGEST_BYTES = hashlib.sha256().digest_size


@cache
def sources_digest() -> str:
    """Digest of every source file that can reach machine code, and of the compilers' versions."""
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256(f"{__version__} {numba.__version__} {llvmlite.__version__} {sys.version}".encode())
    compiled = ("edit.py", "logprobs.py", "math.py", "random.py", "select.py", "spread.py", "vector.py")
    sampling = (package / "sampling" / name for name in compiled)
    for path in sorted([*package.glob("kernels/*.py"), *package.glob("runtime/*.py"), *sampling]):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


class _Store:
    """The directory of compiled kernels. State: where it is, and whether its one warning was given."""

    def __init__(self) -> None:
        self._directory: Path | None = None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._warned = False

    def warn(self, problem: str, cost: str = "kernels are compiled again on each run") -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(f"nvg: {problem}; {cost}", RuntimeWarning, stacklevel=2)

    @property
    def directory(self) -> Path:
        """The private, keyed directory; a temporary one where the cache can't be written or isn't ours alone."""
        if self._directory is None:
            try:
                self._directory = make_private(cache_root() / "kernels" / sources_digest())
            except (OSError, RuntimeError) as error:
                self.warn(f"the compile cache can't be used ({error}); NVG_CACHE_DIR names another place")
                self._temporary = tempfile.TemporaryDirectory(prefix="nvg-kernels-")  # removed when the process ends
                self._directory = Path(self._temporary.name)
        return self._directory

    @contextlib.contextmanager
    def lock(self, report: Report) -> Iterator[None]:
        """Hold the directory's lock, so that of several first runs one compiles and the others wait for it."""
        try:
            handle = open(self.directory / "lock", "a+b")  # noqa: SIM115
        except OSError as error:
            self.warn(f"the compile cache can't be locked ({error})")
            yield
            return
        with handle:
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
            yield  # closing the file, or dying, gives the lock back


_store = _Store()


def cache_directory() -> Path:
    """Where this version's compiled kernels are."""
    return _store.directory


class _FileCache(_Cache):  # type: ignore[misc]
    """Numba's cache interface over one function's entries in the store."""

    def __init__(self, py_func: Callable[..., Any]) -> None:
        self._name = f"{py_func.__module__}.{py_func.__qualname__}"

    @property
    def cache_path(self) -> str:
        return str(_store.directory)

    def enable(self) -> None: ...

    def disable(self) -> None: ...

    def flush(self) -> None: ...

    def _path(self, sig: Any, codegen: Any) -> Path:
        key = hashlib.sha256(repr((sig, codegen.magic_tuple(), cpu.features())).encode()).hexdigest()[:16]
        return _store.directory / f"{re.sub('[^A-Za-z0-9_.]', '_', self._name)}.{key}.bin"

    def holds(self, sig: Any, target_context: Any) -> bool:
        """Whether there is a sound file for this signature on this CPU."""
        return self._payload(sig, target_context) is not None

    def _payload(self, sig: Any, target_context: Any) -> bytes | None:
        """The pickled machine code; None if there is none, or none that can be trusted."""
        path = self._path(sig, target_context.codegen())
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            _store.warn(f"the compile cache can't be read ({error})")
            return None
        if hashlib.sha256(data[_DIGEST_BYTES:]).digest() != data[:_DIGEST_BYTES]:
            _store.warn(f"{path} was damaged and is replaced", "compiling it again can take half a minute")
            return None
        return data[_DIGEST_BYTES:]

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        target_context.refresh()
        payload = self._payload(sig, target_context)
        return None if payload is None else CompileResult._rebuild(target_context, *pickle.loads(payload))

    def save_overload(self, sig: Any, data: Any) -> None:
        path = self._path(sig, data.codegen)
        payload = dumps(data._reduce())
        temporary = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}.tmp")
        try:
            temporary.write_bytes(hashlib.sha256(payload).digest() + payload)
            temporary.replace(path)
        except OSError as error:
            _store.warn(f"the compile cache can't be written ({error})")
            with contextlib.suppress(OSError):
                temporary.unlink()


def _rename(py_func: Callable[..., Any], name: str) -> None:
    py_func.__name__ = py_func.__qualname__ = name


def njit(
    function: Callable[..., Any] | None = None,
    *,
    cached: bool = False,
    inline: bool = False,
    nogil: bool = True,
    name: str | None = None,
) -> Any:
    """Compile a function in nopython mode: no bounds checks, division as NumPy has it, exact floats.

    `cached`: keep the machine code on disk. For functions that Python calls; those that only other compiled functions
    call become part of their callers' code. `nogil`: release the GIL; not worth it for a few microseconds, because
    getting it back can take a busy thread's whole turn. `name`: for a function that a factory makes, what it is called
    instead, with all that decides its code in it. The linker takes functions of one name for one function, and that of
    code from the disk for that of code which is there already. Raises TypeError for a closure without a name.
    """

    def decorate(py_func: Callable[..., Any]) -> Any:
        if name is not None:
            _rename(py_func, name)
        elif "<locals>" in py_func.__qualname__ and py_func.__closure__:
            raise TypeError(f"{py_func.__qualname__} is a closure: njit needs its `name`")
        dispatcher = numba.njit(nogil=nogil, error_model="numpy", inline="always" if inline else "never")(py_func)
        if cached:
            dispatcher._cache = _FileCache(py_func)
        return dispatcher

    return decorate if function is None else decorate(function)


class Job:
    """A function `(context: int64, thread: int64, num_threads: int64) -> None` that a thread team can run by its
    address. Compiled (or loaded from the cache) on first need."""

    _SIGNATURE = types.void(types.int64, types.int64, types.int64)

    def __init__(self, py_func: Callable[..., None], name: str | None = None) -> None:
        """`name` tells apart the functions that one factory makes, as in `njit`."""
        if name is not None:
            _rename(py_func, name)
        self.name = py_func.__name__.strip("_")
        options = {"nopython": True, "nogil": True, "error_model": "numpy"}
        signature = (self._SIGNATURE.args, self._SIGNATURE.return_type)
        self._cfunc: Any = CFunc(py_func, signature, locals={}, options=options)
        self._cfunc._cache = _FileCache(py_func)
        self._ready = False

    @property
    def address(self) -> int:
        """Address of the machine code."""
        if not self._ready:
            self._cfunc.compile()
            self._ready = True
        address: int = self._cfunc.address
        return address

    @property
    def function(self) -> Callable[[int, int, int], None]:
        """The job itself, for a thread on its own; the GIL is released while it runs."""
        address = self.address
        return _JOB_FUNCTION(address)

    def step(self) -> CompileStep:
        """This job's compilation, for `prepare`."""
        return CompileStep(self.name, lambda: self._ready or self._is_on_disk(), lambda: self.address)

    def _is_on_disk(self) -> bool:
        holds: bool = self._cfunc._cache.holds(self._cfunc._sig, self._cfunc._targetdescr.target_context)
        return holds


@dataclass(frozen=True)
class CompileStep:
    """One thing to compile ahead of its first use."""

    name: str
    is_cached: Callable[[], bool]
    """Whether its machine code is in memory or on disk."""
    compile: Callable[[], object]
    """Compile it, or load it from disk."""


def function_step(dispatcher: Any, signature: tuple[Any, ...]) -> CompileStep:
    """The compilation of a cached `njit` function for argument types `signature`."""
    return CompileStep(
        dispatcher.py_func.__name__.strip("_"),
        lambda: signature in dispatcher.overloads or dispatcher._cache.holds(signature, dispatcher.targetctx),
        lambda: dispatcher.compile(signature),
    )


def prepare(
    steps: Sequence[CompileStep], report: Report | None = None, *, what: str = "kernels", about_s: int = 20
) -> None:
    """Compile or load everything in `steps`.

    What is missing is compiled under the cache's lock, by one process at a time; `report` is told of it line by line,
    and of nothing when all of it is there. `what`, `about_s`: what the lines call the steps, and how long all of them
    can take.
    """
    if not all(step.is_cached() for step in steps):
        report = report or (lambda line: None)
        start = time.perf_counter()
        report(f"compiling {what} for this machine, once (about {about_s} s) ...")
        with _store.lock(report):
            missing = [step for step in steps if not step.is_cached()]
            for number, step in enumerate(missing, 1):
                report(f"compiling {step.name} ({number} of {len(missing)}) ...")
                step.compile()
        report(f"{what} ready in {time.perf_counter() - start:.1f} s")
    for step in steps:
        step.compile()
