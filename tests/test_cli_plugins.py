"""nvg plugins: list, check, new."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_runner import run_cli

from nvg.scaffold import TEMPLATES

ROOT = Path(__file__).resolve().parents[1]

SAMPLER = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Halve:
    '''Halve the logits.

    times: how often, from 1 to 9
    '''
    times: int = 1

    def __post_init__(self):
        if not 1 <= self.times <= 9:
            raise ValueError(f"times is {self.times}; it must be from 1 to 9")

    def apply(self, logits, token_ids, state):
        logits /= 2**self.times

@dataclass(frozen=True)
class NaN:
    '''Leave nothing.'''
    def apply(self, logits, token_ids, state):
        logits[0] = float("nan")
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SAMPLER)
    return path


def test_list_is_what_plugins_does():
    assert run_cli("plugins").stdout == run_cli("plugins", "list").stdout != ""


def test_check_of_a_built_in_sampler_and_tokenizer():
    done = run_cli("plugins", "check", "topk")
    assert (done.code, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["CHECK", "WHAT", "WAS", "SEEN"]
    assert lines[1].split()[:2] == ["spec", "ok"]
    assert lines[-1].startswith("speed")
    assert run_cli("plugins", "check", "bytes").code == 0


def test_check_of_a_file_with_options(file):
    done = run_cli("plugins", "check", f"{file}:Halve", "-o", "times=3")
    assert done.code == 0
    assert "Halve(times=3)" in done.stdout
    assert "times is 10" in run_cli("plugins", "check", f"{file}:Halve", "-o", "times=10").stdout
    assert run_cli("plugins", "check", f"{file}:Halve", "-o", "tims=3").error.startswith(
        "no option of sampler 'Halve' is called 'tims'; did you mean 'times'?"
    )


def test_what_fails_is_named_and_the_exit_code_is_1(file):
    done = run_cli("plugins", "check", f"{file}:NaN")
    assert done.code == 1
    assert done.error.startswith(f"sampler 'NaN' of {file} breaks its contract: whole vocabulary, ")
    assert "FAILED" in done.stdout
    assert "apply left NaN for 1 candidates (usual logits, n=257, output token 0)" in done.stdout


def test_check_as_json(file):
    done = run_cli("plugins", "check", f"{file}:NaN", "--format", "json")
    found = json.loads(done.stdout)
    assert (done.code, found["passed"], found["name"]) == (1, False, f"{file}:NaN")
    assert {"check": "options", "status": "passed", "detail": "it has none"} in found["checks"]


def test_a_check_that_hangs_fails(tmp_path, monkeypatch):
    path = tmp_path / "hangs_of_mine.py"
    path.write_text(
        SAMPLER.replace("logits /= 2**self.times", "time.sleep(3)").replace("\nfrom", "\nimport time\nfrom", 1)
    )
    monkeypatch.setattr("nvg.cli.plugins.CHECK_LIMIT_S", 0.2)
    done = run_cli("plugins", "check", f"{path}:Halve")
    assert done.code == 1
    assert "FAILED  it has not returned for 0.2 s" in done.stdout
    assert "speed               -       options has not returned" in done.stdout


def test_samplers_as_json(file):
    listed = {record["name"]: record for record in json.loads(run_cli("samplers", "--format", "json").stdout)}
    assert listed["topk"] == json.loads(run_cli("samplers", "topk", "--format", "json").stdout)
    assert {option["name"]: option["default"] for option in listed["topp"]["options"]} == {"p": 0.9}
    (option,) = json.loads(run_cli("samplers", f"{file}:Halve", "--format", "json").stdout)["options"]
    assert option == {"name": "times", "type": "int", "required": False, "help": "how often, from 1 to 9", "default": 1}


def test_usage_of_check(file):
    assert run_cli("plugins", "check", "topq").error.startswith(
        "no sampler or tokenizer is called 'topq'; did you mean 'topp'? There are: "
    )
    assert run_cli("plugins", "check", "topq", "--kind", "sampler").error.startswith("no sampler is called 'topq'")
    assert run_cli("plugins", "check", "bytez", "--kind", "tokenizer").error.startswith(
        "no tokenizer is called 'bytez'"
    )
    assert run_cli("plugins", "check", "gpt2", "-m", "nowhere").code == 4
    assert run_cli("plugins", "check", f"{file}:Halve", "-o", "times").error == "option 'times' is not NAME=VALUE"
    assert run_cli("plugins", "check", f"{file}:Halve", "--max-us", "0").code == 1


@pytest.mark.parametrize("name", ["Upper", "9lives", "a b", "../x", "-x", "x-", "none", ""])
def test_new_refuses_what_is_no_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run_cli("plugins", "new", "sampler", "--", name)
    assert done.code == 2
    assert done.error == f"name {name!r} can't be a plugin's: use lower-case letters and digits, joined by - or _"
    assert list(tmp_path.iterdir()) == []


def test_new_refuses_what_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_cli("plugins", "new", "sampler", "topk").error == (
        "sampler 'topk' of nvg (built in) exists already: take another name"
    )
    (tmp_path / "nvg-mine").mkdir()
    assert run_cli("plugins", "new", "sampler", "mine").error == (
        "'nvg-mine' exists already: take another name, or say where to with --directory"
    )
    assert run_cli("plugins", "new", "mine").code == 2


@pytest.mark.parametrize(("kind", "name"), [("sampler", "my-own"), ("tokenizer", "my_own2")])
def test_a_new_plugin_works_as_it_is(kind, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run_cli("plugins", "new", kind, name)
    assert done.code == 0
    root = tmp_path / f"nvg-{name.replace('_', '-')}"
    module = root.name.replace("-", "_")
    written = sorted(str(path.relative_to(tmp_path)) for path in root.rglob("*") if path.is_file())
    assert sorted(done.stdout.split()) == written
    assert written == [
        str(Path(root.name, part))
        for part in ("README.md", f"{module}.py", "pyproject.toml", f"tests/test_{module}.py")
    ]
    assert not any("@" in path.read_text() for path in (root / "README.md", root / "pyproject.toml"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(ROOT)])}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(root)]
    tested = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    checked = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "E,F,B", "--line-length", "120", str(root)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert checked.returncode == 0, checked.stdout


def test_every_template_has_its_name_filled_in():
    assert {path.suffix for path in TEMPLATES.rglob("*") if path.is_file()} == {".in"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sampler", "tokenizer"])
def test_a_new_plugin_installs_and_is_found(kind, tmp_path):
    root, site = tmp_path / "nvg-brand-new", tmp_path / "site"
    assert run_cli("plugins", "new", kind, "brand-new", "--directory", root).code == 0
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}

    def run(*command):
        done = subprocess.run(
            [sys.executable, "-m", *map(str, command)], cwd=tmp_path, env=environment, capture_output=True, timeout=600
        )
        assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
        return done.stdout.decode()

    run("pip", "install", "-q", "--no-deps", "--target", site, root)
    listed = [line.split() for line in run("nvg", "plugins").splitlines()]
    assert ["nvg-brand-new", "0.1.0", kind, "brand-new", "nvg_brand_new:BrandNew"] in listed
    run("nvg", "plugins", "check", "brand-new")
    if kind == "sampler":
        run("nvg", "generate", "The king", "--sampler", "brand-new", "-o", "distance=1", "--max-tokens", "3")
    else:
        assert len(run("nvg", "tokenize", "--tokenizer", "brand-new", "The king").splitlines()) == 8
