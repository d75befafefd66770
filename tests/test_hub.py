"""A model's name -> its directory, or one line that says what was looked for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import TALES

from nvg.errors import CheckpointError, ModelNotFoundError, ParameterError
from nvg.hub import BUILT_IN, resolve_model
from nvg.hub_cache import HubName, cached_models, hub_cache

COMMIT, OTHER = "0123456789abcdef" * 2 + "01234567", "f" * 40


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty hub cache's directory."""
    for variable in ("HF_HOME", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    return tmp_path / "hf" / "hub"


def put(cache, repo, commit=COMMIT, ref="main", files=("config.json", "model.safetensors")):
    """Put a model into the cache as huggingface_hub does; its snapshot."""
    directory = cache / f"models--{repo.replace('/', '--')}"
    snapshot = directory / "snapshots" / commit
    for folder in (snapshot, directory / "blobs", (directory / "refs" / ref).parent):
        folder.mkdir(parents=True, exist_ok=True)
    for name in files:
        (directory / "blobs" / f"{commit}-{name}").write_text('{"model_type": "gpt2"}')
        (snapshot / name).symlink_to(f"../../blobs/{commit}-{name}")
    (directory / "refs" / ref).write_text(commit)
    return snapshot


def refusal(name) -> str:
    with pytest.raises(ModelNotFoundError) as caught:
        resolve_model(name)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def test_built_in_models_are_there():
    for name in BUILT_IN:
        path = resolve_model(name)
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in path.iterdir()}
    assert resolve_model("tales") == TALES


