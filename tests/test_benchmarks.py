"""The benchmark scripts run: on the embedded model, briefly, with every optional package missing."""

import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from checkpoints import TALES, write_checkpoint

from nvg.bench.serving import Job
from nvg.model import packed_files
from nvg.model.config import ModelConfig
from nvg.model.costs import prefill_operations

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
OPTIONAL = (
    "llama_cpp", "gguf", "torch", "transformers", "matplotlib", "openvino", "openvino_genai", "ctranslate2", "nncf",
)  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """Runs a script that can't import the optional packages; returns (process, what it wrote as JSON)."""
    for name in OPTIONAL:
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('no {name} here', name='{name}')\n", "utf-8")

    def run_script(name, *options):
        path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": path}
        command = [sys.executable, str(BENCHMARKS / name), *options]
        process = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
        written = tmp_path / "result.json"
        return process, json.loads(written.read_text("utf-8")) if written.exists() else None

    return run_script


def test_side_by_side_measures_nvg_and_names_missing_peers(run):
    options = ("--precision", "float32,int8", "--work", "prefill-40,decode-2-8,topp-1-8", "--new-tokens", "3")
    process, result = run(
        "side_by_side.py", "--model", "tales", *options, "--repetitions", "2", "--json", "result.json"
    )
    assert process.returncode == 0, process.stderr
    for precision in ("float32", "int8"):
        measured = result["precisions"][precision]
        for work in ("prefill-40", "decode-2-8", "topp-1-8"):
            assert len(measured["work"][work]["tok_s"]["nvg"]) == 2
            assert min(measured["work"][work]["tok_s"]["nvg"]) > 0
            assert measured["work"][work]["nvg_of_ceiling"]["median"] > 0
        assert measured["work"]["prefill-40"]["nvg_of_ceiling"]["bound"] == "computing"
        assert len(measured["machine"]["read_bytes_s"]["prefill-40"]) == 2
        peers = {name: engine for name, engine in measured["engines"].items() if name != "nvg"}
        assert len(peers) >= 3
        for name, engine in peers.items():
            assert engine["problem"].startswith("missing: no "), (name, engine)
            assert name in process.stdout
    assert result["machine"]["load average"]


def test_side_by_side_refuses_a_context_that_does_not_fit(run):
    process, _ = run("side_by_side.py", "--model", "tales", "--work", "prefill-513")
    assert process.returncode == 2
    assert process.stderr == "error: prefill-513 (513 tokens): the model's context holds 512\n"


def test_kv_cache_measures_both_ways_and_says_that_it_can_not_plot(run):
    options = ("--length", "70", "--every", "40", "--repetitions", "1", "--json", "result.json")
    process, result = run("kv_cache.py", *options)
    assert process.returncode == 0, process.stderr
    assert result["positions"] == [1, 40, 70]
    assert len(result["cached_s"]) == len(result["recomputed_s"]) == 3
    assert "no plot: no matplotlib here; `pip install matplotlib`" in process.stderr


def test_sampling_measures_nvg_and_names_missing_peers(run):
    process, result = run("sampling.py", "--vocab-size", "300", "--repetitions", "3", "--json", "result.json")
    assert process.returncode == 0, process.stderr
    for rows in result["us"].values():
        assert [len(engines["nvg"]) for engines in rows.values()] == [3, 3]
    assert list(result["problems"]) == ["llama.cpp", "transformers"]
    assert "llama.cpp missing: no llama_cpp here" in process.stdout


