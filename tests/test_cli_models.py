"""`nvg models`: what is listed, and that nothing but nvg's own files is ever removed."""

import json
import os
import re
import shutil

import pytest
from checkpoints import TALES, write_checkpoint
from cli_runner import run_cli

from nvg.model import packed_files
from nvg.runtime.caches import replacing


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """keep(directory, dtype, size): puts a file of packed weights into the cache, last used a minute after the former.

    The cache is a fresh one."""
    monkeypatch.setenv("NVG_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("NVG_PACKED_CACHE_GB", "0.5")
    kept = []

    def keep(directory, dtype="float32", size=1_000_000):
        real = os.path.realpath(directory)
        path = packed_files.packed_directory() / packed_files.file_name(real, dtype, f"{len(kept):016x}")
        packed_files.make_room(size)
        with replacing(path) as file:
            file.write(packed_files.header_bytes({"model": real, "dtype": dtype}, size) + bytes(size))
        os.utime(path, (1.7e9 + 60 * len(kept),) * 2)
        kept.append(path)
        return path

    return keep


@pytest.fixture
def model(tmp_path):
    return write_checkpoint(tmp_path / "model")


def test_an_empty_list(packed):
    done = run_cli("models")
    assert (done.code, done.stderr) == (0, "")
    head, tales = done.stdout.splitlines()
    assert head.split() == ["MODEL", "KIND", "SIZE", "LAST", "USED", "WHERE"]
    assert re.fullmatch(rf"tales  built in  \d+\.\d MB +{re.escape(str(TALES))}", tales)
    assert run_cli("models", "list") == done


def test_a_list_of_packed_weights(packed, model):
    first, second = packed(model, "int8"), packed(TALES, "float32", 2_000_000)
    rows = [line.split() for line in run_cli("models", "list").stdout.splitlines()[2:]]
    assert [row[:5] + row[-1:] for row in rows] == [
        ["tales", "packed", "float32", "2.0", "MB", str(second)],
        [str(model), "packed", "int8", "1.0", "MB", str(first)],
    ]
    listed = json.loads(run_cli("models", "list", "--format", "json").stdout)
    assert listed["models"] == [
        {
            "model": "tales",
            "kind": "built-in",
            "bytes": sum(file.stat().st_size for file in TALES.iterdir() if file.is_file()),
            "path": str(TALES),
            "complete": True,
        }
    ]
    assert listed["packed"][1] == {
        "model": str(model),
        "dtype": "int8",
        "bytes": first.stat().st_size,
        "last_used": 1.7e9,
        "finished": True,
        "path": str(first),
    }
    assert listed["packed_cap_bytes"] == 500_000_000


def test_what_is_damaged_or_unfinished_is_listed_and_removed_with_all(packed, model):
    path = packed(model)
    path.write_bytes(b"")
    rest = path.with_name(f"{path.name}.77.88.tmp")
    rest.write_bytes(b"x")
    kinds = {tuple(line.split()[:2]) for line in run_cli("models").stdout.splitlines()[2:]}
    assert kinds == {("?", "packed"), ("?", "unfinished")}
    assert json.loads(run_cli("models", "list", "--format", "json").stdout)["packed"][0]["model"] is None
    assert run_cli("models", "rm", "--all").code == 0
    assert list(path.parent.iterdir()) == []


def test_rm_removes_the_packed_weights_of_a_model_and_says_so(packed, model, tmp_path, monkeypatch):
    files = [packed(model, "int8"), packed(model), packed(TALES)]
    monkeypatch.chdir(tmp_path)
    done = run_cli("models", "rm", "./model", model)
    assert done.code == 0
    assert done.stdout == f"removed {files[1]}\nremoved {files[0]}\n"
    assert done.stderr == "nvg: 2.0 MB freed\n"
    assert [path.exists() for path in files] == [False, False, True]
    assert (model / "model.safetensors").exists()
    assert run_cli("models", "rm", "tales").code == 0
    assert (TALES / "model.safetensors").exists()
    assert not files[2].exists()


def test_rm_of_a_model_whose_checkpoint_is_gone(packed, model):
    path = packed(model)
    shutil.rmtree(model)
    assert run_cli("models", "rm", model).code == 0
    assert not path.exists()


def test_rm_all(packed, model):
    packed(model), packed(TALES)
    done = run_cli("models", "rm", "--all")
    assert done.code == 0
    assert done.stderr == "nvg: 2.0 MB freed\n"
    assert packed_files.packed_files() == []
    assert run_cli("models", "rm", "--all") == (0, "", "nvg: 0.0 MB freed\n")


def test_rm_of_what_is_not_there(packed, model):
    done = run_cli("models", "rm", "nosuch")
    assert done.code == 4
    assert done.error == "no packed weights of 'nosuch'; there are none of any model"
    path = packed(TALES)
    done = run_cli("models", "rm", "tales", model)
    assert done.code == 4
    assert done.error == f"no packed weights of {str(model)!r}; there are those of tales"
    assert path.exists(), "nothing is removed before all names are known"


@pytest.mark.parametrize("arguments", [[], ["tales", "--all"]], ids=str)
def test_rm_wants_either_names_or_all(packed, arguments):
    done = run_cli("models", "rm", *arguments)
    assert done.code == 2
    assert done.error == "give either MODEL or --all (see nvg models rm --help)"


def test_rm_follows_no_link_and_removes_no_file_that_nvg_did_not_write(packed, model, tmp_path):
    path = packed(model)
    directory = path.parent
    outside = tmp_path / "outside.safetensors"
    shutil.copy(path, outside)
    others = [
        directory / "notes.txt",
        directory / "model.safetensors",
        directory / "model.float32.0123456789abcdef.packed.bak",
        directory / "model.float16.0123456789abcdef.packed",
        directory / "model.float32.0123456789ABCDEF.packed",
    ]
    for other in others:
        shutil.copy(path, other)
    links = [directory / f"{name}.float32.00000000000000aa.packed" for name in ("file", "directory", "nowhere")]
    for link, target in zip(links, (outside, model, tmp_path / "nowhere"), strict=True):
        link.symlink_to(target)
    inner = directory / "inner.float32.00000000000000aa.packed"
    inner.mkdir()
    (inner / path.name).write_bytes(path.read_bytes())
    assert run_cli("models", "rm", "--all").code == 0
    assert set(directory.iterdir()) == {*others, *links, inner}
    assert all(link.is_symlink() for link in links)
    assert (inner / path.name).exists()
    assert outside.exists()
    assert (model / "model.safetensors").exists()


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can give files away")
def test_rm_leaves_what_belongs_to_another_user(packed, model):
    path = packed(model)
    os.chown(path, 12345, -1)
    assert run_cli("models", "rm", "--all") == (0, "", "nvg: 0.0 MB freed\n")
    assert path.exists()


def test_the_names_of_rm_are_completed(packed, model, monkeypatch):
    packed(model), packed(TALES)
    monkeypatch.setenv("_NVG_COMPLETE", "zsh_complete")
    monkeypatch.setenv("COMP_WORDS", "nvg models rm t")
    monkeypatch.setenv("COMP_CWORD", "3")
    assert run_cli().stdout == "plain\ntales\n_\n"


def test_env_shows_the_caches(packed, model, compiled_kernels):
    packed(model)
    facts = json.loads(run_cli("env", "--format", "json").stdout)
    assert facts["packed weights"] == str(packed_files.packed_directory())
    assert facts["packed size"] == "1.0 MB in 1 files, at most 0.5 GB"
    assert re.fullmatch(r"\d+\.\d MB", facts["compiled size"])
