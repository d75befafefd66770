"""The process that compiles beside another: what it takes, and that nothing depends on it."""

import subprocess
import sys
import threading
import time

import pytest

from nvg.llm import LLM
from nvg.runtime import compile_helper, cores
from nvg.runtime.compile_cache import CompileStep, prepare
from nvg.runtime.compile_child import READY, Request, store_key
from nvg.runtime.compile_helper import Work, helper
from nvg.runtime.kernel_store import KernelStore

SMALL = ["pauses", "publish", "run_own_part"]
"""Kernels of nvg.runtime.team."""


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    """An empty store, on a machine with two cores."""
    monkeypatch.setenv("NVG_CACHE_DIR", str(tmp_path / "cache"))
    fresh = KernelStore()
    for module in ("kernel_store", "compile_cache", "compile_child"):
        monkeypatch.setattr(f"nvg.runtime.{module}.store", fresh)
    monkeypatch.setattr(cores, "default_threads", lambda: 2)
    return fresh


@pytest.fixture
def started(monkeypatch):
    """The processes that are started to compile."""
    processes = []

    class Popen(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            if "-c" in self.args:  # not the one that tries instructions
                processes.append(self)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    return processes


class Here:
    """Steps whose machine code is looked for on disk alone, and what of them this process had to compile."""

    def __init__(self, store):
        self.store = store
        self.compiled = []
        self.lines = []

    def is_kept(self, name):
        return any(self.store.directory.glob(f"*{name}.*.bin"))

    def step(self, name, module="nvg.runtime.team"):
        def compile_it():
            if not self.is_kept(name):
                self.compiled.append(name)

        return CompileStep(name, lambda: self.is_kept(name), compile_it).found_in(module)

    def busy_until(self, is_over):
        """A step that no other process can do, and that is done when the condition holds."""

        def compile_it():
            if "busy" not in self.compiled:
                self.compiled.append("busy")
                give_up = time.monotonic() + 120
                while not is_over():
                    assert time.monotonic() < give_up
                    time.sleep(0.02)

        return CompileStep("busy", lambda: "busy" in self.compiled, compile_it)


def done_by_the_process_itself(names, store):
    here = Here(store)
    prepare([here.step(name) for name in names], here.lines.append)
    count = len(names)
    assert here.compiled[:count] == names
    assert here.lines[1:-1] == [f"compiling {name} ({i} of {count}) ..." for i, name in enumerate(names, 1)]


def test_each_step_is_taken_once_and_elsewhere_those_that_can_be_found():
    here = Here(None)
    local, *others = [here.busy_until(bool), *map(here.step, SMALL)]
    work = Work([local, *others], here.lines.append)
    assert work.take(elsewhere=True) is others[0]
    assert work.take() is local
    assert work.take() is others[1]
    work.give_back(others[0])
    assert list(work) == [others[0], others[2]]
    assert work.take() is work.take(elsewhere=True) is None
    names = ["pauses", "busy", "publish", "pauses", "run_own_part"]
    assert here.lines == [f"compiling {name} ({i} of 4) ..." for name, i in zip(names, [1, 2, 3, 3, 4], strict=True)]


def test_the_other_process_takes_steps_while_this_one_is_busy(store, started):
    here = Here(store)
    busy = here.busy_until(lambda: all(here.is_kept(name) for name in SMALL))
    prepare([busy, *map(here.step, SMALL)], here.lines.append)
    assert here.compiled == ["busy"]
    assert here.lines[1:-1] == [f"compiling {name} ({i} of 4) ..." for i, name in enumerate(["busy", *SMALL], 1)]
    assert [process.poll() is not None for process in started] == [True], "one, which has ended"
    assert not list(store.directory.glob("*.tmp"))


@pytest.mark.parametrize("module", ["nvg.no_such_module", "nvg.runtime.gil"])
def test_what_the_other_process_fails_to_do_this_one_does(store, started, module):
    here = Here(store)
    busy = here.busy_until(lambda: started and started[0].poll() is not None)
    prepare([busy, *(here.step(name, module) for name in SMALL)], here.lines.append)
    assert sorted(here.compiled[:4]) == sorted(["busy", *SMALL])
    said = [line.split()[1] for line in here.lines[1:-1]]
    assert sorted(said) == sorted(["busy", *SMALL, "pauses"]), "that one was tried by both"


def test_a_process_that_would_keep_it_elsewhere_gets_nothing(store, started, monkeypatch):
    monkeypatch.setattr(compile_helper, "store_key", lambda: ["another", *store_key()])
    here = Here(store)
    busy = here.busy_until(lambda: started and started[0].poll() is not None)
    prepare([busy, *map(here.step, SMALL)], here.lines.append)
    assert here.compiled[:4] == ["busy", *SMALL]


def refuse(*arguments, **options):
    raise PermissionError("no processes here")


class TestNoProcess:
    def test_with_one_core(self, store, started, monkeypatch):
        monkeypatch.setattr(cores, "default_threads", lambda: 1)
        done_by_the_process_itself(SMALL, store)
        assert not started

    def test_for_few_steps(self, store, started):
        done_by_the_process_itself(SMALL[:2], store)
        assert not started

    def test_for_steps_that_it_could_not_find(self, store, started):
        here = Here(store)
        prepare([here.busy_until(lambda: True), *map(here.step, SMALL[:2])], here.lines.append)
        assert not started

    @pytest.mark.parametrize("executable", ["/usr/bin/editor", "", None])
    def test_in_a_program_with_python_inside(self, store, started, monkeypatch, executable):
        monkeypatch.setattr(sys, "executable", executable)
        done_by_the_process_itself(SMALL, store)
        assert not started

    def test_in_a_frozen_program(self, store, started, monkeypatch):
        monkeypatch.setattr(sys, "frozen", True, raising=False)
        done_by_the_process_itself(SMALL, store)
        assert not started

    def test_where_none_may_be_started(self, store, monkeypatch):
        monkeypatch.setattr(subprocess, "Popen", refuse)
        done_by_the_process_itself(SMALL, store)

    @pytest.mark.filterwarnings("ignore:nvg. the compile cache can't be used")
    def test_where_nothing_can_be_kept(self, started, tmp_path, monkeypatch):
        (tmp_path / "cache").touch()
        compiled = []
        steps = [CompileStep(name, lambda: False, lambda: compiled.append(1)).found_in("nvg") for name in SMALL]
        prepare(steps, lambda line: None)
        assert compiled
        assert not started


def test_it_ends_with_the_process_that_asked_in_the_middle_of_compiling(store, started):
    process = compile_helper._start()
    compile_helper._send(process, compile_helper._places())
    compile_helper._send(process, store_key())
    assert process.stdout.readline() == READY
    compile_helper._send(process, Request("nvg.model.runner", ["int8", None], "forward_int8_bfloat16"))
    process.stdin.close()
    assert process.wait(120) == 0
    assert process.stdout.read() == b""
    process.stdout.close()
    assert not Here(store).is_kept("forward_int8_bfloat16")


def test_an_exception_ends_it(store, started):
    with pytest.raises(KeyboardInterrupt), helper(Work([Here(store).step("pauses")], lambda line: None)):
        raise KeyboardInterrupt
    assert started[0].returncode is not None
    assert "nvg-compile-helper" not in [thread.name for thread in threading.enumerate()]


def test_it_runs_nothing_of_the_program_or_its_user(store, started, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(tmp_path / "sitecustomize.py"), raising=False)
    here = Here(store)
    prepare([here.busy_until(lambda: here.is_kept(SMALL[0])), *map(here.step, SMALL)], here.lines.append)
    assert started
    assert not (tmp_path / "ran").exists()


def test_a_report_that_fails_fails_here(store):
    def report(line):
        if "compiling pauses" in line:
            raise OSError("nobody listens")

    with pytest.raises(OSError, match="nobody listens"):
        prepare([Here(store).step(name) for name in SMALL], report)


def test_what_a_model_and_the_samplers_need_is_compiled_at_once(compiled_kernels, tiny_checkpoint, monkeypatch):
    prepared = []
    missing = CompileStep("missing", lambda: False, lambda: None)
    monkeypatch.setattr("nvg.llm.drawing.compile_steps", lambda: [missing])
    monkeypatch.setattr("nvg.llm.prepare", lambda steps, report: prepared.append([step.name for step in steps]))
    with LLM(model=str(tiny_checkpoint), threads=1):
        pass
    assert [names[:1] + names[-1:] for names in prepared] == [["forward_float32_float32", "missing"]]