def test_load_measures_every_way_and_keeps_nothing(run, tmp_path):
    directory = write_checkpoint(tmp_path / "model", n_layer=1, n_embd=256, vocab_size=64_000)  # just worth keeping
    options = ("--dtype", "float32", "--repetitions", "2", "--new-tokens", "3", "--json", "result.json")
    process, result = run("load.py", "--model", str(directory), *options)
    assert process.returncode == 0, process.stderr
    measured = result["dtypes"]["float32"]
    assert list(measured["loads"]) == ["load_file", "source", "first", "packed"]
    for kind, runs in measured["loads"].items():
        assert len(runs) == 2
        assert all(kept["ready_s"] > 0 for kept in runs)
        if kind != "load_file":
            assert {kept["is_from_cache"] for kept in runs} == {kind == "packed"}
            assert len(measured["generate_s"][kind]) == 2
            assert measured["ready_over_load_file"][kind]["median"] > 0
    assert not [file for file in packed_files.packed_files() if file.model == str(directory)]


def test_tokenizing_measures_each_library_on_each_text(run, tmp_path):
    (tmp_path / "text.txt").write_text("Once upon a time\nthere was a king.\n" * 100)
    options = ("--text", "tale=text.txt", "--megabytes", "0.003", "--small-megabytes", "0.001", "--repetitions", "1")
    process, result = run("tokenizing.py", str(TALES), *options, "--json", "result.json")
    assert process.returncode == 0, process.stderr
    assert set(result["texts"]) >= {"code", "code, batch", "tale", "tale, batch", "^", "spaces", "emoji", "one word"}
    for measured in result["texts"].values():
        assert set(measured["mb_s"]) == {"nvg", "tokenizers", "tiktoken"}
        assert min(map(min, measured["mb_s"].values())) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("load.py", "--model", "nope"), "argument --model: no model 'nope': it is neither a built-in model (tales)"),
        (("soak.py", "--model", "nope"), "argument --model: no model 'nope'"),
        (("dummy.py", "gpt2", "file/x"), "error: file/x: Not a directory"),
        (("readme_table.py", "--no-such"), "unrecognized arguments: --no-such"),
    ],
    ids=str,
)
def test_bad_arguments_are_told_without_a_traceback(arguments, message, run, tmp_path):
    (tmp_path / "file").touch()
    process, _ = run(*arguments)
    assert process.returncode == 2
    assert process.stderr.startswith("usage: ")
    assert message in process.stderr


def test_load_says_that_a_model_is_too_small(run):
    process, _ = run("load.py", "--model", str(TALES), "--dtype", "int8", "--repetitions", "1", "--new-tokens", "3")
    assert process.returncode == 1
    assert process.stderr.endswith("was not kept and found again: too little room, or too small a model\n")


def test_team_measures_costs_and_decode_in_company(run):
    options = ("--model", "tales", "--new-tokens", "4", "--repetitions", "2", "--threads", "2", "--json", "result.json")
    process, result = run("team.py", *options)
    assert process.returncode == 0, process.stderr
    assert len(result["team"]["barrier_ns"]) == len(result["team"]["idle_cpu_ms"]) == 2
    assert min(result["team"]["job_us"]) > 0
    assert {"alone", "two engines at once, together"} <= set(result["decode_tok_s"])
    for name, rates in result["decode_tok_s"].items():
        assert len(rates) == 2
        assert min(rates) > 0
        assert name in process.stdout


def test_kernels_measures_each_kind_shape_and_number_of_rows(run):
    options = ("--dtype", "float32,int4", "--shape", "attn c_proj,head", "--rows", "1,3,100", "--memory", "1")
    process, result = run("kernels.py", *options, "--threads", "2", "--repetitions", "2", "--json", "result.json")
    assert process.returncode == 0, process.stderr
    measured = {(kernel["dtype"], kernel["shape"], kernel["num_rows"]): kernel for kernel in result["kernels"]}
    shapes = [("attn c_proj", rows) for rows in (1, 3, 100)] + [("head", rows) for rows in (1, 3)]
    assert list(measured) == [(dtype, *shape) for dtype in ("float32", "int4") for shape in shapes]
    for kernel in measured.values():
        assert len(kernel["of_bound"]) == len(kernel["bounds"]) == 2
        assert min(kernel["seconds"]) > 0
    first = measured["float32", "attn c_proj", 3]
    assert first["gflop_s"][0] == pytest.approx(2 * 3 * 768 * 768 / first["seconds"][0] / 1e9, rel=1e-3)
    assert first["gb_s"][0] == pytest.approx(4 * 768 * 768 / first["seconds"][0] / 1e9, rel=1e-3)


