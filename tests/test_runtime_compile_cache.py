"""The compile cache: what it holds, and what happens when it is damaged, unwritable, or used by two at once."""

import os
import stat
import subprocess
import sys
import textwrap
import warnings

import pytest

from nvg.runtime import compile_cache
from nvg.runtime.compile_cache import CompileStep, prepare

SMALL = """
import sys, warnings
from nvg.runtime import compile_cache
from numba.core import types

@compile_cache.njit(cached=True)
def add_one(x):
    return x + 1

lines = []
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    step = compile_cache.function_step(add_one, (types.int64,))
    print("cached" if step.is_cached() else "missing")
    compile_cache.prepare([step], lines.append)
assert add_one(41) == 42
print(len(lines), [str(w.message) for w in caught])
"""


def run(directory, code=SMALL):
    """Run `code` in a fresh process with the cache at `directory`; its lines of output."""
    path = directory.parent / "small.py"  # compiled functions need a file
    path.write_text(textwrap.dedent(code))
    environment = {**os.environ, "NVG_CACHE_DIR": str(directory)}
    done = subprocess.run([sys.executable, str(path)], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_second_process_compiles_nothing_and_says_nothing(tmp_path):
    cache = tmp_path / "cache"
    assert run(cache) == ["missing", "3 []"]
    assert run(cache) == ["cached", "0 []"]
    keyed = next((cache / "kernels").iterdir())
    assert stat.S_IMODE(keyed.stat().st_mode) == 0o700


@pytest.mark.parametrize("damage", [b"", b"short", b"\0" * 100_000])
def test_a_damaged_entry_is_compiled_again_with_one_warning(tmp_path, damage):
    cache = tmp_path / "cache"
    run(cache)
    entry = next((cache / "kernels").rglob("*.bin"))
    entry.write_bytes(damage)
    first, second = run(cache)
    assert first == "missing"
    assert "was damaged and is replaced" in second
    assert run(cache) == ["cached", "0 []"]


def test_one_flipped_bit_is_noticed(tmp_path):
    cache = tmp_path / "cache"
    run(cache)
    entry = next((cache / "kernels").rglob("*.bin"))
    data = bytearray(entry.read_bytes())
    data[len(data) // 2] ^= 1
    entry.write_bytes(data)
    assert "was damaged" in run(cache)[1]


def test_a_cache_that_can_not_be_made_costs_one_warning(tmp_path):
    (tmp_path / "cache").write_text("a file, where a directory should be")
    first, second = run(tmp_path / "cache")
    assert first == "missing"
    assert second.count("the compile cache can't be used") == 1
    assert "NVG_CACHE_DIR" in second
    assert run(tmp_path / "cache")[0] == "missing"


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs POSIX permissions")
def test_an_open_directory_is_made_private(tmp_path):
    cache = tmp_path / "cache"
    run(cache)
    keyed = next((cache / "kernels").iterdir())
    keyed.chmod(0o777)
    assert run(cache)[0] == "cached"
    assert stat.S_IMODE(keyed.stat().st_mode) == 0o700


@pytest.mark.skipif(sys.platform == "win32", reason="uses flock")
def test_a_run_that_waits_for_another_says_so_and_then_finds_the_kernels(tmp_path, monkeypatch):
    import fcntl
    import threading
    import time

    monkeypatch.setattr(compile_cache._store, "_directory", tmp_path)
    compiled, lines = [], []
    with open(tmp_path / "lock", "a+b") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        step = CompileStep("thing", lambda: bool(compiled), lambda: None)
        thread = threading.Thread(target=prepare, args=([step], lines.append))
        thread.start()
        while len(lines) < 2:
            time.sleep(0.01)
        assert "waiting" in lines[1]
        compiled.append(1)
    thread.join(10)
    assert lines[2].startswith("kernels ready"), "and it compiled nothing"


@pytest.mark.skipif(sys.platform == "win32", reason="uses flock")
def test_of_two_first_runs_one_compiles_and_the_other_waits(tmp_path, monkeypatch):
    import fcntl

    monkeypatch.setattr(compile_cache._store, "_directory", tmp_path)
    compiled, lines = [], []

    def compile_it():
        compiled.append(1)
        if len(compiled) == 2:
            return  # loaded, without the lock
        with open(tmp_path / "lock", "rb") as handle, pytest.raises(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # while this one compiles, nobody else gets the lock

    prepare([CompileStep("thing", lambda: bool(compiled), compile_it)], lines.append)
    assert len(compiled) == 2, "once to compile, under the lock; once to load"
    assert lines[1] == "compiling thing (1 of 1) ..."


def test_what_is_cached_is_loaded_without_a_word():
    lines, loaded = [], []
    prepare([CompileStep("thing", lambda: True, lambda: loaded.append(1))], lines.append)
    assert (lines, loaded) == ([], [1])


def test_the_cache_directory_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("NVG_CACHE_DIR", str(tmp_path))
    assert compile_cache.cache_root() == tmp_path
    monkeypatch.delenv("NVG_CACHE_DIR")
    if sys.platform not in ("win32", "darwin"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert compile_cache.cache_root() == tmp_path / "xdg" / "nvg"


def test_only_one_warning_is_given(monkeypatch):
    monkeypatch.setattr(compile_cache._store, "_warned", False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compile_cache._store.warn("first")
        compile_cache._store.warn("second")
    assert [str(w.message).split(";")[0] for w in caught] == ["nvg: first"]


def test_functions_of_a_factory_must_have_names_of_their_own():
    """Or two that differ could be linked as one, when one comes from the disk and the other is there already."""

    def make(step):
        def add(x):
            return x + step

        return add

    with pytest.raises(TypeError, match="is a closure: njit needs its `name`"):
        compile_cache.njit(make(1))
    one, two = (compile_cache.njit(make(step), name=f"add_{step}") for step in (1, 2))
    assert (one(1), two(1)) == (2, 3)
    assert "add_1" in next(iter(one.inspect_llvm().values()))
    assert "add_1" not in next(iter(two.inspect_llvm().values()))


def test_every_kind_of_kernel_has_a_name_of_its_own():
    from nvg.kernels.microkernels import panel_product
    from nvg.kernels.tiles import Tile

    kinds = [(kind, prefetches) for kind in ("float32", "bfloat16", "int8", "int4") for prefetches in (False, True)]
    assert len({panel_product(*kind).py_func.__qualname__ for kind in kinds}) == len(kinds)
    assert len({Tile(kind, 1, 32, prefetches).name for kind, prefetches in kinds}) == len(kinds)
