"""Code that is somebody else's: running it, files of it as modules, and where an object of it is from."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import reprlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from nvg.errors import PluginError, cause

_FILE_MODULE = "nvg_file_"
_file_modules: dict[str, str] = {}
"""Names of modules that `run_file` has run -> their files."""

# What running somebody's module may end in: a module that calls sys.exit() must not end the process.
FOREIGN_FAULTS = (Exception, SystemExit)


_running = threading.local()


@contextlib.contextmanager
def foreign_code() -> Iterator[None]:
    """Somebody's module is run in this thread: what it prints is not the program's own output."""
    _running.depth = getattr(_running, "depth", 0) + 1
    try:
        yield
    finally:
        _running.depth -= 1


def in_foreign_code() -> bool:
    """Whether this thread runs a plugin's module just now."""
    return getattr(_running, "depth", 0) > 0


def location(target: Any) -> str:
    """Where an object is: "package.module:Name", or "file.py:Name"; its repr where it does not say."""
    module, name = getattr(target, "__module__", None), getattr(target, "__qualname__", None)
    if module is None or name is None:
        return reprlib.repr(target)
    return f"{_file_modules.get(module, module)}:{name}"


def run_file(path: Path) -> ModuleType:
    """The file as a module; the same text at the same path is run once, so that its classes keep their identity.

    Raises PluginError for whatever comes of it.
    """
    try:
        source = path.read_bytes()
        digest = hashlib.sha256(str(path.resolve()).encode() + b"\0" + source).hexdigest()[:16]
        unique = f"{_FILE_MODULE}{digest}_{path.stem}"
        if unique not in sys.modules:
            name = _import_name(path) or unique
            module = ModuleType(name)
            module.__file__ = str(path)
            # Dataclasses look their annotations up there, and numba's cache on disk the functions' module.
            sys.modules[name] = sys.modules[unique] = module
            try:
                with foreign_code():
                    exec(compile(source, str(path), "exec"), vars(module))
            except BaseException:
                sys.modules.pop(name, None)
                sys.modules.pop(unique, None)
                raise
            _file_modules[name] = str(path)
        return sys.modules[unique]
    except FOREIGN_FAULTS as error:
        raise PluginError(f"sampler file {str(path)!r} failed: {cause(error)}") from error


def _import_name(path: Path) -> str | None:
    """The name that the file is imported by as a module or as a part of its package: what numba caches beside it names
    that module, however it is run. None where the name is another module's, or none."""
    path = path.resolve()
    names, directory, top = [path.stem], path.parent, path
    while (directory / "__init__.py").is_file() and directory.name.isidentifier():
        names.insert(0, directory.name)
        directory, top = directory.parent, directory / "__init__.py"
    name = ".".join(names)
    if not path.stem.isidentifier() or name in sys.modules or names[0] in sys.stdlib_module_names:
        return None
    try:
        found = importlib.util.find_spec(names[0])
    except (ImportError, ValueError):
        return None
    if found is not None and (found.origin is None or Path(found.origin).resolve() != top):
        return None
    return name
