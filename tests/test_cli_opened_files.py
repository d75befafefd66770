"""What the operating system sees: which files a run opens for reading and writing, and that it opens no socket."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import write_checkpoint

import nvg
from nvg.runtime.caches import cache_root

STRACE = shutil.which("strace")
CALLS = "?open,openat,?openat2,?creat,execve,?execveat,socket,connect"
READ = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
SYSTEM = (
    *("/usr", "/lib", "/lib64", "/proc", "/sys", "/dev"),
    *("/etc/ld.so.cache", "/etc/ssl/openssl.cnf", "/etc/localtime", "/etc/locale.alias"),
)
AS_SCRIPT = "import sys; sys.path.pop(0); from nvg.__main__ import main; main()"  # without the working directory
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def can_trace() -> bool:
    return STRACE is not None and subprocess.run([STRACE, "-qq", "-o", os.devnull, "true"]).returncode == 0


pytestmark = pytest.mark.skipif(not can_trace(), reason="strace is not installed, or may not trace here")


@pytest.fixture
def place(tmp_path):
    """A home and a working directory with what is nobody's business, and a model that points to it."""
    secret = tmp_path / "home" / ".netrc"
    for path in (secret, tmp_path / "work" / "config.json", tmp_path / "work" / "tokenizer.json"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("secret")
    model = tmp_path / "models" / "mine"
    references = {"_name_or_path": str(secret), "auto_map": {"AutoModel": "modeling.Model"}, "vocab_file": str(secret)}
    write_checkpoint(model, config=references)
    for name in ("modeling.py", "pytorch_model.bin", "optimizer.pt", ".env", "vocab.json", "adapter_config.json"):
        (model / name).write_text("secret")
    (model / "generation_config.json").write_text('{"temperature": 0.7}')
    (model.parent / "config.json").write_text("secret")
    return tmp_path


def traced(place, *arguments) -> list[tuple[str, str]]:
    """Every call that succeeded, and the real path of what it opened or ran."""
    environment = {
        "PATH": os.environ["PATH"], "PYTHONPATH": str(Path(nvg.__file__).parents[1]), "HOME": str(place / "home"),
        "NVG_CACHE_DIR": str(cache_root()), "NVG_PACKED_CACHE_GB": "0", "NVG_LOAD_PLUGINS": "",
        "HF_HOME": str(place / "hf"), "PYTHONDONTWRITEBYTECODE": "1",
        **{name: value for name, value in os.environ.items() if name.startswith("NUMBA_")},
    }  # fmt: skip
    command = [STRACE, "-ff", "-qq", "-y", "-s", "4096", "-e", f"trace={CALLS}", "-o", str(place / "log")]
    done = subprocess.run(
        [*command, sys.executable, "-c", AS_SCRIPT, *map(str, arguments)], cwd=place / "work", env=environment,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    calls = []
    for log in place.glob("log.*"):
        for line in log.read_text().splitlines():
            if opened := re.search(r"= \d+<(.+)>$", line):
                calls.append((line, opened[1]))
            elif re.match(r"execve|socket|connect", line) and " = -1 " not in line:
                calls.append((line, ""))
    return calls


def check(calls, directory, reads):
    """Of `directory` only `reads` are opened, and nothing else but Python, nvg, its cache, and the system's."""
    python = {os.path.realpath(path) for path in (sys.prefix, sys.base_prefix, *filter(None, sys.path))}
    package = Path(nvg.__file__).parent
    own = [*python, str(package), str(cache_root())]
    found = set()
    for line, path in calls:
        assert not line.startswith(("socket", "connect")), line
        if line.startswith("execve"):
            assert f'"{sys.executable}"' in line
            continue
        if "O_WRONLY" in line or "O_RDWR" in line or "O_CREAT" in line:
            assert Path(path).is_relative_to(cache_root()) or path.startswith("/dev/"), line
        if Path(path).is_relative_to(directory):
            found.add(str(Path(path).relative_to(directory)))
        else:
            # Python lists the directory that the package is in, and reads what it says of distributions
            beside = Path(path).relative_to(package.parent).parts if Path(path).is_relative_to(package.parent) else "?"
            is_metadata = not beside or beside[0].endswith((".egg-info", ".dist-info"))
            assert is_metadata or any(Path(path).is_relative_to(root) for root in (*own, *SYSTEM)), line
    assert found == reads


def test_a_directory(place, compiled_kernels):
    model = place / "models" / "mine"
    calls = traced(place, "generate", "-m", model, "--max-tokens", 2, "the")
    check(calls, model, {".", *READ})


def test_a_model_of_the_hub(place, compiled_kernels):
    repository = place / "hf" / "hub" / "models--org--name"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.parent.mkdir(parents=True)
    (place / "models" / "mine").rename(snapshot)
    (repository / "blobs").mkdir()
    for number, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(repository / "blobs" / f"{number}{path.name}")
        path.symlink_to(f"../../blobs/{number}{path.name}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    shutil.copytree(repository, repository.with_name("models--org--other"), symlinks=True)
    calls = traced(place, "models", "verify", "org/name")
    blobs = {f"blobs/{os.path.basename(os.readlink(snapshot / name))}" for name in READ}
    check(calls, repository, {"refs/main", f"snapshots/{COMMIT}", *blobs})
