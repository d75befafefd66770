"""Models in the Hugging Face hub's cache: found there without huggingface_hub, and without the network.

The layout is that of `huggingface_hub` ("Understand caching" in its documentation): `models--ORG--NAME/refs/REVISION`
holds a commit, `snapshots/COMMIT/` the files, most of them links into `blobs/`.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from nvg.errors import CheckpointError, shown
from nvg.files import open_file, weight_paths

SHORT_NAMES = {
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "distilgpt2": "distilbert/distilgpt2",
}
"""Names from before the hub had organisations, which it still takes, and the repositories' names now."""

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9_.]|-(?!-))*"  # "--" is the cache's own separator
_REPO_AND_REVISION = re.compile(rf"((?:{_NAME}/)?{_NAME})(?:@(\w[\w./+-]*))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_READ_NAME = re.compile(r"[\w.-]+\.(json|safetensors|txt|jinja)", re.ASCII)


@dataclass(frozen=True)
class HubName:
    """A model of the hub as the user calls it: `NAME`, `ORG/NAME`, either with `@REVISION`."""

    repo: str
    """With the organisation, for the names of SHORT_NAMES too."""
    revision: str = "main"
    """A branch, a tag or a commit of 40 hex digits."""

    @classmethod
    def parse(cls, text: str) -> HubName | None:
        """The name that `text` is; None if no model of the hub can be called that."""
        found = _REPO_AND_REVISION.fullmatch(text)
        if found is None or ".." in text:
            return None
        return cls(SHORT_NAMES.get(found[1], found[1]), found[2] or "main")

    @property
    def is_known(self) -> bool:
        """Whether the hub takes it: other names without an organisation are hardly models."""
        return "/" in self.repo

    def __str__(self) -> str:
        name = next((short for short, repo in SHORT_NAMES.items() if repo == self.repo), self.repo)
        return name if self.revision == "main" else f"{name}@{self.revision}"


@dataclass(frozen=True)
class HubModel:
    """A model that is in the cache."""

    name: HubName
    directory: Path
    num_bytes: int
    """Of the files of this revision; other revisions may share some of them."""
    is_complete: bool
    """Whether all of its weights are there."""


def hub_cache() -> Path:
    """Where the cache is: HF_HUB_CACHE, else HF_HOME + "hub", else the user's cache directory + "huggingface/hub"."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if directory := os.environ.get(variable):
            return Path(os.path.expanduser(os.path.expandvars(directory)))
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    return Path(os.path.expanduser(os.path.expandvars(home)), "hub")


def find(name: HubName) -> Path | None:
    """The directory of a model's revision, if its config.json is there."""
    repos = [name.repo, *(short for short, repo in SHORT_NAMES.items() if repo == name.repo)]
    for directory in (hub_cache() / f"models--{repo.replace('/', '--')}" for repo in repos):
        snapshot = _snapshot(directory, name.revision)
        if snapshot is not None and (snapshot / "config.json").is_file():
            return snapshot
    return None


def cached_models(model_type: str = "gpt2") -> list[HubModel]:
    """Every revision of a model of that type that has a name: a branch or a tag."""
    models = []
    for directory in sorted(hub_cache().glob("models--*")):
        repo = directory.name.removeprefix("models--").replace("--", "/")
        for reference in sorted((directory / "refs").rglob("*")):
            name = HubName.parse(f"{repo}@{reference.relative_to(directory / 'refs').as_posix()}")
            snapshot = _snapshot(directory, name.revision) if name else None
            if name and snapshot is not None and _is_of_type(snapshot / "config.json", model_type):
                models.append(HubModel(name, snapshot, _size(snapshot), has_weights(snapshot)))
    return models


def has_weights(directory: Path) -> bool:
    """Whether all files of a model's weights are there; they may be damaged."""
    try:
        return all(path.exists() for path in weight_paths(directory))
    except CheckpointError:
        return (directory / "model.safetensors.index.json").exists()


def refuse_links_out(directory: Path) -> None:
    """Raise CheckpointError for a model's file that is a link to elsewhere.

    Files must be in the directory itself or, for one in the hub's cache, among its repository's `blobs`: whoever made
    the directory must not choose what else of this machine is read.
    """
    roots = [os.path.realpath(directory)]
    if directory.parent.name == "snapshots":
        roots.append(os.path.realpath(directory.parent.parent / "blobs"))
    with os.scandir(directory) as entries:
        links = [entry.path for entry in entries if entry.is_symlink() and _READ_NAME.fullmatch(entry.name)]
    for link in links:
        target = os.path.realpath(link)
        if not any(target.startswith(root + os.sep) for root in roots):
            raise CheckpointError(
                f"{link} is a link to {shown(target, 300)}, outside of the model's directory; put the file itself there"
            )


def _snapshot(repo_directory: Path, revision: str) -> Path | None:
    """The directory of a revision's files."""
    commit = revision
    if not _COMMIT.fullmatch(revision):
        try:
            with open_file(repo_directory / "refs" / revision) as file:
                commit = file.read(100).decode("ascii", "replace").strip()
        except (OSError, CheckpointError):
            return None
    directory = repo_directory / "snapshots" / commit
    return directory if _COMMIT.fullmatch(commit) and directory.is_dir() and not directory.is_symlink() else None


def _is_of_type(config: Path, model_type: str) -> bool:
    import json

    try:
        with open_file(config) as file:
            return bool(json.loads(file.read(1 << 20)).get("model_type") == model_type)
    except (OSError, CheckpointError, ValueError, RecursionError, AttributeError):  # the last: not an object
        return False


def _size(directory: Path) -> int:
    total = 0
    for file in directory.iterdir():
        with contextlib.suppress(OSError):  # a link to a blob that is gone
            total += file.stat().st_size
    return total
