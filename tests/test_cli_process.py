"""What only a process of its own can show: pipes that close, signals, exit codes, the compile cache."""

import _thread
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from cli_runner import finish, run_cli, start_cli

from nvg.cli.interrupt import interruptible, is_working
from nvg.runtime.cores import default_threads
from nvg.runtime.interrupts import Stop

pytestmark = pytest.mark.usefixtures("compiled_kernels")
LONG = ("generate", "The king", "--max-tokens", 450, "--temperature", 0)


def test_json_end_to_end():
    done = finish(start_cli("generate", "The king", "--max-tokens", 3, "--seed", 1, "--format", "json"))
    assert (done.code, done.stderr) == (0, "")
    assert len(json.loads(done.stdout)["choices"][0]["token_ids"]) == 3


def test_a_reader_that_has_enough():
    process = start_cli(*LONG)
    assert os.read(process.stdout.fileno(), 10)
    process.stdout.close()
    process.stdout = None
    done = finish(process)
    assert (done.code, done.stderr) == (0, "")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
class TestCtrlC:
    def interrupt(self, process):
        start = time.perf_counter()
        process.send_signal(signal.SIGINT)
        done = finish(process, timeout=30)
        return done, time.perf_counter() - start

    def test_while_it_generates(self):
        process = start_cli(*LONG, "-n", 40)
        begun = os.read(process.stdout.fileno(), 4).decode()
        done, seconds = self.interrupt(process)
        assert done.code == 130
        assert done.stderr.startswith("nvg: choice 1 of 40:\n")
        assert done.stderr.endswith("nvg: interrupted\n")
        assert len(begun + done.stdout) > 40
        assert done.stdout.endswith("\n")
        assert seconds < 5, "far below what the rest would have taken"

    def test_while_it_measures(self):
        process = start_cli(
            "bench", "--repetitions", 10**6, "--new-tokens", 2, "--prompt-tokens", 2, "--format", "json"
        )
        while b"repetition 3 of 1000000" not in process.stderr.readline():
            assert process.poll() is None
        done, seconds = self.interrupt(process)
        record = json.loads(done.stdout)
        assert done.code == 130
        assert done.stderr.endswith("nvg: interrupted\n")
        assert record["repetitions"] >= 2
        assert record["decode_tok_s"] > 0
        assert seconds < 10

    @pytest.mark.parametrize("module", ["contextlib", "click"])
    def test_while_it_is_imported(self, module):
        """It ends without a word: there is nothing that could be said yet."""
        code = """
        import builtins, os, signal, sys
        from nvg.__main__ import main
        def interrupt(name, *arguments, original=builtins.__import__, **options):
            if name == sys.argv[1]:
                os.kill(os.getpid(), signal.SIGINT)
            return original(name, *arguments, **options)
        builtins.__import__ = interrupt
        main()
        """
        command = [sys.executable, "-c", textwrap.dedent(code), module]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")

    def test_while_it_compiles(self, tmp_path):
        process = start_cli(*LONG, env={"NVG_CACHE_DIR": str(tmp_path)})
        assert process.stderr.readline() == b"nvg: compiling kernels for this machine, once (about 20 s) ...\n"
        done, seconds = self.interrupt(process)
        assert done[:2] == (130, "")
        assert done.stderr.endswith("nvg: interrupted\n")
        assert seconds < 5

    @pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
    @pytest.mark.skipif(default_threads() < 2, reason="needs two cores")
    def test_while_it_compiles_in_two_processes(self, tmp_path):
        def processes():
            found = []
            for directory in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):  # it has ended, or isn't ours
                    if f"NVG_CACHE_DIR={tmp_path}\0".encode() in (directory / "environ").read_bytes():
                        found.append(directory.name)
            return found

        process = start_cli(*LONG, env={"NVG_CACHE_DIR": str(tmp_path)})
        while b" (2 of " not in process.stderr.readline():
            assert process.poll() is None
        assert len(processes()) == 2
        done, _ = self.interrupt(process)
        assert (done.code, done.stdout, done.stderr.splitlines()[-1]) == (130, "", "nvg: interrupted")
        give_up = time.monotonic() + 60
        while processes():
            assert time.monotonic() < give_up
        assert not list(tmp_path.rglob("*forward*.bin")), "it was in the midst of it"

    def test_while_it_waits_for_a_prompt(self):
        reader, writer = os.pipe()
        process = start_cli("tokenize", stdin=reader)
        os.close(reader)
        for _ in range(2):  # the pipe is empty again when it has been read
            os.write(writer, b"x")
            time.sleep(0.5)
        done, _ = self.interrupt(process)
        os.close(writer)
        assert done == (130, "", "nvg: interrupted\n")


def test_a_damaged_cache_is_one_warning_and_the_right_text(tmp_path):
    from nvg.runtime.kernel_store import store

    kept = tmp_path / "kernels" / store.directory.name
    shutil.copytree(store.directory, kept)
    for damaged in kept.glob("*publish*.bin"):  # more than one where CPUs share the directory
        good = damaged.read_bytes()
        damaged.write_bytes(good[:100] + b"garbage" + good[107:])
    arguments = ("generate", "The king", "--max-tokens", 5, "--temperature", 0)
    done = finish(start_cli(*arguments, env={"NVG_CACHE_DIR": str(tmp_path)}))
    assert done.code == 0
    warning, *progress = done.stderr.splitlines()
    assert warning.startswith(f"nvg: warning: {kept}")
    assert progress[1] == "nvg: compiling publish (1 of 1) ..."
    assert len(progress) == 3
    again = finish(start_cli(*arguments, env={"NVG_CACHE_DIR": str(tmp_path)}))
    assert again == run_cli(*arguments) == (0, done.stdout, "")


def test_a_cache_that_cannot_be_made_is_one_warning(tmp_path):
    (tmp_path / "file").touch()
    done = finish(start_cli("env", env={"NVG_CACHE_DIR": str(tmp_path / "file")}))
    assert done.code == 0
    assert done.stderr.startswith("nvg: warning: the compile cache can't be used")
    assert "NVG_CACHE_DIR names another place" in done.stderr
    assert done.stderr.count("\n") == 1


def test_ctrl_c_does_not_wait_for_what_cannot_be_interrupted():
    ended = threading.Event()
    threading.Timer(0.1, _thread.interrupt_main).start()
    with pytest.raises(KeyboardInterrupt):
        interruptible(lambda: ended.wait(20))
    assert is_working()
    ended.set()


def test_ctrl_c_asks_for_the_end_once_where_there_is_something_to_keep():
    stop, ended = Stop(has_something=True), threading.Event()
    threading.Timer(0.1, _thread.interrupt_main).start()

    def work():
        while not stop.is_wanted:
            time.sleep(0.01)
        return "kept"

    assert interruptible(work, stop) == "kept"
    threading.Timer(0.1, _thread.interrupt_main).start()
    with pytest.raises(KeyboardInterrupt):
        interruptible(lambda: ended.wait(20), stop)
    ended.set()


def test_interruptible_returns_and_raises():
    assert interruptible(lambda: 3) == 3
    with pytest.raises(SystemExit):
        interruptible(sys.exit)
