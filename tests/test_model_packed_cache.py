"""Packed weights in the cache: what a hit gives, what is none, and that a file with a fault costs only time."""

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from checkpoints import write_checkpoint

from nvg.errors import CheckpointError, ParameterError
from nvg.model import packed_cache, packed_files
from nvg.model.checkpoint import Checkpoint
from nvg.model.contract import Batch
from nvg.model.packed_files import make_room
from nvg.model.runner import GPT2Runner
from nvg.params import DTYPES, EngineConfig
from nvg.runtime.caches import replacing
from nvg.runtime.kernel_store import store

pytestmark = pytest.mark.usefixtures("compiled_kernels")
IDS = list(range(3, 40))
needs_users = pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs POSIX permissions")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The directory of packed weights, not yet there; even tiny models are kept."""
    root = tmp_path / "cache"
    root.mkdir()
    (root / "kernels").symlink_to(store.directory.parent)  # for processes that are started
    monkeypatch.setenv("NVG_CACHE_DIR", str(root))
    monkeypatch.delenv("NVG_PACKED_CACHE_GB")
    monkeypatch.setattr(packed_cache, "SMALLEST_BYTES", 0)
    return root / "packed"


@pytest.fixture
def model(tmp_path):
    return write_checkpoint(tmp_path / "model")


def load(directory, dtype="float32", threads=2, report=None):
    """(whether it came from the cache, logits of IDS); the model is closed."""
    with Checkpoint(directory) as checkpoint:
        config = EngineConfig(threads=threads, dtype=dtype)
        runner = GPT2Runner.from_checkpoint(checkpoint.config, checkpoint, config, report)
    try:
        runner.allocate_kv(2, 32)
        length, int32 = len(IDS), np.int32
        logits = runner.execute(
            Batch(
                token_ids=np.array(IDS, int32),
                positions=np.arange(length, dtype=int32),
                query_offsets=np.array([0, length], int32),
                block_tables=np.array([[1, 0]], int32),
                context_lens=np.array([length], int32),
                logits_rows=np.arange(length, dtype=int32),
            )
        )
        return runner.is_from_cache, logits.copy()
    finally:
        runner.close()


def only_file(cache):
    (path,) = cache.iterdir()
    return path


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_second_load_has_the_same_bits_and_packs_nothing(cache, model, dtype, monkeypatch):
    first, expected = load(model, dtype)
    assert not first
    path = only_file(cache)
    assert path.name.startswith(f"model.{dtype}.")
    with monkeypatch.context() as patch:
        patch.delattr(packed_cache, "pack_weights")
        for threads in (2, 1, 3):
            hit, logits = load(model, dtype, threads)
            assert hit
            assert np.array_equal(logits, expected)
    assert only_file(cache) == path


@needs_users
def test_files_are_private(cache, model):
    load(model)
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert stat.S_IMODE(only_file(cache).stat().st_mode) == 0o600


def test_a_file_is_in_the_format_of_safetensors(cache, model):
    from safetensors import safe_open

    load(model, "int8")
    with safe_open(only_file(cache), framework="numpy") as file:
        assert file.keys() == ["arena"]
        assert file.metadata()["model"] == os.path.realpath(model)
        assert file.metadata()["dtype"] == "int8"


def test_each_dtype_and_each_directory_has_a_file_of_its_own(cache, model, tmp_path):
    shutil.copytree(model, tmp_path / "other" / "model")
    for directory in (model, tmp_path / "other" / "model"):
        for dtype in ("float32", "int4"):
            assert not load(directory, dtype)[0]
    assert len(list(cache.iterdir())) == 4
    assert load(model)[0]


def same_size_and_times(model):
    """Other weights in a file of the same size and times, as far as these can be set."""
    path = model / "model.safetensors"
    before = path.stat()
    write_checkpoint(model, seed=5)
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def touched(model):
    os.utime(model / "model.safetensors")


def another_activation(model):
    write_checkpoint(model, activation="relu")


def untied(model):
    write_checkpoint(model, tie=False)


@pytest.mark.parametrize("change", [same_size_and_times, touched, another_activation, untied])
def test_a_source_that_changed_is_packed_again(cache, model, change, monkeypatch):
    load(model)
    change(model)
    hit, logits = load(model)
    assert not hit
    assert load(model)[0], "and takes the old one's place"
    only_file(cache)
    monkeypatch.setenv("NVG_PACKED_CACHE_GB", "0")
    assert np.array_equal(load(model)[1], logits)


