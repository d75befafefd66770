"""The plugin manager: names of samplers, tokenizers and model types -> objects.

A plugin is a module that implements hooks of `nvg.hookspecs` and is named in the entry point group `nvg` of its
distribution. nvg's own names are registered through the same hooks (`nvg.builtins`). Listing names imports plugin
modules but none of their targets. One sampler in a plain file needs no plugin: `sampler_entry("file.py:Name")`.

The environment variable NVG_LOAD_PLUGINS restricts what is loaded: a comma-separated list of distributions; empty
means none. This module imports neither numpy nor numba.
"""

from __future__ import annotations

import difflib
import importlib
import os
import re
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import pluggy

from nvg import builtins, hookspecs
from nvg.errors import ParameterError, PluginError, UnknownNameError, cause
from nvg.foreign import FOREIGN_FAULTS, foreign_code, location, run_file

ENTRY_POINT_GROUP = "nvg"
LOAD_VARIABLE = "NVG_LOAD_PLUGINS"
BUILT_IN = "nvg (built in)"
COMMANDS_GROUP = "nvg.commands"

# kind -> (its hook, the methods of which every target of that kind has one)
_KINDS = {
    "sampler": ("nvg_register_samplers", ("apply", "start")),
    "tokenizer": ("nvg_register_tokenizers", ("from_dir",)),
    "model": ("nvg_register_models", ("from_checkpoint",)),
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_FILE = re.compile(r"(?P<path>.+\.py)(?::(?P<attribute>.*))?")


def is_sampler(target: object) -> bool:
    """Whether a spec, or its class, has `apply`, or `start` to make what has it."""
    return any(callable(getattr(target, method, None)) for method in _KINDS["sampler"][1])


def unknown_name(what: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """The error for a name that does not exist: suggests the nearest of `known` and lists them all."""
    known = sorted(known)
    nearest = difflib.get_close_matches(name.lower(), known, n=1)
    suggestion = f"; did you mean {nearest[0]!r}?" if nearest else "."
    listing = f"There are: {', '.join(known)}" if known else "There are none"
    return UnknownNameError(f"no {what} is called {name!r}{suggestion} {listing}")


@dataclass(frozen=True)
class Entry:
    """One registered name."""

    kind: str
    """"sampler", "tokenizer" or "model"."""
    name: str
    target: Any
    """An object, or where it is: "package.module:Name"."""
    origin: str
    """The distribution and its version, "nvg (built in)", or the path of a file."""

    @property
    def location(self) -> str:
        """Where the target is, as `location` writes it."""
        return self.target if isinstance(self.target, str) else location(self.target)

    @property
    def title(self) -> str:
        """How messages name it: "sampler 'topp' of nvg (built in)"."""
        return f"{self.kind} {self.name!r} of {self.origin}"

    def load(self) -> Any:
        """The target; imports its module on first use.

        Raises PluginError when it can't be imported or isn't what its kind asks for.
        """
        target = self.target
        if isinstance(target, str):
            module, _, path = target.partition(":")
            try:
                with foreign_code():
                    target = importlib.import_module(module)
                for attribute in path.split("."):
                    target = getattr(target, attribute)
            except FOREIGN_FAULTS as error:
                raise PluginError(f"{self.title} could not be imported from {self.target}: {cause(error)}") from error
        required = _KINDS[self.kind][1]
        if not any(callable(getattr(target, method, None)) for method in required):
            raise PluginError(f"{self.title} is no {self.kind}: {self.location} has no method {required[0]}()")
        return target


@dataclass(frozen=True)
class BrokenPlugin:
    """A plugin that could not be loaded; none of its names exist."""

    name: str
    origin: str
    reason: str
    """One line for the user, which names the plugin and its distribution."""


class Names:
    """The registered names of one kind, sorted: `names[name]`, `name in names`, iteration and `len`."""

    def __init__(self, kind: str, entries: Iterable[Entry], broken: int) -> None:
        self._kind = kind
        self._broken = broken
        self._by_name: dict[str, list[Entry]] = {}
        for entry in sorted(entries, key=lambda entry: entry.name):
            self._by_name.setdefault(entry.name, []).append(entry)

    def __getitem__(self, name: str) -> Entry:
        """The one entry of that name. Raises UnknownNameError, or PluginError where two claim it."""
        found = self._by_name.get(name, [])
        if not found:
            error = unknown_name(self._kind, name, self._by_name)
            if self._broken:
                error = UnknownNameError(f"{error} ({self._broken} broken plugin(s) left out; see `nvg plugins`)")
            raise error
        if len(found) > 1:
            raise PluginError(self._clash(found))
        return found[0]

    def built_in(self, name: str) -> Entry:
        """nvg's own entry of that name, whoever else claims it. Raises UnknownNameError."""
        own = [entry for entry in self._by_name.get(name, []) if entry.origin == BUILT_IN]
        return own[0] if own else self[name]

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def names(self) -> list[str]:
        """All names, sorted."""
        return list(self._by_name)

    def entries(self) -> list[Entry]:
        """All entries, sorted by name; a name that two plugins claim is there twice."""
        return [entry for found in self._by_name.values() for entry in found]

    def clashes(self) -> list[str]:
        """One line for each name that can't be used because more than one plugin claims it."""
        return [self._clash(found) for found in self._by_name.values() if len(found) > 1]

    def load(self, name: str) -> Any:
        """The target of that name. Raises UnknownNameError or PluginError."""
        return self[name].load()

    def entry_of(self, target: Any) -> Entry | None:
        """The entry whose target this is, found without importing; None for an unregistered one."""
        location = f"{getattr(target, '__module__', '')}:{getattr(target, '__qualname__', '')}"
        return next((entry for entry in self.entries() if entry.target is target or entry.target == location), None)

    def _clash(self, found: list[Entry]) -> str:
        claims = " and ".join(f"{entry.origin} ({entry.location})" for entry in found)
        return (
            f"{self._kind} {found[0].name!r} is registered twice, by {claims}; uninstall one, or leave it out of "
            f"{LOAD_VARIABLE}"
        )


class Registry:
    """What is registered. `registry()` gives the process's own; tests may build more.

    load_plugins: as NVG_LOAD_PLUGINS: None loads all installed plugins, "" none, else the distributions it lists.
    """

    def __init__(self, load_plugins: str | None = None) -> None:
        self.broken: list[BrokenPlugin] = []
        """Plugins that failed to load; they break nothing else."""
        self._entries: dict[str, list[Entry]] = {}  # plugin's name -> what it registered
        self._manager = pluggy.PluginManager(ENTRY_POINT_GROUP)
        self._manager.add_hookspecs(hookspecs)
        self.register(builtins, "nvg.builtins", BUILT_IN)
        for point in plugin_entry_points(ENTRY_POINT_GROUP, load_plugins):
            self._register_entry_point(point)
        self._report_missing(load_plugins)

    @property
    def samplers(self) -> Names:
        """Samplers; a target is a spec class."""
        return self._names("sampler")

    @property
    def tokenizers(self) -> Names:
        """Tokenizers; a target has `from_dir(path)`."""
        return self._names("tokenizer")

    @property
    def models(self) -> Names:
        """Models by `model_type`; a target has `from_checkpoint(config, tensors, engine_config)`."""
        return self._names("model")

    def register(self, plugin: object, name: str, origin: str | None = None) -> None:
        """Add a plugin: a module, or any object, with functions marked by `nvg.hookimpl`.

        name: what `unregister` takes. origin: how messages say where it is from; None means `name`.

        Raises PluginError, and registers nothing, if it is not a sound plugin.
        """
        try:
            self._add(plugin, name, origin or name)
        except FOREIGN_FAULTS as error:
            raise PluginError(_not_loaded(name, origin or name, error)) from error

    def unregister(self, name: str) -> None:
        """Remove a plugin and its names. Raises UnknownNameError."""
        if name not in self._entries:
            raise unknown_name("plugin", name, self._entries)
        self._manager.unregister(name=name)
        del self._entries[name]

    def warnings(self) -> list[str]:
        """One line for each broken plugin and each name that is registered twice."""
        clashes = [line for kind in _KINDS for line in self._names(kind).clashes()]
        return [plugin.reason for plugin in self.broken] + clashes

    def _names(self, kind: str) -> Names:
        entries = (entry for found in self._entries.values() for entry in found if entry.kind == kind)
        return Names(kind, entries, len(self.broken))

    def _add(self, plugin: object, key: str, origin: str) -> None:
        """Register with pluggy and run the plugin's hooks; all of it or nothing."""
        if self._manager.has_plugin(key) or self._manager.is_registered(plugin):
            raise PluginError("it is registered already")
        entries: list[Entry] = []
        try:
            self._manager.register(plugin, key)
            self._manager.check_pending()  # a hook that nvg does not have
            if not self._manager.get_hookcallers(plugin):
                raise PluginError("it implements no hook; mark its functions with @nvg.hookimpl")
            others = [other for other in self._manager.get_plugins() if other is not plugin]
            for kind, (hook, _) in _KINDS.items():
                self._manager.subset_hook_caller(hook, others)(register=_recorder(kind, origin, entries))
        except BaseException:
            if self._manager.is_registered(plugin):
                self._manager.unregister(plugin)
            raise
        self._entries[key] = entries

    def _register_entry_point(self, point: EntryPoint) -> None:
        origin = _origin(point)
        try:
            # Two distributions may use one entry point name: the distribution makes it unique.
            with foreign_code():
                self._add(point.load(), f"{_distribution(point)}:{point.name}", origin)
        except FOREIGN_FAULTS as error:
            self.broken.append(BrokenPlugin(point.name, origin, _not_loaded(point.name, origin, error)))

    def _report_missing(self, load_plugins: str | None) -> None:
        wanted = _wanted(load_plugins)
        if not wanted:
            return
        points = (point for group in (ENTRY_POINT_GROUP, COMMANDS_GROUP) for point in entry_points(group=group))
        present = {_normalised(_distribution(point)) for point in points}
        for name in sorted(wanted - present):
            reason = f"{LOAD_VARIABLE} names {name!r}, but no distribution of that name with an nvg plugin is installed"
            self.broken.append(BrokenPlugin(name, LOAD_VARIABLE, reason))


def plugin_entry_points(group: str, load_plugins: str | None) -> list[EntryPoint]:
    """The installed entry points of a group (`nvg`, `nvg.commands`) that NVG_LOAD_PLUGINS, given, lets through.

    Reads metadata only, sorted by distribution and name.
    """
    wanted = _wanted(load_plugins)
    if wanted is not None and not wanted:
        return []
    points = [
        point for point in entry_points(group=group) if wanted is None or _normalised(_distribution(point)) in wanted
    ]
    return sorted(points, key=lambda point: (_normalised(_distribution(point)), point.name))


def file_sampler(reference: str) -> Entry:
    """The sampler that "path/to/file.py:Name" refers to; runs the file.

    Raises ParameterError for a missing file or name, UnknownNameError for a name that isn't in the file, PluginError
    when the file fails or the name is no sampler.
    """
    match = _FILE.fullmatch(reference)
    if match is None:
        raise ParameterError(f"sampler {reference!r} is no file's; write path/to/file.py:Name")
    path = Path(match["path"]).expanduser()
    if not path.is_file():
        raise ParameterError(f"sampler {reference!r}: there is no file {str(path)!r}")
    module = run_file(path)
    candidates = [
        name
        for name, value in vars(module).items()
        if isinstance(value, type) and value.__module__ == module.__name__ and is_sampler(value)
    ]
    name = match["attribute"]
    if not name:
        choices = " or ".join(f"{match['path']}:{candidate}" for candidate in candidates) or "but it defines no sampler"
        raise ParameterError(f"sampler {reference!r}: say which class of the file is meant: {choices}")
    if not hasattr(module, name):
        raise unknown_name(f"sampler in {match['path']}", name, candidates)
    return Entry("sampler", name, getattr(module, name), match["path"])


def sampler_entry(name: str) -> Entry:
    """The sampler of a registered name, or of "path/to/file.py:Name". Raises as `Names` and `file_sampler` do."""
    return file_sampler(name) if _FILE.fullmatch(name) else registry().samplers[name]


def load_sampler(name: str) -> type:
    """The spec class of a registered name, or of "path/to/file.py:Name"."""
    target: type = sampler_entry(name).load()
    return target


def _recorder(kind: str, origin: str, entries: list[Entry]) -> hookspecs.Register:
    """The `register` that a plugin's hook is called with: notes down what it gets."""

    def register(name: str, target: Any) -> None:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise PluginError(f"it registers a {kind} as {name!r}; a name is letters, digits, '-' and '_'")
        if isinstance(target, str) and not _TARGET.fullmatch(target):
            raise PluginError(f"it registers {kind} {name!r} at {target!r}; that must be 'package.module:Name'")
        entries.append(Entry(kind, name, target, origin))

    return register


def _wanted(load_plugins: str | None) -> set[str] | None:
    """The distributions that NVG_LOAD_PLUGINS lists; None means all."""
    if load_plugins is None:
        return None
    return {_normalised(name.strip()) for name in load_plugins.split(",") if name.strip()}


def _normalised(distribution: str) -> str:
    """A distribution's name as packaging compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _distribution(point: EntryPoint) -> str:
    # Metadata may be damaged, and then it is the point's module that says most.
    return (point.dist.metadata["Name"] if point.dist else None) or point.value


def _origin(point: EntryPoint) -> str:
    version = point.dist.metadata["Version"] if point.dist else None
    return f"{_distribution(point)} {version}" if version else _distribution(point)


def _not_loaded(name: str, origin: str, error: BaseException) -> str:
    return f"plugin {name!r} of {origin} is not loaded: {cause(error)}"


_lock = threading.Lock()
_registry: Registry | None = None


def registry() -> Registry:
    """The process's registry, made on first use from the installed plugins and NVG_LOAD_PLUGINS."""
    global _registry
    with _lock:
        if _registry is None:
            _registry = Registry(os.environ.get(LOAD_VARIABLE))
        return _registry
