"""Presets: chains with a name, built in or one's own, each a TOML file.

    description = "Cautious, but never twice the same."
    sampler = [
        {name = "dry", options = {multiplier = 1.0}},
        "topp",
        {name = "temperature", options = {t = 0.6}},
    ]

`sampler` is what `SamplingParams.sampler` takes. One's own are in `presets/` of the directory for configuration.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvg.errors import ParameterError
from nvg.params import SamplingParams
from nvg.plugins import unknown_name
from nvg.sampling.chain import Stage
from nvg.sampling.compose import DEFAULT_CHAIN, own_chain, resolve

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_KEYS = ("description", "sampler")
BUILT_IN_ORIGIN = "built in"


@dataclass(frozen=True)
class Preset:
    """A named chain."""

    name: str
    description: str
    sampler: Any
    """As `SamplingParams.sampler`; in a built-in one, pairs of a name and options in the canonical order."""
    origin: str
    """`BUILT_IN_ORIGIN`, or the path of its file."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Its chain; a built-in preset's is of nvg's own samplers, even where a plugin claims their names.

        Raises ParameterError, which names the preset, or PluginError.
        """
        if self.origin == BUILT_IN_ORIGIN:
            return own_chain({}, self.sampler)
        try:
            return resolve(SamplingParams(sampler=self.sampler))
        except ParameterError as error:
            raise type(error)(f"preset {self.name!r} ({self.origin}): {error}") from error


_BUILT_IN: tuple[tuple[str, str, tuple[tuple[str, Mapping[str, Any]], ...]], ...] = (
    ("balanced", "The command line's default.", DEFAULT_CHAIN),
    (
        "precise",
        "Stays with what is probable.",
        (("topk", {"k": 20}), ("topp", {"p": 0.8}), ("temperature", {"t": 0.4})),
    ),
    (
        "creative",
        "Often passes over the most probable, and cuts off the improbable.",
        (("minp", {"p": 0.05}), ("xtc", {"probability": 0.5, "threshold": 0.1}), ("temperature", {"t": 1.0})),
    ),
    (
        "fresh",
        "The default, but what was said is said again less often.",
        (("penalties", {"repetition": 1.1, "last_n": 256}), ("dry", {"multiplier": 0.8}), *DEFAULT_CHAIN),
    ),
    ("even", "Keeps the surprise of the text near 5 bits a token.", (("mirostat2", {"tau": 5.0, "eta": 0.1}),)),
    ("greedy", "Always the most probable token.", (("greedy", {}),)),
)
_BUILT_IN_NAMES = tuple(name for name, *_ in _BUILT_IN)


def config_root() -> Path:
    """`NVG_CONFIG_DIR`, else the platform's directory for configuration + "nvg"."""
    if directory := os.environ.get("NVG_CONFIG_DIR"):
        return Path(directory)
    if sys.platform == "win32":
        return Path(os.environ.get("APPDATA") or Path.home() / "AppData" / "Roaming") / "nvg"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "nvg"
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "nvg"


def preset_names() -> list[str]:
    """All names: the built-in ones, then one's own, sorted."""
    return [*_BUILT_IN_NAMES, *sorted(_own())]


def preset_warnings() -> list[str]:
    """A line for each file among one's own presets that no name leads to."""
    lines = []
    for path in sorted((config_root() / "presets").glob("*.toml")):
        if path.stem in _BUILT_IN_NAMES:
            lines.append(f"preset file {str(path)!r} has a built-in preset's name, and is left out; rename it")
        elif not _NAME.fullmatch(path.stem):
            lines.append(f"preset file {str(path)!r} is left out: a name is letters, digits, '-' and '_'; rename it")
    return lines


def find_preset(name: str) -> Preset:
    """The preset of that name, or of a TOML file, if the name ends with ".toml".

    Raises UnknownNameError, or ParameterError for a file that can't be read or is no preset.
    """
    if name.endswith(".toml"):
        return _read(Path(name).expanduser())
    for built_in, description, sampler in _BUILT_IN:
        if built_in == name:
            return Preset(name, description, sampler, BUILT_IN_ORIGIN)
    own = _own()
    if name not in own:
        raise unknown_name("preset", name, preset_names())
    return _read(own[name])


