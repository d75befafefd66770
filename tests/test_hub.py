"""A model's name -> its directory, or one line that says what was looked for."""

import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import TALES

from nvg.errors import ModelNotFoundError, ParameterError
from nvg.hub import BUILT_IN, resolve_model


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
    assert refusal("x" * 5000).endswith("x' can't be read: File name too long")


@pytest.mark.parametrize("name", ["gpt2", "no/such/dir", "a\nb", "a\0b", "\udc80"])
def test_nothing_there(name):
    message = refusal(name)
    assert f"no model {name!r}: it is neither a built-in model (tales) nor the path of a directory" in message
    assert "config.json, model.safetensors, and tokenizer.json or vocab.json with merges.txt" in message
    assert "save_pretrained" in message
    assert "Did you mean" not in message


@pytest.mark.parametrize("name", ["tale", "Tales", "tails", "TALES"])
def test_the_nearest_name(name):
    assert "Did you mean 'tales'?" in refusal(name)


def test_a_directory_without_a_config(tmp_path):
    message = refusal(str(tmp_path))
    assert "is not a model: it has no config.json" in message
    assert "save_pretrained" in message


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
