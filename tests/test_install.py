"""A built wheel and a plain `pip install .`, each in a fresh virtual environment, run the embedded model."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


def run(*command, **options):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=900, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The files of the checkout, without what earlier builds left."""
    path = tmp_path_factory.mktemp("source") / "nvg"
    ignored = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, path, ignore=ignored)
    return path


@pytest.mark.parametrize("kind", ["checkout", "wheel"])
def test_an_installed_package_generates(kind, source, tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    scripts = tmp_path / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
    what = source
    if kind == "wheel":
        run(scripts / "pip", "wheel", "-q", "--no-deps", "-w", tmp_path / "dist", source)
        what = next((tmp_path / "dist").glob("nvg-*.whl"))
    run(scripts / "pip", "install", "-q", what)
    text = run(
        scripts / "nvg", "generate", "The king", "--sampler", "greedy", "--max-tokens", "8", "--explain", "t.jsonl",
        cwd=tmp_path, env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    assert text == " was very angry, and said, '\n"
    run(scripts / "nvg", "explain", "t.jsonl", cwd=tmp_path)
    assert (tmp_path / "t.html").read_text(encoding="utf-8").count("<style>") == 1
    where = run(scripts / "python", "-c", "import nvg; print(nvg.__file__)", cwd=tmp_path)
    assert str(tmp_path) in where


LOGITS = """
import numpy, sys
from nvg import LLM
from nvg.runtime import cpu
with LLM(sys.argv[1]) as llm:
    numpy.save(sys.argv[2], llm.logits(list(range(60))))
print(cpu.features().vector_floats, cpu.features().fma)
"""


@pytest.mark.skipif(sys.platform == "win32" or os.uname().machine != "x86_64", reason="for x86-64")
def test_a_cpu_without_avx_gives_the_same_logits_to_rounding(tmp_path, tiny_checkpoint):
    import numpy as np
    import reference

    environment = {
        **os.environ,
        "NUMBA_CPU_NAME": "nehalem",
        "NUMBA_CPU_FEATURES": "+sse4.2,+sse4.1,+ssse3,+sse3,+sse2,+sse,+popcnt,+cx16,+64bit,+cmov",
    }
    shown = run(sys.executable, "-c", LOGITS, tiny_checkpoint, tmp_path / "logits.npy", env=environment)
    assert shown.split() == ["4", "False"]
    logits = np.load(tmp_path / "logits.npy")
    assert np.abs(logits - reference.logits(reference.load(tiny_checkpoint), list(range(60)))).max() < 1e-4
