"""New plugins: the templates in nvg/data/templates, with a name filled in."""

from __future__ import annotations

import keyword
import re
from pathlib import Path
from typing import Literal

from nvg.errors import ParameterError
from nvg.plugins import registry

Kind = Literal["sampler", "tokenizer"]
TEMPLATES = Path(__file__).parent / "data" / "templates"
_NAME = re.compile(r"[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*")


def write_plugin(kind: Kind, name: str, directory: Path | None = None) -> list[Path]:
    """Write a plugin package that works, and return its files.

    name: what the sampler or tokenizer is called; the distribution is "nvg-NAME". directory: where to; "nvg-NAME" in
    the working directory by default.

    Raises ParameterError for a name that can't be one, or is taken, and for a directory that exists.
    """
    if not _NAME.fullmatch(name) or keyword.iskeyword(name.capitalize()):
        raise ParameterError(f"name {name!r} can't be a plugin's: use lower-case letters and digits, joined by - or _")
    names = registry().samplers if kind == "sampler" else registry().tokenizers
    for entry in names.entries():
        if entry.name == name:
            raise ParameterError(f"{entry.title} exists already: take another name")
    words = re.split("[-_]", name)
    filled = {
        "NAME": name,
        "DISTRIBUTION": "-".join(["nvg", *words]),
        "MODULE": "_".join(["nvg", *words]),
        "CLASS": "".join(word.capitalize() for word in words),
    }
    target = Path(filled["DISTRIBUTION"]) if directory is None else directory
    if target.exists():
        raise ParameterError(f"{str(target)!r} exists already: take another name, or say where to with --directory")
    written = []
    for template in sorted((TEMPLATES / kind).rglob("*.in")):
        place = template.relative_to(TEMPLATES / kind).with_suffix("")
        path = target / place.with_name(place.name.replace("module", filled["MODULE"]))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(re.sub("@([A-Z]+)@", lambda match: filled[match[1]], template.read_text("utf-8")), "utf-8")
        written.append(path)
    return written
