"""Which instructions LLVM can compile: asked of a child process, because LLVM ends the process that asks in vain."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nvg.runtime import cpu, probe
from nvg.runtime.instructions import Instruction, instruction

TRIPLE = "x86_64-unknown-linux-gnu"
AVX2 = (TRIPLE, "haswell", "+avx2,+avx,+fma,+ssse3,+sse2")
ARM = ("aarch64-unknown-linux-gnu", "generic", "+neon")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Where answers are kept."""
    monkeypatch.setenv("NVG_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "instructions"


def wanted(*kinds, lanes=8):
    return [instruction(kind, lanes) for kind in kinds]


def test_what_the_target_has_is_there_and_what_it_lacks_is_missing(cache, capfd):
    asked = wanted("pshufb", "vnni", "pmaddwd")
    assert probe.missing_instructions(AVX2, asked) == {"llvm.x86.avx512.vpdpbusd.256"}
    line = "nvg: llvm.x86.avx512.vpdpbusd.256 can't be compiled for the CPU haswell: plainer code is used, "
    assert capfd.readouterr().err == f"{line}which is slower\n"
    with_vnni = (*AVX2[:2], f"{AVX2[2]},+avxvnni")
    assert probe.missing_instructions(with_vnni, asked) == set()
    with_avx512 = (TRIPLE, "skylake-avx512", "+avx512f,+avx512bw,+avx512vl,+avx2")
    asked = wanted("dpbf16ps", "vnni", "pmaddwd", "pshufb", lanes=16)
    assert probe.missing_instructions(with_avx512, asked) == {asked[0].name, asked[1].name}, "a child for each"
    assert len(list(cache.iterdir())) == 3


@pytest.mark.parametrize(
    ("target", "lanes", "kinds", "missing"),
    [
        ((*AVX2[:2], f"{AVX2[2]},+avx512vnni,+avx512vl"), 4, ["vnni", "pmaddwd", "pshufb"], []),
        ((TRIPLE, "x86-64", "+ssse3"), 4, ["vnni", "pmaddwd", "pshufb"], ["vnni"]),
        ((TRIPLE, "x86-64", ""), 4, ["pmaddwd", "pshufb"], ["pshufb"]),
        ((TRIPLE, "znver5", ""), 16, ["vnni", "pmaddwd", "pshufb", "dpbf16ps"], []),
        (ARM, 4, ["tbl", "sdot"], ["sdot"]),
        ((*ARM[:2], "+neon,+dotprod"), 4, ["tbl", "sdot"], []),
    ],
    ids=str,
)
def test_the_table_has_the_names_that_llvm_has(target, lanes, kinds, missing):
    names = {instruction(kind, lanes).name for kind in missing}
    assert probe.missing_instructions(target, wanted(*kinds, lanes=lanes)) == names


def test_an_answer_is_kept_and_then_no_child_is_started(cache, monkeypatch, capfd):
    asked = wanted("vnni", "pmaddwd")
    first = probe.missing_instructions(AVX2, asked)
    assert capfd.readouterr().err

    def run(*args, **options):
        raise AssertionError("a child was started")

    monkeypatch.setattr(subprocess, "run", run)
    assert probe.missing_instructions(AVX2, asked) == first
    assert capfd.readouterr().err == ""
    with pytest.raises(AssertionError, match="a child was started"):
        probe.missing_instructions((*AVX2[:2], "+avx2"), asked)


@pytest.mark.skipif(sys.platform == "win32", reason="modes")
def test_an_answer_is_this_user_s_alone(cache):
    first = probe.missing_instructions(AVX2, wanted("vnni"))
    (kept,) = cache.iterdir()
    assert (cache.stat().st_mode & 0o777, kept.stat().st_mode & 0o777) == (0o700, 0o600)
    kept.write_text('{"missing": []}')
    kept.chmod(0o622)
    assert probe.missing_instructions(AVX2, wanted("vnni")) == first, "others could have written it"


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"missing": 5}', "\0\0"])
def test_a_damaged_answer_is_asked_for_again(cache, damage):
    first = probe.missing_instructions(AVX2, wanted("vnni"))
    kept = next(cache.iterdir())
    kept.write_text(damage)
    assert probe.missing_instructions(AVX2, wanted("vnni")) == first
    assert json.loads(kept.read_text()) == {"missing": sorted(first)}


def test_names_and_types_that_this_llvm_does_not_know_are_missing():
    known = instruction("pmaddwd", 8)
    nonsense = Instruction("llvm.x86.nonsense", known.result, known.operands)
    mistyped = Instruction("llvm.x86.avx2.pshuf.b", known.result, known.operands)
    missing = probe.missing_instructions(AVX2, [nonsense, mistyped, known])
    assert missing == {nonsense.name, mistyped.name}


