"""The one file that imports njit: compiles kernels once per machine into a private cache.

The cache's directory is keyed (`kernel_store`); each entry's name holds the signature, the CPU's name, its features and
what of these is used. Entries are pickles: the directory is private (0700), and each file carries a digest that is
checked before it is loaded, because damaged machine code would crash rather than fail. A cache that can't be used costs
a recompilation and one warning, never the run; one that can't be written is used as it is.
"""

from __future__ import annotations

import ctypes
import hashlib
import pickle
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numba
from numba.core import types
from numba.core.caching import _Cache
from numba.core.ccallback import CFunc
from numba.core.compiler import CompileResult
from numba.core.registry import CPUDispatcher
from numba.core.serialize import dumps

from nvg.runtime import cpu
from nvg.runtime.caches import make_private, open_regular, replacing
from nvg.runtime.compile_helper import Work, helper, is_worthwhile
from nvg.runtime.kernel_store import Report, store

_JOB_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
_DIGEST_BYTES = hashlib.sha256().digest_size


class _FileCache(_Cache):  # type: ignore[misc]
    """Numba's cache interface over one function's entries in the store."""

    def __init__(self, py_func: Callable[..., Any]) -> None:
        self._name = f"{py_func.__module__}.{py_func.__qualname__}"

    @property
    def cache_path(self) -> str:
        return str(store.directory or "")

    def enable(self) -> None: ...

    def disable(self) -> None: ...

    def flush(self) -> None: ...

    def _path(self, sig: Any, codegen: Any) -> Path | None:
        if store.directory is None:
            return None
        key = hashlib.sha256(repr((sig, codegen.magic_tuple(), cpu.features())).encode()).hexdigest()[:16]
        return store.directory / f"{re.sub('[^A-Za-z0-9_.]', '_', self._name)}.{key}.bin"

    def holds(self, sig: Any, target_context: Any) -> bool:
        """Whether there is a sound file for this signature on this CPU."""
        return self._payload(sig, target_context) is not None

    def _payload(self, sig: Any, target_context: Any) -> bytes | None:
        """The pickled machine code; None if there is none, or none that can be trusted."""
        path = self._path(sig, target_context.codegen())
        if path is None:
            return None
        try:
            with open_regular(path) as file:
                data = file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            store.warn(f"the compile cache can't be read ({error})")
            return None
        if hashlib.sha256(data[_DIGEST_BYTES:]).digest() != data[:_DIGEST_BYTES]:
            store.warn(f"{path} was damaged and is replaced", "compiling it again can take half a minute")
            return None
        return data[_DIGEST_BYTES:]

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        target_context.refresh()
        payload = self._payload(sig, target_context)
        return None if payload is None else CompileResult._rebuild(target_context, *pickle.loads(payload))

    def save_overload(self, sig: Any, data: Any) -> None:
        path = self._path(sig, data.codegen)
        if path is None:
            return
        payload = dumps(data._reduce())
        try:
            make_private(path.parent)
            with replacing(path) as file:
                file.write(hashlib.sha256(payload).digest() + payload)
        except OSError as error:
            store.fail(f"the compile cache can't be written ({error})")


class _Inner(CPUDispatcher):  # type: ignore[misc]
    """A function that compiled functions call. It lacks what Python would call it through, which is a sixth of all
    compiling; if Python does call it, it is compiled once more, with that."""

    @cached_property
    def _outer(self) -> Any:
        options = {**self.targetoptions, "no_cpython_wrapper": False}
        return CPUDispatcher(self.py_func, targetoptions=options)

    def __call__(self, *args: Any) -> Any:
        return self._outer(*args)


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
        options = {"nogil": nogil, "error_model": "numpy", "inline": "always" if inline else "never"}
        if cached:
            dispatcher = numba.njit(**options)(py_func)
            dispatcher._cache = _FileCache(py_func)
        else:
            dispatcher = numba.njit(**options, no_cpython_wrapper=True, no_cfunc_wrapper=True)(py_func)
            dispatcher.__class__ = _Inner
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
    source: tuple[str, tuple[Any, ...]] | None = None
    """Where another process finds it: a module of nvg, and arguments of its `compile_steps`, which JSON can hold."""

    def found_in(self, module: str, *arguments: Any) -> CompileStep:
        """This step, with that source."""
        return replace(self, source=(module, arguments))


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

    What is missing is compiled under the cache's lock, by one process at a time and its helper, in the order of
    `steps`: put the longest first. `report` is told of it line by line, maybe in another thread, and of nothing when
    all of it is there. `what`, `about_s`: what the lines call the steps, and how long all of them can take.
    """
    if not all(step.is_cached() for step in steps):
        report = report or (lambda line: None)
        start = time.perf_counter()
        report(f"compiling {what} for this machine, once (about {about_s} s) ...")
        with store.lock(report) as can_be_kept:
            missing = [step for step in steps if not step.is_cached()]
            work = Work(missing, report)
            if can_be_kept and is_worthwhile(missing):
                with helper(work) as wait_for_helper:
                    _compile(work)
                    wait_for_helper()
            _compile(work)
        report(f"{what} ready in {time.perf_counter() - start:.1f} s")
    for step in steps:
        step.compile()


def _compile(work: Work) -> None:
    for step in work:
        step.compile()