def test_other_code_does_not_take_it(cache, model, monkeypatch):
    load(model)
    monkeypatch.setattr(packed_cache, "_code_digest", lambda: "later")
    assert not load(model)[0]
    assert load(model)[0]


def test_a_source_that_changes_while_it_is_read_is_refused_and_not_kept(cache, model, monkeypatch):
    pack = packed_cache.pack_weights

    def pack_and_touch(*arguments):
        pack(*arguments)
        touched(model)

    monkeypatch.setattr(packed_cache, "pack_weights", pack_and_touch)
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors was changed while it was read: load the model again"
    ):
        load(model)
    assert not cache.exists()


def truncated(path):
    os.truncate(path, path.stat().st_size - 1)


def grown(path):
    os.truncate(path, path.stat().st_size + 1)


def emptied(path):
    os.truncate(path, 0)


def foreign(path):
    path.write_text("weights, honestly")


def endless_header(path):
    path.write_bytes(b"\xff" * 9000)


def not_an_object(path):
    path.write_bytes((2).to_bytes(8, "little") + b"[]")


def nested_without_end(path):
    path.write_bytes((900_000).to_bytes(8, "little") + b"[" * 900_000)


def another_size(path):
    data = path.read_bytes()
    header = packed_files.header_bytes({"source": json.loads(data[8:4096])["__metadata__"]["source"]}, 64)
    path.write_bytes(header + bytes(64))


def linked(path):
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


@pytest.mark.parametrize(
    "damage",
    [truncated, grown, emptied, foreign, endless_header, not_an_object, nested_without_end, another_size, linked],
)
def test_a_file_that_is_not_ours_or_not_whole_is_ignored_and_replaced(cache, model, damage):
    _, expected = load(model)
    path = only_file(cache)
    damage(path)
    hit, logits = load(model)
    assert not hit
    assert np.array_equal(logits, expected)
    assert load(model)[0]
    assert not path.is_symlink()


@pytest.mark.parametrize("where", [0.01, 0.3, 0.7, 0.9999])
def test_one_flipped_bit_is_noticed_said_once_and_mended(cache, model, where):
    _, expected = load(model)
    data = bytearray(only_file(cache).read_bytes())
    data[4096 + int(where * (len(data) - 4096))] ^= 0x10
    only_file(cache).write_bytes(data)
    with pytest.warns(RuntimeWarning, match=r"nvg: .*\.packed was damaged and is replaced$") as warned:
        hit, logits = load(model)
    assert len(warned) == 1
    assert not hit
    assert np.array_equal(logits, expected)
    assert load(model)[0]


@needs_users
@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_a_file_that_others_can_write_is_not_trusted(cache, model, mode):
    load(model)
    only_file(cache).chmod(mode)
    assert not load(model)[0]
    assert load(model)[0]


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can give files away")
def test_what_belongs_to_another_user_is_neither_read_nor_written(cache, model):
    load(model)
    path = only_file(cache)
    os.chown(path, 12345, -1)
    assert not load(model)[0]
    assert load(model)[0], "the file is replaced, in a directory of ours"
    os.chown(cache, 12345, -1)
    path.unlink()
    assert not load(model)[0]
    assert list(cache.iterdir()) == []


def test_a_directory_in_its_place_is_left_alone_and_told(cache, model):
    load(model)
    path = only_file(cache)
    path.unlink()
    path.mkdir()
    for _ in range(2):
        lines = []
        assert not load(model, report=lines.append)[0]
        (line,) = lines
        assert line.startswith("the packed weights are not kept: ")
        assert str(path) in line
    assert only_file(cache).is_dir()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_in_its_place_is_not_waited_for_and_replaced(cache, model):
    load(model)
    path = only_file(cache)
    path.unlink()
    os.mkfifo(path)
    assert not load(model)[0]
    assert load(model)[0]


def test_without_a_place_for_the_cache_all_else_works(cache, model):
    cache.write_text("a file, where a directory should be")
    assert not load(model)[0]
    assert not load(model)[0]
    assert cache.read_text() == "a file, where a directory should be"