def save_preset(name: str, description: str, stages: Sequence[Stage], *, replace: bool = False) -> Path:
    """Write a preset of one's own; returns its path.

    Raises ParameterError for a name that is malformed, built in, or taken and not to be replaced.
    """
    if not _NAME.fullmatch(name):
        raise ParameterError(f"preset name {name!r} is not letters, digits, '-' and '_'")
    if name in _BUILT_IN_NAMES:
        raise ParameterError(f"preset {name!r} is built in; choose another name")
    path = config_root() / "presets" / f"{name}.toml"
    if path.exists() and not replace:
        raise ParameterError(f"preset {name!r} exists ({path}); --replace it, or choose another name")
    text = to_toml(description, stages)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8", newline="\n") as file:
        try:
            file.write(text)
            file.close()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
    return path


def remove_preset(name: str) -> Path:
    """Delete a preset of one's own; returns the path that it had. Raises UnknownNameError."""
    own = _own()
    if name not in own:
        raise unknown_name("preset of your own", name, own)
    own[name].unlink()
    return own[name]


def to_toml(description: str, stages: Sequence[Stage]) -> str:
    """A preset's file: every option of every stage that has a value.

    Raises ParameterError for a stage that no file can name.
    """
    lines = [f"    {_toml(_item(stage))},\n" for stage in stages]
    chain = f"[\n{''.join(lines)}]" if lines else "[]"
    return f"description = {_toml(description)}\nsampler = {chain}\n"


def _own() -> dict[str, Path]:
    found = (config_root() / "presets").glob("*.toml")
    return {path.stem: path for path in found if _NAME.fullmatch(path.stem) and path.stem not in _BUILT_IN_NAMES}


def _read(path: Path) -> Preset:
    try:
        read = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParameterError(f"there is no preset file {str(path)!r}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ParameterError(f"preset file {str(path)!r} can't be read: {reason}") from error
    for key in read:
        if key not in _KEYS:
            raise unknown_name(f"key of a preset ({path})", key, _KEYS)
    description, sampler = read.get("description", ""), read.get("sampler")
    if not isinstance(description, str) or not isinstance(sampler, (str, list)):
        raise ParameterError(f"preset file {str(path)!r} needs sampler = [...], and a description is text")
    items = [sampler] if isinstance(sampler, str) else sampler
    return Preset(path.stem, description, [_beside(item, path.parent) for item in items], str(path))


def _beside(item: Any, directory: Path) -> Any:
    """`item`, with the path of a sampler's file taken from the preset's directory."""
    if isinstance(item, str) and ".py:" in item:
        return str(directory / Path(item).expanduser())
    if isinstance(item, Mapping) and "name" in item:
        return {**item, "name": _beside(item["name"], directory)}
    return item


def _item(stage: Stage) -> Any:
    """A stage as files write it."""
    if not dataclasses.is_dataclass(stage.spec):
        raise ParameterError(f"sampler {stage.name!r} is an object without options; a preset needs a sampler's name")
    name = f"{os.path.abspath(stage.origin)}:{stage.name}" if stage.origin.endswith(".py") else stage.name
    values = {field.name: getattr(stage.spec, field.name) for field in dataclasses.fields(stage.spec) if field.init}
    options = {option: value for option, value in values.items() if value is not None}
    return {"name": name, "options": options} if options else name


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # JSON's text, but for DEL, is TOML's
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_key(key)} = {_toml(item)}' for key, item in value.items())}}}"
    if isinstance(value, Sequence):
        return f"[{', '.join(map(_toml, value))}]"
    raise ParameterError(f"{value!r} can't be written to a preset")


def _key(key: Any) -> str:
    return str(key) if _NAME.fullmatch(str(key)) else _toml(str(key))