@pytest.mark.parametrize("executable", ["", "/nowhere/python", "/usr/bin/an-application", "broken-python"])
def test_without_a_child_the_features_are_trusted(cache, monkeypatch, tmp_path, executable):
    if executable == "broken-python":
        executable = tmp_path / executable
        executable.write_text("#!/bin/sh\nexit 3\n")
        executable.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(executable))
    assert probe.missing_instructions(AVX2, wanted("vnni", "pmaddwd")) == set()
    assert not cache.exists(), "and nothing is known for the next time"


def test_what_takes_too_long_is_missing_for_this_time(cache, monkeypatch, tmp_path, capfd):
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import json, sys, time\n"
        "functions = json.load(sys.stdin)['functions']\n"
        "print('ready', flush=True)\n"
        "for name, _ in functions:\n"
        "    time.sleep(1000 if 'vpdpbusd' in name else 0)\n"
        "    print('yes', flush=True)\n"
    )
    monkeypatch.setattr(probe, "_CHILD", slow)
    monkeypatch.setattr(probe, "TIMEOUT_S", 3.0)
    asked = wanted("pshufb", "vnni", "pmaddwd")
    assert probe.missing_instructions(AVX2, asked) == {asked[1].name}
    assert capfd.readouterr().err.startswith(f"nvg: {asked[1].name} took longer than 3 s for the CPU haswell")
    assert not cache.exists()


def test_a_cache_that_can_not_be_written_is_no_matter(cache):
    cache.parent.write_text("a file, where a directory should be")
    assert probe.missing_instructions(AVX2, wanted("vnni")) == {"llvm.x86.avx512.vpdpbusd.256"}


CLAIM = """
import dataclasses, os, sys
from nvg.runtime import cpu
of = cpu.features_of
cpu.features_of = lambda triple, on: dataclasses.replace(of(triple, on), **eval(sys.argv[1]))
found = cpu.features()
print(found.int8_dot, found.byte_shuffle, found.bf16_dot)
"""
SSE = ("nehalem", "+sse4.2,+sse4.1,+ssse3,+sse3,+sse2,+sse,+popcnt,+cx16,+64bit,+cmov")
HASWELL = ("haswell", "+avx2,+avx,+fma,+f16c,+bmi,+bmi2,+sse4.2,+sse4.1,+ssse3,+sse3,+sse2,+sse,+64bit")
SKYLAKE = ("skylake-avx512", f"{HASWELL[1]},+avx512f,+avx512bw,+avx512vl,+avx512dq,+avx512cd")


def run_claiming(claim, target, code=CLAIM, **environment):
    """A process for a CPU whose features are taken for more than they are."""
    environment = {**os.environ, "NUMBA_CPU_NAME": target[0], "NUMBA_CPU_FEATURES": target[1], **environment}
    return subprocess.run(
        [sys.executable, "-c", code, repr(claim)], env=environment, capture_output=True, text=True, timeout=600
    )


@pytest.mark.skipif(not cpu.target()[0].startswith("x86_64"), reason="for x86-64")
@pytest.mark.parametrize(
    ("target", "claim", "shown"),
    [
        (HASWELL, {"int8_dot": "vnni"}, "pmaddwd pshufb False"),
        (SKYLAKE, {"int8_dot": "vnni", "bf16_dot": True}, "pmaddwd pshufb False"),
        (SSE, {"int8_dot": "sdot", "byte_shuffle": "tbl"}, "plain plain False"),
    ],
)
def test_what_is_missing_is_replaced_by_the_next_plainer(target, claim, shown):
    done = run_claiming(claim, target)
    assert done.stdout.strip() == shown, done.stderr
    assert len(done.stderr.splitlines()) == len(claim), "a line for each"


GENERATE = """
from nvg import LLM, SamplingParams
with LLM("tales", dtype="int8", kv_dtype="int8", threads=2) as llm:
    print(llm.generate("Once upon a time", SamplingParams(temperature=0, max_tokens=24))[0].token_ids)
"""


@pytest.mark.skipif(not cpu.target()[0].startswith("x86_64"), reason="for x86-64")
def test_an_engine_on_a_cpu_that_claims_too_much_generates_the_same(monkeypatch):
    from nvg import LLM, SamplingParams

    if "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("needs AVX2")
    monkeypatch.undo()  # kernels come from the user's own cache
    # integer dot products are exact, and chains of multiply-adds the same at any width: so are the tokens
    with LLM("tales", dtype="int8", kv_dtype="int8", threads=2) as llm:
        expected = llm.generate("Once upon a time", SamplingParams(temperature=0, max_tokens=24))[0].token_ids
    done = run_claiming({"int8_dot": "vnni"}, HASWELL, CLAIM + GENERATE)
    assert done.stdout.splitlines() == ["pmaddwd pshufb False", str(expected)], done.stderr


def test_what_is_kept_of_this_machine_is_what_its_features_say():
    """Or the table of instructions has an error: this CPU has what it says it has."""
    triple, _, on = cpu.target()
    assert cpu.features() == cpu.features_of(triple, on)