def test_a_directory(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert resolve_model(str(tmp_path)) == tmp_path
    assert resolve_model(tmp_path) == tmp_path


def test_a_path_is_not_a_built_in_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tales").mkdir()
    (tmp_path / "tales" / "config.json").write_text("{}")
    assert resolve_model("tales") == TALES
    assert resolve_model("./tales") == Path("tales")


def test_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert resolve_model("~") == tmp_path


def test_what_is_no_name():
    with pytest.raises(ParameterError, match=r"^model is ''; it must be a model's name or the path"):
        resolve_model("")
    message = refusal("x" * 5000)
    assert message.endswith("x...' can't be read: File name too long")
    assert len(message) < 400


@pytest.mark.parametrize("name", ["no/such/dir", "a\nb", "a\0b", "\udc80", "../a/b", "nothing", "org/a..b", "a--b/c"])
def test_nothing_there(name):
    message = refusal(name)
    assert f"no model {name!r}: it is neither a built-in model (tales) nor the path of a directory" in message
    assert "config.json, model.safetensors, and tokenizer.json or vocab.json with merges.txt" in message
    assert message.endswith("`nvg models pull gpt2`")
    assert "Did you mean" not in message


@pytest.mark.parametrize("name", ["gpt2", "gpt2-xl", "org/name", "org/name@v1.0", "gpt2@" + COMMIT])
def test_the_command_that_gets_a_model_of_the_hub(name, cache):
    message = refusal(name)
    assert f"nor in the hub's cache ({cache}): `nvg models pull {name}` downloads it" in message


@pytest.mark.parametrize("name", ["tale", "Tales", "tails", "TALES"])
def test_the_nearest_name(name):
    assert "Did you mean 'tales'?" in refusal(name)
    assert "Did you mean 'gpt2-xl'?" in refusal("gpt2xl")


def test_a_directory_without_a_config(tmp_path):
    message = refusal(str(tmp_path))
    assert "is not a model: it has no config.json. A model is a Hugging Face GPT-2 directory" in message


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_is_never_waited_for(tmp_path, cache):
    os.mkfifo(tmp_path / "config.json")
    assert refusal(tmp_path).endswith("config.json' is not a regular file: put the model's there")
    put(cache, "org/piped")
    put(cache, "org/sound")
    reference = cache / "models--org--piped" / "refs" / "main"
    reference.unlink()
    os.mkfifo(reference)
    assert "`nvg models pull org/piped` downloads it" in refusal("org/piped")
    assert [str(model.name) for model in cached_models()] == ["org/sound"]


def test_a_file(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"")
    assert "is a file, not a directory: give the directory that holds config.json" in refusal(str(path))


def test_a_built_in_model_that_was_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr("nvg.hub.__file__", str(tmp_path / "hub.py"))
    assert "the built-in model 'tales' is missing from" in refusal("tales")


def test_looking_a_model_up_imports_nothing_heavy():
    code = "import sys, nvg.hub, nvg.model.config; sys.exit(any(m in sys.modules for m in ('numpy', 'numba')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class TestHubCache:
    """Names of models that are in the hub's cache."""

    def test_organisations_branches_and_commits(self, cache):
        main = put(cache, "org/name")
        tag = put(cache, "org/name", OTHER, "v1.0")
        change = put(cache, "org/name", "e" * 40, "refs/pr/7")
        assert (
            resolve_model("org/name") == resolve_model("org/name@main") == resolve_model(f"org/name@{COMMIT}") == main
        )
        assert resolve_model("org/name@v1.0") == resolve_model(f"org/name@{OTHER}") == tag
        assert resolve_model("org/name@refs/pr/7") == change
        for missing in ("org/name@v2", f"org/name@{'d' * 40}", "name", "org/other"):
            refusal(missing)

    @pytest.mark.parametrize(
        ("stored", "names"),
        [
            ("gpt2", ["gpt2", "openai-community/gpt2"]),
            ("openai-community/gpt2-xl", ["gpt2-xl", "openai-community/gpt2-xl"]),
            ("distilgpt2", ["distilgpt2", "distilbert/distilgpt2"]),
        ],
    )
    def test_short_names(self, cache, stored, names):
        snapshot = put(cache, stored)
        assert [resolve_model(name) for name in names] == [snapshot, snapshot]

    def test_a_directory_comes_first_if_it_is_a_model(self, cache, tmp_path, monkeypatch):
        snapshot = put(cache, "gpt2")
        monkeypatch.chdir(tmp_path)
        (tmp_path / "gpt2").mkdir()  # left by something else
        assert resolve_model("gpt2") == snapshot
        (tmp_path / "gpt2" / "config.json").write_text("{}")
        assert resolve_model("gpt2") == Path("gpt2")

    @pytest.mark.parametrize(
        ("variables", "expected"),
        [
            ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
            ({"HUGGINGFACE_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
            ({"HF_HOME": "/b", "XDG_CACHE_HOME": "/c"}, "/b/hub"),
            ({"HF_HOME": "$XDG_CACHE_HOME/x", "XDG_CACHE_HOME": "/c"}, "/c/x/hub"),
            ({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
            ({}, "~/.cache/huggingface/hub"),
        ],
    )
    def test_where_it_is(self, monkeypatch, variables, expected):
        monkeypatch.delenv("HF_HUB_CACHE")
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert hub_cache() == Path(expected).expanduser()

    def test_an_unfinished_download(self, cache):
        put(cache, "gpt2", files=["config.json"])
        assert refusal("gpt2").endswith("`nvg models pull gpt2` downloads what is missing")

    def test_a_reference_leads_nowhere_else(self, cache, tmp_path):
        snapshot = put(cache, "org/name")
        for name in ("config.json", "model.safetensors"):
            (tmp_path / name).write_text("{}")
        for content in ("../../../..", str(tmp_path), "", COMMIT * 5, "\xff"):
            (cache / "models--org--name" / "refs" / "main").write_text(content)
            refusal("org/name")
        (snapshot.parent / OTHER).symlink_to(tmp_path)
        refusal(f"org/name@{OTHER}")

    @pytest.mark.parametrize(
        "name", ["config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json", "merges.txt"]
    )
    def test_links_out_of_the_cache_are_refused(self, cache, tmp_path, name):
        snapshot = put(cache, "org/name")
        secret = tmp_path / "secret.json"
        secret.write_text("{}")
        (snapshot / name).unlink(missing_ok=True)
        (snapshot / name).symlink_to("../../../../../secret.json")
        assert (snapshot / name).is_file()
        for model in ("org/name", snapshot):
            with pytest.raises(
                CheckpointError, match=f"{name} is a link to .{secret}., outside of the model's directory"
            ):
                resolve_model(model)

    def test_links_out_of_a_directory_are_refused_and_others_not(self, tmp_path):
        model = tmp_path / "model"
        (model / "sub").mkdir(parents=True)
        (model / "sub" / "real.json").write_text("{}")
        (model / "config.json").symlink_to("sub/real.json")
        (model / "notes.md").symlink_to(tmp_path / "notes.md")
        (tmp_path / "link").symlink_to(model)
        assert resolve_model(model) == model
        assert resolve_model(tmp_path / "link") == tmp_path / "link"
        (tmp_path / "model2").mkdir()  # its name begins with the other's
        (tmp_path / "model2" / "x.json").write_text("{}")
        (model / "tokenizer.json").symlink_to("../model2/x.json")
        with pytest.raises(CheckpointError, match="outside of the model's directory"):
            resolve_model(model)

    def test_the_list(self, cache):
        put(cache, "org/name", OTHER, "v1.0")
        put(cache, "openai-community/gpt2")
        llama = put(cache, "meta/llama")
        (llama / "config.json").unlink()
        (llama / "config.json").write_text('{"model_type": "llama"}')
        damaged = put(cache, "org/damaged")
        (damaged / "config.json").unlink()
        (damaged / "config.json").write_text("[")
        (cache / "models--x").write_text("")
        assert [(str(model.name), model.num_bytes) for model in cached_models()] == [
            ("gpt2", 44),
            ("org/name@v1.0", 44),
        ]

    @pytest.mark.parametrize("text", ["", "a/b/c", "/a", "a/", "-a/b", ".a/b", "a/b@", "a/b@/etc", "a/b@x/../y", "a b"])
    def test_what_is_no_name(self, text):
        assert HubName.parse(text) is None
