"""The compile cache: what it holds, and what happens when it is damaged, unwritable, or used by two at once."""

import os
import shutil
import stat
import subprocess
import sys
import textwrap
import warnings

import numba
import pytest

from nvg.runtime import compile_cache
from nvg.runtime.caches import cache_root
from nvg.runtime.compile_cache import CompileStep, prepare
from nvg.runtime.kernel_store import store

SMALL = """
import sys, warnings
from nvg.runtime import compile_cache
from nvg.runtime.caches import cache_root
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


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """A cache that has all that SMALL needs; not to be changed."""
    cache = tmp_path_factory.mktemp("complete") / "cache"
    assert run(cache) == ["missing", "3 []"]
    return cache


@pytest.fixture
def filled(complete, tmp_path):
    """A copy of it."""
    return shutil.copytree(complete, tmp_path / "cache")


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
def test_a_cache_that_is_complete_is_used_and_left_as_it_is(filled):
    keyed = next((filled / "kernels").iterdir())
    before = sorted(keyed.iterdir())
    for directory in (keyed, keyed.parent, filled):
        directory.chmod(0o555)
    try:
        assert run(filled) == ["cached", "0 []"]
        assert [stat.S_IMODE(directory.stat().st_mode) for directory in (keyed, keyed.parent, filled)] == [0o555] * 3
        assert sorted(keyed.iterdir()) == before
    finally:
        for directory in (filled, keyed.parent, keyed):
            directory.chmod(0o700)


READ_ONLY = """
import errno, os
def refuse(*arguments, **options):
    raise OSError(errno.EROFS, "Read-only file system")
def open_to_read(path, flags, *arguments, open_it=os.open):
    return refuse() if flags & (os.O_WRONLY | os.O_RDWR) else open_it(path, flags, *arguments)
def open_mode(path, mode="r", *arguments, open_it=open, **options):
    return refuse() if set(mode) & set("wa+") else open_it(path, mode, *arguments, **options)
import builtins
def read_only():
    os.open, os.chmod, builtins.open = open_to_read, refuse, open_mode
"""


def on_a_read_only_file_system(code):
    return READ_ONLY + textwrap.dedent(code).replace("lines = []", "lines = []\nread_only()")


def test_on_a_read_only_file_system_what_is_there_is_used(filled):
    assert run(filled, on_a_read_only_file_system(SMALL)) == ["cached", "0 []"]
    first, second = run(
        filled,
        on_a_read_only_file_system(SMALL).replace("add_one", "add_two").replace("x + 1", "x + 2").replace("42", "43"),
    )
    assert first == "missing"
    assert second.count("the compile cache can't be written ([Errno 30] Read-only file system)") == 1


REQUIRED = (
    SMALL[: SMALL.index("with warnings")]
    + """
step = compile_cache.function_step(add_one, (types.int64,))
with compile_cache.store.required():
    try:
        compile_cache.prepare([step], lines.append)
        print("kept")
    except Exception as error:
        print(type(error).__name__, error)
print(len(add_one.overloads))
"""
)


def test_where_it_must_be_kept_nothing_is_compiled_in_vain(filled):
    assert run(filled, on_a_read_only_file_system(REQUIRED)) == ["kept", "1"], "it is there"
    next((filled / "kernels").rglob("*.bin")).unlink()
    problem, compiled = run(filled, on_a_read_only_file_system(REQUIRED))
    assert problem == (
        "NvgError compiled kernels can't be kept: the compile cache can't be written ([Errno 30] Read-only file "
        "system); NVG_CACHE_DIR names another place"
    )
    assert compiled == "0"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_what_is_no_file_is_not_waited_for_and_replaced(filled):
    entry = next((filled / "kernels").rglob("*.bin"))
    entry.unlink()
    os.mkfifo(entry)
    first, second = run(filled)
    assert first == "missing"
    assert second.count("is not a regular file") == 1
    assert run(filled) == ["cached", "0 []"]
    entry.unlink()
    entry.mkdir()
    first, second = run(filled)
    assert (first, second.count(f"{entry.name} is not a regular file; remove it")) == ("missing", 1)


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

    monkeypatch.setattr(store, "directory", tmp_path)
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

    monkeypatch.setattr(store, "directory", tmp_path)
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
    assert cache_root() == tmp_path
    monkeypatch.delenv("NVG_CACHE_DIR")
    if sys.platform not in ("win32", "darwin"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert cache_root() == tmp_path / "xdg" / "nvg"


def test_only_one_warning_is_given(monkeypatch):
    monkeypatch.setattr(store, "_warned", False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        store.warn("first")
        store.warn("second")
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
    for add in (one, two):
        add.compile("int64(int64)")
    assert "add_1" in next(iter(one.inspect_llvm().values()))
    assert "add_1" not in next(iter(two.inspect_llvm().values()))


def test_functions_for_compiled_code_alone_lack_what_python_would_call_them_through():
    def add_three(x):
        return x + 3

    @compile_cache.njit(name="add_six")
    def add_six(x):
        return add(add(x))

    add, plain = compile_cache.njit(add_three), numba.njit(add_three)
    for function in (add, plain):
        function.compile("int64(int64)")
    is_wrapped = ["cpython" in next(iter(function.inspect_llvm().values())) for function in (add, plain)]
    assert is_wrapped == [False, True]
    assert (add(1), add_six(1)) == (4, 7), "Python can call them all the same"


def test_every_kind_of_kernel_has_a_name_of_its_own():
    from nvg.kernels.microkernels import panel_product
    from nvg.kernels.tiles import Tile

    kinds = [(kind, prefetches) for kind in ("float32", "bfloat16", "int8", "int4") for prefetches in (False, True)]
    assert len({panel_product(*kind).py_func.__qualname__ for kind in kinds}) == len(kinds)
    assert len({Tile(kind, 1, 32, prefetches).name for kind, prefetches in kinds}) == len(kinds)
