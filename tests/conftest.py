"""Fixtures that several rooms' tests share. Kernels are compiled into the user's own cache, once for all workers."""

import os
import signal
import sys

import pytest
from checkpoints import write_checkpoint

os.environ["NVG_PACKED_CACHE_GB"] = "0"  # nothing of the tests' checkpoints is kept, but where that is what is tested
if (
    signal.getsignal(signal.SIGINT) == signal.SIG_IGN
):  # a job in the background: what it starts would ignore Ctrl-C, too
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """The directory of a tiny random GPT-2 with a tokenizer; not to be changed."""
    return write_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def compiled_kernels():
    """Whatever loads a model finds its kernels compiled, and says nothing about it."""
    from nvg.engine import drawing
    from nvg.kernels import roofline
    from nvg.model.runner import compile_steps
    from nvg.runtime.compile_cache import prepare
    from nvg.tokenizers import bpe_compiled

    prepare(
        [*compile_steps(), *roofline.compile_steps(), *drawing.compile_steps(), *bpe_compiled.compile_steps()],
    )


@pytest.fixture
def install_distribution(tmp_path, monkeypatch):
    """install_distribution(name, group, points, source): what pip leaves behind of a distribution with one module, its
    name in lower case with "_". points: entry point name -> object in the module. Gives the directory on sys.path."""

    def install(name, group, points, source):
        site, module = tmp_path / "site", name.lower().replace("-", "_")
        info = site / f"{module}-1.5.dist-info"
        info.mkdir(parents=True)
        (site / f"{module}.py").write_text(source)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
        lines = [f"{point} = {module}:{target}" for point, target in points.items()]
        (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))
        monkeypatch.syspath_prepend(site)
        monkeypatch.delitem(sys.modules, module, raising=False)
        return site

    return install