def test_without_a_home_all_else_works(cache, model, monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(packed_files, "cache_root", homeless)
    assert not load(model)[0]
    assert packed_files.packed_files() == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_a_disk_that_is_full_leaves_nothing(cache, model):
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        assert not load(model)[0]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(cache.iterdir()) == []


def test_a_disk_that_would_be_nearly_full_is_spared(cache, model, monkeypatch):
    lines = []
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 200_000))
        load(model, report=lines.append)
        assert list(cache.iterdir()) == []
    assert lines == [
        f"the packed weights are not kept: they have 0.00 GB, and the disk of {cache} has no more than 0.00 GB free: "
        "half of it stays free. Set NVG_PACKED_CACHE_GB to 0 to keep none"
    ]
    load(model)
    assert load(model)[0]


def only_file_of(cache, name):
    (path,) = (path for path in cache.iterdir() if path.name.startswith(f"{name}."))
    return path


def in_gigabytes(num_bytes):
    return f"{num_bytes / 1e9:.9f}"


def test_what_was_used_longest_ago_goes_first(cache, tmp_path, monkeypatch):
    models = [write_checkpoint(tmp_path / name) for name in ("a", "b", "c", "d")]
    for directory in models[:3]:
        load(directory)
    files = {path.name[0]: path for path in cache.iterdir()}
    for age, name in enumerate("cba"):
        os.utime(files[name], (1e9 - age, 1e9 - age))  # a is the oldest
    assert load(models[0])[0], "which is a use"
    size = files["a"].stat().st_size
    monkeypatch.setenv("NVG_PACKED_CACHE_GB", in_gigabytes(3.5 * size))
    load(models[3])
    assert {path.name[0] for path in cache.iterdir()} == {"a", "c", "d"}
    monkeypatch.setenv("NVG_PACKED_CACHE_GB", in_gigabytes(1.5 * size))
    load(models[1])
    assert {path.name[0] for path in cache.iterdir()} == {"b"}


def test_what_is_larger_than_the_cap_is_not_kept_and_costs_nobody_a_place(cache, model, tmp_path, monkeypatch):
    load(model)
    size = only_file(cache).stat().st_size
    monkeypatch.setenv("NVG_PACKED_CACHE_GB", in_gigabytes(1.5 * size))
    large = write_checkpoint(tmp_path / "large", n_embd=128)
    for _ in range(2):
        lines = []
        assert not load(large, report=lines.append)[0]
        (line,) = lines
        assert re.fullmatch(
            r"the packed weights are not kept: they have 0\.00 GB, NVG_PACKED_CACHE_GB allows 0\.000\d+: raise it, or "
            "set it to 0 to keep none",
            line,
        )
    assert load(model)[0]


def test_a_cap_that_was_lowered_acts_when_a_model_is_closed(cache, model, tmp_path, monkeypatch):
    other = write_checkpoint(tmp_path / "other")
    load(other)
    load(model)
    size = only_file_of(cache, "model").stat().st_size
    monkeypatch.setenv("NVG_PACKED_CACHE_GB", in_gigabytes(1.5 * size))
    assert load(model)[0]
    assert only_file(cache) == only_file_of(cache, "model")


def test_a_cap_of_0_reads_and_writes_nothing(cache, model, monkeypatch):
    load(model)
    monkeypatch.setenv("NVG_PACKED_CACHE_GB", "0")
    assert not load(model)[0]
    assert not load(model, "int8")[0]
    only_file(cache)


@pytest.mark.parametrize(
    "value", ["ten", "-1", "nan", "inf", "1e400", "1_0", "10GB", "1000001", "\N{DEVANAGARI DIGIT ONE}"]
)
def test_a_cap_that_is_no_number_is_refused(cache, model, monkeypatch, value):
    monkeypatch.setenv("NVG_PACKED_CACHE_GB", value)
    message = rf"^NVG_PACKED_CACHE_GB is '{value}'; it must be a number of GB from 0 to 1000000, as 2\.5 "
    with pytest.raises(ParameterError, match=message):
        load(model)


@pytest.mark.parametrize(
    ("value", "num_bytes"), [("", 10**10), (" 2.5 ", 2_500_000_000), (".5", 500_000_000), ("0", 0)]
)
def test_the_cap(value, num_bytes, monkeypatch):
    monkeypatch.setenv("NVG_PACKED_CACHE_GB", value)
    assert packed_files.cap_bytes() == num_bytes


