"""Downloads a model's files into the hub's cache with huggingface_hub, which is imported when that is asked for."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from nvg._version import __version__
from nvg.errors import CheckpointError, ModelNotFoundError, NvgError, cause
from nvg.files import SHARD_NAME, size_text
from nvg.hub_cache import HubName, find, hub_cache

_SHA256 = re.compile(r"[0-9a-f]{64}")


def pull(name: HubName, check: Callable[[Path], object], report: Callable[[str], None]) -> Path:
    """Download what is missing of a model, and only what nvg reads; the directory that holds it.

    What a cut connection left is asked for from there on, as often as huggingface_hub tries again; what there is when
    the process ends, in whatever way, stays, so the same call again gets the rest. `check` looks at the directory when
    there is nothing but config.json in it, and may raise. `report` is told of each file that came.

    Raises ModelNotFoundError for what is not there or not for this user, CheckpointError for a repository without
    safetensors files, NvgError for other failures and without huggingface_hub.
    """
    try:
        import huggingface_hub
        from huggingface_hub import utils
    except ImportError as error:
        raise NvgError(
            f"downloading needs huggingface_hub: `pip install 'nvg[hub]'` installs it ({cause(error)})"
        ) from error
    if not sys.stderr.isatty():
        utils.disable_progress_bars()

    def fetch(file: str, revision: str) -> Path | None:
        """The file; None if the repository has none of that name."""
        who = {"library_name": "nvg", "library_version": __version__}
        endpoint = os.environ.get("HF_ENDPOINT")
        try:
            if file.endswith(".safetensors") and not (directory / file).exists():
                url = huggingface_hub.hf_hub_url(name.repo, file, revision=revision, endpoint=endpoint)
                _fetch_blob(directory.parent.parent, name, file, url, who)
            path = huggingface_hub.hf_hub_download(
                name.repo, file, revision=revision, cache_dir=hub_cache(), endpoint=endpoint, **who
            )
        except utils.LocalEntryNotFoundError as error:  # no answer, and nothing in the cache
            raise NvgError(f"{file} of {name} could not be downloaded: {cause(error.__cause__ or error)}") from error
        except utils.EntryNotFoundError:
            return None
        except NvgError:
            raise
        except Exception as error:
            raise _failure(name, file, error, utils) from error
        report(f"{file}: {size_text(os.stat(path).st_size)}")
        return Path(path)

    if find(name) is None and "HF_HUB_OFFLINE" not in os.environ:
        _check_network(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    config = fetch("config.json", name.revision)
    if config is None:
        raise ModelNotFoundError(f"{name.repo} on the hub is no model: it has no config.json")
    directory = config.parent
    check(directory)
    commit = directory.name  # all files of one commit, whatever happens to the branch
    for file in ("generation_config.json", "tokenizer_config.json", "chat_template.jinja"):
        fetch(file, commit)
    if fetch("tokenizer.json", commit) is None:
        for file in ("vocab.json", "merges.txt", "added_tokens.json"):
            fetch(file, commit)
    if fetch("model.safetensors", commit) is None:
        index = fetch("model.safetensors.index.json", commit)
        if index is None:
            raise CheckpointError(
                f"{name.repo} has neither model.safetensors nor an index of shards; nvg never opens pickle files: if "
                "you trust it, convert it with transformers: "
                f"AutoModelForCausalLM.from_pretrained({name.repo!r}).save_pretrained('DIR')"
            )
        for shard in _shards(index):
            if fetch(shard, commit) is None:
                raise CheckpointError(f"{name.repo} has no {shard}, which {index.name} names")
    return directory


def _check_network(endpoint: str) -> None:
    """Raise NvgError where the hub's name can't be looked up: huggingface_hub tries for long, line by line. A proxy may
    know names that this machine doesn't."""
    url = urlsplit(endpoint)
    if urllib.request.getproxies() or not url.hostname:
        return
    try:
        socket.getaddrinfo(url.hostname, url.port or 443)
    except OSError as error:
        raise NvgError(
            f"{url.hostname} can't be reached ({error.strerror}): check the network, or copy the model's directory "
            "from another machine and name it with -m DIR"
        ) from None


def _fetch_blob(repo_directory: Path, name: HubName, file: str, url: str, who: dict[str, str]) -> None:
    """Download a large file to where hf_hub_download finds it, from the byte on at which an earlier call was ended.

    huggingface_hub itself begins anew in another process. A file that is in Git itself is left to it.
    """
    from huggingface_hub import get_hf_file_metadata
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import WeakFileLock, build_hf_headers

    found = get_hf_file_metadata(url, **who)
    if found.size is None or not _SHA256.fullmatch(found.etag or ""):
        return
    blob = repo_directory / "blobs" / found.etag
    lock = repo_directory.parent / ".locks" / repo_directory.name / f"{found.etag}.lock"  # huggingface_hub's
    for path in (blob, lock):
        path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if blob.exists():
            return
        part = blob.with_name(f"{found.etag}.incomplete")
        with open(part, "ab") as out:
            if out.tell() > found.size:  # it is of something else
                out.seek(out.truncate(0))
            headers = {**build_hf_headers(**who), "Accept-Encoding": "identity"}
            http_get(
                url, out, resume_size=out.tell(), headers=headers, expected_size=found.size, displayed_filename=file
            )
        if _sha256(part) != found.etag:
            part.unlink()
            raise NvgError(f"{file} of {name} came damaged and was removed; the same command again downloads it anew")
        os.replace(part, blob)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def _shards(index: Path) -> list[str]:
    """The files that an index names."""
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        if not all(SHARD_NAME.fullmatch(name) for name in names):
            raise ValueError("it names a file that is no plain .safetensors")
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is no index of shards: {cause(error)}") from None
    return names


def _failure(name: HubName, file: str, error: Exception, utils: Any) -> NvgError:
    """What a failed download means to the user."""
    url = f"https://huggingface.co/{name.repo}"
    if isinstance(error, utils.GatedRepoError):
        return ModelNotFoundError(
            f"{name.repo} is gated: ask for access on {url}, then log in with `hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, utils.RevisionNotFoundError):
        return ModelNotFoundError(f"{name.repo} has no revision {name.revision!r}; {url} lists its branches and tags")
    if isinstance(error, utils.RepositoryNotFoundError):
        return ModelNotFoundError(
            f"the hub has no model {name.repo!r}, or it is private: check the name, and for a private one log in with "
            "`hf auth login` or set HF_TOKEN"
        )
    return NvgError(f"{file} of {name} could not be downloaded: {cause(error)}; the same command again resumes")
