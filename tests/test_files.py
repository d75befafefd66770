"""Which files of a model's directory are opened: no links that lead out of it, no pipes, no pickles, nothing else."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from checkpoints import TALES, write_checkpoint
from test_model_checkpoint import shard

from nvg.errors import CheckpointError
from nvg.files import MAX_JSON_BYTES
from nvg.model.checkpoint import Checkpoint
from nvg.model.config import read_config

SHARD = "model-00002-of-00002.safetensors"


@pytest.fixture
def model(tmp_path):
    return write_checkpoint(tmp_path / "model", n_layer=1)


def refusal(directory) -> str:
    with pytest.raises(CheckpointError) as caught, Checkpoint(directory):
        pass
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def move_out(path, to):
    """Leave a link behind to where the file is now."""
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(path, to)
    path.symlink_to(to)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors"])
def test_a_link_out_of_the_directory(model, tmp_path, name):
    (model / "generation_config.json").write_text("{}")
    move_out(model / name, tmp_path / "elsewhere" / name)
    message = refusal(model)
    assert message.startswith(f"{model / name} is a link to '{str(tmp_path)[:60]}")
    assert message.endswith(", outside of the model's directory; put the file itself there")


@pytest.mark.parametrize("name", ["model.safetensors.index.json", SHARD])
def test_a_shard_or_an_index_that_is_a_link_out(model, tmp_path, name):
    shard(model)
    move_out(model / name, tmp_path / name)
    assert "outside of the model's directory" in refusal(model)


def test_links_of_links_and_relative_ones(model, tmp_path):
    shard(model)
    shutil.move(model / SHARD, tmp_path / "modelx")  # a place whose name begins like the directory's
    (model / "inner").symlink_to(os.path.join("..", "modelx"))
    (model / SHARD).symlink_to("inner")
    assert f"{model / SHARD} is a link to '{tmp_path / 'modelx'}'" in refusal(model)


def test_a_link_to_a_device_or_nowhere(model):
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").symlink_to("/dev/zero")
    assert "outside of the model's directory" in refusal(model)
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").symlink_to("nowhere.safetensors")
    assert "model.safetensors is missing" in refusal(model)
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").symlink_to("model.safetensors")
    assert "can't be read: " in refusal(model)


def test_links_within_the_directory_and_to_it(model, tmp_path):
    (model / "files").mkdir()
    for name in ("model.safetensors", "config.json"):
        move_out(model / name, model / "files" / name)
    (tmp_path / "link").symlink_to(model)
    with Checkpoint(tmp_path / "link") as checkpoint:
        assert checkpoint.warnings == []


def test_the_links_of_a_hub_cache(model, tmp_path):
    cached = tmp_path / "hub" / "models--org--name"
    snapshot = cached / "snapshots" / "0123abc"
    snapshot.parent.mkdir(parents=True)
    shutil.move(model, snapshot)
    shard(snapshot)
    (cached / "blobs").mkdir()
    for path in [*snapshot.iterdir()]:
        shutil.move(path, cached / "blobs" / path.name)
        path.symlink_to(os.path.join("..", "..", "blobs", path.name))
    with Checkpoint(snapshot):
        pass
    move_out(cached / "blobs" / "config.json", tmp_path / "config.json")
    assert "outside of the model's directory" in refusal(snapshot)


def test_other_models_blobs(model, tmp_path):
    cached = tmp_path / "hub" / "models--org--name"
    snapshot = cached / "snapshots" / "0123abc"
    snapshot.parent.mkdir(parents=True)
    shutil.move(model, snapshot)
    move_out(snapshot / "model.safetensors", tmp_path / "hub" / "models--org--other" / "blobs" / "0")
    assert "outside of the model's directory" in refusal(snapshot)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name here")
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors"])
def test_a_pipe_is_not_waited_for(model, name):
    (model / name).unlink(missing_ok=True)
    os.mkfifo(model / name)
    assert f"{model / name} is not a regular file" in refusal(model)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors"])
def test_a_directory_of_that_name(model, name):
    (model / name).unlink(missing_ok=True)
    (model / name).mkdir()
    message = refusal(model)
    assert "is not a regular file" in message or "can't be read: Is a directory" in message


def test_a_config_that_never_ends(model):
    text = (model / "config.json").read_text()
    (model / "config.json").write_text(text + " " * (MAX_JSON_BYTES - len(text)))
    read_config(model)
    os.truncate(model / "config.json", 2**40)  # it takes no room
    assert "config.json is not valid JSON: 'it is too long'" in refusal(model)


def test_an_index_of_a_hundred_thousand_shards(model):
    index = shard(model)
    index["weight_map"] |= {f"t{i}": f"s{i}.safetensors" for i in range(100_000)}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert ".safetensors is missing; model.safetensors.index.json names it" in refusal(model)


OPENED = """
import os, sys
from nvg.model.checkpoint import Checkpoint
from nvg.tokenizers.bpe import ByteLevelBPE
opened = set()
sys.addaudithook(lambda event, args: event == "open" and opened.add(str(args[0])) or event == "mmap.__new__" and 1 / 0)
with Checkpoint(sys.argv[1]) as checkpoint:
    for name in checkpoint.names:
        checkpoint.read(name)
ByteLevelBPE.from_dir(__import__("pathlib").Path(sys.argv[1]))
print(*sorted(os.path.relpath(path, sys.argv[1]) for path in opened if not path.endswith((".py", ".pyc"))))
"""


def test_only_the_files_that_are_needed_are_opened(model):
    for name in ("pytorch_model.bin", "training_args.bin", "modeling.py", "optimizer.pt", "model.h5"):
        (model / name).write_bytes(b"\x80\x02}q\x00.")
    done = subprocess.run([sys.executable, "-c", OPENED, model], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["config.json", "model.safetensors", "tokenizer.json"]


def test_the_built_in_model_may_be_links(tmp_path, monkeypatch):
    from nvg import files

    for path in TALES.iterdir():
        (tmp_path / "data" / "tales").mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / "tales" / path.name).symlink_to(path)
    assert "outside of the model's directory" in refusal(tmp_path / "data" / "tales")
    monkeypatch.setattr(files, "_OWN_DATA", tmp_path / "data")
    with Checkpoint(tmp_path / "data" / "tales"):
        pass