def test_small_models_are_not_kept(cache, model, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("NVG_CACHE_DIR", str(cache.parent))
    monkeypatch.delenv("NVG_PACKED_CACHE_GB")
    load(model)
    assert not cache.exists()


def test_weights_that_are_not_finite_are_refused_and_not_kept(cache, model):
    with open(model / "model.safetensors", "r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\0\0\xc0\x7f")
    with pytest.raises(CheckpointError, match="not finite"):
        load(model)
    assert not cache.exists()


def test_what_nobody_will_use_is_removed_when_something_is_written(cache, model, tmp_path):
    load(model)
    path = only_file(cache)
    abandoned = path.with_name(f"{path.name}.1.7.tmp")
    abandoned.write_bytes(b"x")
    note = cache / "note.txt"
    note.write_text("not nvg's")
    gone = write_checkpoint(tmp_path / "gone")
    load(gone)
    shutil.rmtree(gone)
    with replacing(path.with_name(f"new.int4.{16 * '0'}.packed")):
        make_room(100)
        (current,) = cache.glob("*.tmp")
        assert set(cache.iterdir()) == {path, current, note}


PROGRAM = """
import sys, time
from nvg.model import packed_cache
from nvg.model.checkpoint import Checkpoint
from nvg.model.runner import GPT2Runner
from nvg.params import EngineConfig

packed_cache.SMALLEST_BYTES = 0
with Checkpoint(sys.argv[1]) as checkpoint:
    runner = GPT2Runner.from_checkpoint(checkpoint.config, checkpoint, EngineConfig(threads=1))
"""


def start(model, program, *arguments):
    command = [sys.executable, "-c", PROGRAM + textwrap.dedent(program), str(model), *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_two_processes_may_write_at_once(cache, model):
    program = """
        write = packed_cache._write
        def write_up_to(file, data):
            end = len(data) if sys.argv[2] == "all" else len(data) // 2
            write(file, data[:end])
            print("waiting", flush=True)
            sys.stdin.readline()
            write(file, data[end:])
        packed_cache._write = write_up_to
        runner.close()
    """

    def start_and_wait(how_much):
        process = start(model, program, how_much)
        for part in ("header", "weights"):
            assert process.stdout.readline() == "waiting\n", part
            if part == "header":
                go_on(process)
        return process

    def go_on(process):
        process.stdin.write("\n")
        process.stdin.flush()

    with start_and_wait("all") as first, start_and_wait("half") as second:
        go_on(first)
        assert first.wait(120) == 0
        assert load(model)[0]
        go_on(second)
        assert second.wait(120) == 0
    assert load(model)[0]
    only_file(cache)


def test_a_writer_that_is_killed_leaves_nothing_that_is_taken(cache, model):
    program = """
        def write(file, data):
            file.write(data[: len(data) // 2])
            print("writing", flush=True)
            time.sleep(1000)
        packed_cache._write = write
        runner.close()
    """
    with start(model, program) as process:
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
    assert only_file(cache).name.endswith(".tmp")
    assert [file.is_finished for file in packed_files.packed_files()] == [False]
    assert not load(model)[0]
    assert load(model)[0]
    assert not only_file(cache).name.endswith(".tmp"), "what was left is removed"


def test_much_is_announced(cache, model, monkeypatch):
    def lines():
        said = []
        with Checkpoint(model) as checkpoint:
            GPT2Runner.from_checkpoint(checkpoint.config, checkpoint, EngineConfig(threads=1), said.append).close()
        return said

    monkeypatch.setattr(packed_cache, "_MUCH_BYTES", 100_000)
    assert lines() == ["keeping 0.0 GB of packed weights, so that the next load is short"]
    assert lines() == [], "nothing to keep"
    touched(model)
    monkeypatch.setattr(packed_cache, "_MUCH_BYTES", 10**9)
    assert lines() == []


def test_a_model_that_nobody_closes_is_kept_at_the_end(cache, model):
    with start(model, "") as process:
        assert process.wait(120) == 0
    assert load(model)[0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_keeps_nothing(cache, model):
    program = """
        import os, warnings
        warnings.simplefilter("ignore")
        if os.fork() == 0:
            sys.exit()
        os.wait()
        print(packed_cache.packed_files.packed_files())
        os._exit(0)
    """
    with start(model, program) as process:
        assert process.stdout.read() == "[]\n"
