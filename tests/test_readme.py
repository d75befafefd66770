"""The README's commands and programs run, and print what it says."""

import doctest
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from nvg.testing import check_sampler

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\S*) ?([^\n]*)\n(.*?)^```", README, re.S | re.M)


def blocks(language):
    return [(attributes, text) for name, attributes, text in BLOCKS if name == language]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A directory with the files that the README tells to write."""
    path = tmp_path_factory.mktemp("readme")
    for attributes, text in blocks("python"):
        if attributes.startswith("file="):
            (path / attributes.removeprefix("file=")).write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_programs_run(number, directory, monkeypatch, capsys):
    _, text = blocks("python")[number]
    monkeypatch.chdir(directory)
    exec(compile(text, f"README.md, program {number}", "exec"), {"__name__": "readme"})
    if "print" in text:
        assert capsys.readouterr().out.strip()


def console_commands():
    for _, text in blocks("console"):
        for part in re.split(r"^\$ ", text, flags=re.M)[1:]:
            command, _, output = part.partition("\n")
            yield pytest.param(command, output, id=command)


@pytest.mark.parametrize(("command", "expected"), list(console_commands()))
def test_commands_print_what_is_shown(command, expected, directory):
    words = shlex.split(command)
    assert words[0] == "nvg"
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=directory, env=environment, capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stderr.decode()
    shown = done.stdout.decode().replace("\r\n", "\n")
    assert doctest.OutputChecker().check_output(expected, shown, doctest.ELLIPSIS), shown


def test_the_two_commands_open_it():
    first = blocks("")[0][1].splitlines()
    venv = "python3 -m venv .venv && . .venv/bin/activate && "
    assert first[0] == venv + 'pip install . && nvg generate "Once upon a time"'
    assert first[1] == venv + "pip install -r tests/requirements.txt && pytest"


def test_its_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_every_hook_is_documented_with_its_arguments():
    from nvg import hookspecs

    hooks = [name for name in vars(hookspecs) if name.startswith("nvg_")]
    assert hooks == ["nvg_register_samplers", "nvg_register_tokenizers", "nvg_register_models"]
    documented = README + (ROOT / "nvg" / "README.md").read_text(encoding="utf-8")
    for name in hooks:
        assert f"`{name}`" in documented or f"def {name}(register)" in documented, name
        assert vars(hookspecs)[name].__doc__


def test_its_sampler_keeps_the_contract(directory):
    check_sampler(f"{directory}/lucky.py:Lucky")
