"""plugins/README.md: its programs and commands run, and it describes every hook and every plugin that is there."""

import doctest
import inspect
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from nvg import hookspecs

ROOT = Path(__file__).resolve().parents[1]
PLUGINS = ROOT / "plugins"
GUIDE = (PLUGINS / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\S*) ?([^\n]*)\n(.*?)^```", GUIDE, re.S | re.M)
DISTRIBUTIONS = sorted(path.parent.name for path in PLUGINS.glob("*/pyproject.toml"))


def blocks(language):
    return [(attributes, text) for name, attributes, text in BLOCKS if name == language]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("guide")
    for attributes, text in blocks("python"):
        if attributes.startswith("file="):
            (path / attributes.removeprefix("file=")).write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_programs_run(number, directory, monkeypatch):
    attributes, text = blocks("python")[number]
    monkeypatch.syspath_prepend(directory)
    if attributes:
        runpy.run_path(directory / attributes.removeprefix("file="))
    else:
        exec(compile(text, f"guide, program {number}", "exec"), {"__name__": "guide"})


def commands():
    for _, text in blocks("console"):
        for part in re.split(r"^\$ ", text, flags=re.M)[1:]:
            command, _, output = part.partition("\n")
            yield pytest.param(command, output, id=command)


@pytest.mark.parametrize(("command", "expected"), list(commands()))
def test_commands_print_what_is_shown(command, expected, directory):
    words = shlex.split(command)
    assert words[0] == "nvg"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=directory, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert doctest.OutputChecker().check_output(expected, done.stdout, doctest.ELLIPSIS), done.stdout


def test_every_hook_is_described_with_its_arguments():
    for name, function in vars(hookspecs).items():
        if name.startswith("nvg_"):
            arguments = ", ".join(inspect.signature(function).parameters)
            assert f"| `{name}({arguments})` |" in GUIDE
            assert f"def {name}({arguments}):" in GUIDE
            assert function.__doc__


def test_every_primitive_and_member_is_described():
    from nvg.sampling import math
    from nvg.sampling.contract import SamplerRequest, State

    primitives = [name for name, value in vars(math).items() if hasattr(value, "py_func") and not name.startswith("_")]
    members = [*SamplerRequest.__dataclass_fields__, *(name for name in vars(State) if not name.startswith("_"))]
    assert len(primitives) >= 7
    for name in (*primitives, *members, "needs_vocab", "may_remove_all", "accept"):
        assert re.search(rf"`{name}\b", GUIDE), name


def test_every_plugin_is_listed_and_whole():
    tomllib = pytest.importorskip("tomllib")
    assert DISTRIBUTIONS
    for name in DISTRIBUTIONS:
        settings = tomllib.loads((PLUGINS / name / "pyproject.toml").read_text(encoding="utf-8"))
        assert settings["project"]["name"] == name
        assert f"| [{name}]({name}) |" in GUIDE
        assert (PLUGINS / name / "README.md").is_file()
        assert list((PLUGINS / name / "tests").glob("test_*.py"))
        assert settings["project"]["entry-points"]["nvg"]


def test_every_plugin_is_installed_by_one_of_the_readme_s_commands():
    required = "".join((ROOT / "tests" / f"requirements{kind}.txt").read_text() for kind in ("", "-long"))
    for name in DISTRIBUTIONS:
        assert re.search(rf"^-e plugins/{name}(\[test\])?$", required, re.M), name


def test_its_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", GUIDE):
        assert target.startswith("http") or (PLUGINS / target).exists(), target
