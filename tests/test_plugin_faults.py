"""Plugins that go wrong: the message names the sampler and its distribution, and everything else goes on."""

import json
import os
import re
import signal
import threading
import time

import numpy as np
import pytest
from cli_runner import finish, run_cli, start_cli
from fakes import LetterTokenizer, TableRunner, cycle

from nvg import LLM, EngineConfig, SamplingParams
from nvg.plugins import Registry

FAULTY = '''
import sys
import time
from dataclasses import dataclass

import numpy as np

from nvg import hookimpl

print("imported")


@dataclass(frozen=True)
class AtSeven:
    """Does one thing from output token 7 on.

    what: to do
    """

    what: str = "raise"

    def apply(self, logits, token_ids, state):
        if self.what == "print":
            print("applied", state.step)
        if state.step < 7:
            return
        if self.what == "raise":
            raise KeyError("seven")
        if self.what == "nan":
            logits[0] = np.nan
        if self.what == "remove":
            logits[:] = -np.inf
        if self.what == "exit":
            sys.exit(3)
        if self.what == "sleep":
            time.sleep(600)


@dataclass(frozen=True)
class Restarting:
    """Fails to start."""

    def start(self, request):
        raise OSError("no table")

    def apply(self, logits, token_ids, state):
        pass


@hookimpl
def nvg_register_samplers(register):
    print("registering")
    register("at-seven", AtSeven)
    register("restarting", Restarting)
'''
NAMED = "sampler 'at-seven' of nvg-Faulty 1.5 "