@pytest.mark.parametrize(("option", "value", "shown"), [("--dtype", "int3", "int4"), ("--rows", "1,0", "'0' is no")])
def test_kernels_refuses_what_it_has_not(run, option, value, shown):
    process, _ = run("kernels.py", option, value)
    assert process.returncode == 2
    assert shown in process.stderr


def test_throughput_measures_nvg_and_names_missing_peers(run):
    options = ("--model", "tales", "--precision", "float32,int8", "--requests", "3", "--slots", "2")
    engines = "nvg,nvg-int8-kv,llama.cpp,openvino-genai,ctranslate2"
    process, result = run(
        "throughput.py", *options, "--engines", engines, "--repetitions", "2", "--json", "result.json"
    )
    assert process.returncode == 0, process.stderr
    for precision in ("float32", "int8"):
        engines = result["precisions"][precision]["engines"]
        assert len(engines["nvg"]["tok_s"]) == len(engines["nvg-int8-kv"]["tok_s"]) == 2
        assert all(fraction > 0 for fraction in engines["nvg"]["of_ceiling"])
        assert len(engines["nvg"]["of_ceiling"]) == 2
        for name in ("llama.cpp", "openvino-genai", "ctranslate2"):
            assert engines[name]["problem"].startswith("missing: no "), engines[name]
            assert name in process.stdout
        assert result["precisions"][precision]["is_x"] == {"nvg": {}, "nvg-int8-kv": {}}


def test_least_seconds_are_those_of_every_step_computed_and_read(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    least_seconds = importlib.import_module("bounds").least_seconds
    config = ModelConfig(vocab_size=101, n_positions=40, n_embd=64, n_layer=3, n_head=2, n_inner=96)
    operations, entries = 0, 0
    for length, max_tokens in ((5, 4), (7, 1)):
        operations += prefill_operations(config, length)
        for step in range(max_tokens - 1):
            keys = length + step + 1
            attention = config.n_layer * config.n_head * keys * 4 * config.head_size
            operations += prefill_operations(config, keys, keys) - prefill_operations(config, keys - 1, keys - 1)
            operations -= attention
            entries += keys
    jobs = [Job([0] * 5, 4), Job([0] * 7, 1)]
    assert least_seconds(config, jobs, "float32", 10.0, math.inf) == pytest.approx(operations / 10)
    assert least_seconds(config, jobs, "float32", math.inf, 1.0) == entries * config.n_layer * 2 * 64 * 4


def test_throughput_compares_every_kind_of_nvg_with_every_peer_that_ended(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    throughput = importlib.import_module("throughput")
    rates = {"nvg": [3.0, 4.0], "nvg-int8-kv": [6.0, 6.0], "llama.cpp": [], "openvino-genai": [2.0, 2.0]}
    by_name = {variant.name: variant for variant in throughput._variants("float32")}
    engines = [throughput.Measured(SimpleNamespace(variant=by_name[name]), tok_s) for name, tok_s in rates.items()]
    medians = {
        name: {peer: spread.median for peer, spread in by_peer.items()}
        for name, by_peer in throughput.ratios(engines).items()
    }
    assert medians == {"nvg": {"openvino-genai": 1.75}, "nvg-int8-kv": {"openvino-genai": 3.0}}


def test_soak_counts_and_compares(run):
    process, result = run("soak.py", "--requests", "250", "--json", "result.json")
    assert result["requests"] == 250, process.stderr
    assert result["blocks that leaked"] == result["that gave something else"] == 0
    assert result["cancelled"] > 0
    assert len(result["resident after each tenth, MB"]) == 10
    assert result["tokens from the prefix cache"] > 0