@pytest.fixture
def site(install_distribution, monkeypatch):
    """A directory with the distribution nvg-Faulty, which processes and this one find."""
    path = install_distribution("nvg-Faulty", "nvg", {"faulty": ""}, FAULTY)
    points = next(path.glob("*.dist-info")) / "entry_points.txt"
    points.write_text("[nvg]\nfaulty = nvg_faulty\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(path), os.environ.get("PYTHONPATH")])))
    monkeypatch.setattr("nvg.plugins._registry", None)
    return path


@pytest.fixture
def llm():
    config = EngineConfig(max_num_seqs=4)
    with LLM.from_components(config, TableRunner(cycle(6)), LetterTokenizer(6)) as llm:
        yield llm


@pytest.mark.parametrize(
    ("what", "fault"),
    [
        ("raise", "raised KeyError: 'seven', at output token 7"),
        ("nan", "left NaN for 1 of 6 candidates, at output token 7"),
        ("remove", "removed every candidate, at output token 7"),
        ("exit", "raised SystemExit: 3, at output token 7"),
    ],
)
def test_a_fault_at_step_seven_ends_its_own_request(what, fault, site, llm):
    alone = llm.generate("a", SamplingParams(max_tokens=12, seed=1))[0]
    faulty = SamplingParams(sampler=("at-seven", {"what": what}), max_tokens=12, seed=1)
    sound = SamplingParams(max_tokens=12, seed=1)
    outputs = llm.generate(["a", "a", "b"], [sound, faulty, sound])
    assert outputs[1].finish_reason == "error"
    assert re.sub(r" \(nvg_faulty\w*\.py, line \d+\)", "", outputs[1].error) == NAMED + fault
    assert len(outputs[1].token_ids) == 7
    assert outputs[0].token_ids == alone.token_ids
    assert [output.finish_reason for output in outputs] == ["length", "error", "length"]
    assert llm.generate("a", sound)[0].token_ids == alone.token_ids


def test_a_sampler_that_does_not_start(site, llm):
    sound = SamplingParams(max_tokens=3, seed=1)
    outputs = llm.generate(["a", "a"], [SamplingParams(sampler="restarting", max_tokens=3), sound])
    named = r"sampler 'restarting' of nvg-Faulty 1\.5 raised in start OSError: no table \(nvg_faulty\w*\.py, line \d+\)"
    assert re.fullmatch(named, outputs[0].error)
    assert outputs[1].finish_reason == "length"


def test_the_command_line_says_the_same(site):
    done = finish(start_cli("generate", "The king", "--sampler", "at-seven", "--seed", "1", "--max-tokens", "12"))
    assert done.code == 1
    place = r" \(nvg_faulty\w*\.py, line \d+\), at output token 7\n"
    assert re.search(re.escape(f"nvg: error: {NAMED}raised KeyError: 'seven'") + place, done.stderr)
    assert "Traceback" not in done.stderr


def test_the_author_gets_the_traceback(site, llm, monkeypatch, capsys):
    monkeypatch.setenv("NVG_DEBUG", "1")
    llm.generate("a", SamplingParams(sampler=("at-seven", {"what": "raise"}), max_tokens=12, seed=1))
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert "in apply" in shown
    assert "KeyError: 'seven'" in shown


def test_an_option_that_does_not_exist(site):
    done = run_cli("generate", "The king", "--sampler", "at-seven", "-o", "wat=raise")
    assert (done.code, done.stdout) == (2, "")
    assert "no option of this chain is called 'wat'" in done.stderr
    assert "at-seven.what" in done.stderr


def test_what_plugins_print_is_no_text(site):
    arguments = ("generate", "The king", "--sampler", "at-seven", "-o", "what=print", "--sampler", "greedy")
    plain = finish(start_cli("generate", "The king", "--sampler", "greedy", "--max-tokens", "4"))
    done = finish(start_cli(*arguments, "--max-tokens", "4"))
    assert (done.code, done.stdout) == (0, plain.stdout)
    for line in ("imported", "registering", "applied 0", "applied 3"):
        assert line in done.stderr.splitlines()
    done = finish(start_cli(*arguments, "--max-tokens", "4", "--format", "json"))
    assert json.loads(done.stdout)["choices"][0]["text"] == plain.stdout.removesuffix("\n")
    done = finish(start_cli("plugins", "check", "at-seven", "-o", "what=print", "--format", "json"))
    assert json.loads(done.stdout)["passed"] is True
    assert "applied 0" in done.stderr


RAW = """
import os, sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Raw:
    '''Writes to stdout without sys.stdout, and closes it.'''

    def apply(self, logits, token_ids, state):
        if state.step == 2:
            os.close(1)
        else:
            os.write(1, b"raw\\n")
            sys.__stdout__.write("dunder\\n")
            sys.__stdout__.flush()


os.write(1, b"loading\\n")
"""


def test_what_is_written_to_the_descriptor_is_no_text(tmp_path):
    (tmp_path / "raw.py").write_text(RAW)
    chain = ("--sampler", f"{tmp_path}/raw.py:Raw", "--sampler", "greedy", "--max-tokens", "3")
    plain = finish(start_cli("generate", "The king", "--sampler", "greedy", "--max-tokens", "3"))
    done = finish(start_cli("generate", "The king", *chain))
    assert (done.code, done.stdout) == (0, plain.stdout)
    for line in ("loading", "raw", "dunder"):
        assert line in done.stderr.splitlines()


def test_listing_prints_nothing_of_a_plugin(site):
    for command in (["samplers"], ["plugins"], ["samplers", "at-seven"]):
        done = finish(start_cli(*command))
        assert done.code == 0
        assert "imported" not in done.stdout
        assert "imported" in done.stderr


def test_without_plugins(site):
    done = finish(start_cli("samplers", env={"NVG_LOAD_PLUGINS": ""}))
    assert done.stderr == ""
    names = [line.split()[0] for line in done.stdout.splitlines()[1:] if not line.startswith(" ")]
    assert set(Registry("").samplers.names()) == set(names)
    done = finish(start_cli("generate", "x", "--sampler", "at-seven", env={"NVG_LOAD_PLUGINS": ""}))
    assert done.code == 2
    assert "no sampler is called 'at-seven'" in done.stderr


def test_a_broken_and_a_duplicate_plugin_break_nothing_else(install_distribution, monkeypatch):
    for name, source in (
        ("nvg-broken", "import a_module_that_nobody_has"),
        ("nvg-double", FAULTY.replace("at-seven", "topk").replace("restarting", "lonely")),
    ):
        path = install_distribution(name, "nvg", {"point": ""}, source)
        (path / f"{name.replace('-', '_')}-1.5.dist-info" / "entry_points.txt").write_text(
            f"[nvg]\npoint = {name.replace('-', '_')}\n"
        )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(path), os.environ.get("PYTHONPATH")])))
    done = finish(start_cli("generate", "The king", "--sampler", "greedy", "--max-tokens", "8"))
    assert (done.code, done.stdout) == (0, " was very angry, and said, '\n")
    assert "plugin 'point' of nvg-broken 1.5 is not loaded: ModuleNotFoundError" in done.stderr
    done = finish(start_cli("generate", "The king", "--sampler", "topk", "--max-tokens", "8"))
    assert done.code == 1
    assert (
        "sampler 'topk' is registered twice, by nvg (built in) (nvg.sampling.topk:TopK) and nvg-double 1.5"
        in done.stderr
    )


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_a_sampler_that_takes_forever_can_be_interrupted(site):
    process = start_cli("generate", "The king", "--sampler", "at-seven", "-o", "what=sleep", "--sampler", "greedy")
    shown = b""
    while b"said," not in shown:  # the seventh token
        shown += os.read(process.stdout.fileno(), 100)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    done = finish(process)
    assert done.code == 130
    assert done.stderr.endswith("nvg: interrupted\n")


def test_closing_does_not_wait_for_a_sampler_that_does_not_return(llm, monkeypatch):
    monkeypatch.setattr("nvg.engine.thread._PATIENCE_S", 0.05)
    called, returns = threading.Event(), threading.Event()

    class Hanging:
        def apply(self, logits, token_ids, state):
            called.set()
            returns.wait(60)

    stream = llm.stream("a", SamplingParams(sampler=Hanging(), max_tokens=3, seed=1))
    assert called.wait(60)
    thread = llm._thread._thread
    llm.close()
    assert thread.is_alive()
    assert not llm._engine.runner.closed, "which the sampler's step may still need"
    returns.set()
    thread.join(60)
    assert llm._engine.runner.closed
    assert [piece.finish_reason for piece in stream][-1] == "aborted"


def test_seven_steps_are_there(llm):
    assert np.array_equal(llm.generate("a", SamplingParams(max_tokens=3, seed=1))[0].token_ids, [2, 3, 4])
