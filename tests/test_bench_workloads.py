"""The workloads of `nvg bench`: they are what their recipes say, and what is counted adds up. No timings."""

import json
import random
import re

import numpy as np
import pytest
from cli_runner import run_cli
from fakes import LetterTokenizer, TableRunner, cycle

from nvg.bench.options import WorkloadOptions
from nvg.bench.serving import Job, Served, serve
from nvg.bench.workloads import poisson, prefix_jobs, throughput_jobs
from nvg.engine.engine import Engine
from nvg.errors import EngineError, ParameterError
from nvg.params import EngineConfig, SamplingParams
from nvg.sampling.compose import resolve

GREEDY = resolve(SamplingParams(temperature=0))


@pytest.fixture
def engine():
    return Engine(EngineConfig(max_num_seqs=4), TableRunner(cycle(7)), LetterTokenizer(7))


def test_throughput_is_nano_vllms_recipe_at_half_the_size():
    random.seed(0)
    prompts = [[random.randint(0, 10000) for _ in range(random.randint(51, 512))] for _ in range(256)]
    lengths = [random.randint(51, 512) for _ in range(256)]
    assert throughput_jobs(256, 1024, 50257) == [Job(*pair) for pair in zip(prompts, lengths, strict=True)]
    small = throughput_jobs(50, 64, 30)
    assert max(max(job.prompt) for job in small) == 29
    assert all(3 <= len(job.prompt) <= 32 and 3 <= job.max_tokens <= 32 for job in small)


def test_prefix_has_500_common_tokens():
    jobs = prefix_jobs(20, 1024, 50257)
    assert {len(job.prompt) for job in jobs} == {512}
    assert len({tuple(job.prompt[:500]) for job in jobs}) == 1
    assert len({tuple(job.prompt[500:]) for job in jobs}) == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"requests": 10**6}, "requests is 1000000; it must be an integer from 1 to 10000"),
        ({"workload": "prefix", "requests": 8}, "requests is 8; it must be an integer from 9 to 10000"),
        ({"rate": 1e-9}, "rate is 1e-09; it must be a number from 0.001 to 100000"),
        ({"rate": 1e300}, "rate is 1e+300; it must be a number from 0.001 to 100000"),
    ],
)
def test_a_workload_has_bounds(options, message):
    with pytest.raises(ParameterError, match=re.escape(message)):
        WorkloadOptions(**{"workload": "trace", **options})


def test_arrivals_are_a_poisson_process():
    times = [job.arrives_s for job in poisson([Job([1], 1)] * 20_000, 5.0)]
    gaps = np.diff([0, *times])
    assert gaps.min() > 0
    assert gaps.mean() == pytest.approx(0.2, rel=0.03)
    assert gaps.std() == pytest.approx(0.2, rel=0.03), "as exponential gaps have it"


def test_what_is_served_adds_up(engine):
    jobs = [Job([1 + i % 6] * (1 + 3 * i), 2 + i) for i in range(10)]
    served = serve(engine, jobs, GREEDY)
    record = served.record()
    assert record["requests"] == len(served.first_token_s) == 10
    assert record["output_tokens"] == sum(job.max_tokens for job in jobs)
    assert len(served.between_tokens_s) == record["output_tokens"] - 10
    assert record["prompt_tokens"] == sum(len(job.prompt) for job in jobs)
    assert record["steps"] == len(engine.runner.batches)
    assert record["rows_per_step"] == pytest.approx((record["output_tokens"] - 10) / record["steps"])
    assert 0 < served.model_s < served.step_s < record["seconds"]
    assert record["full_slots"] == 1, "work waited, and all four were taken"
    assert 0 < record["decoding_slots"] <= 1
    assert 0 < record["most_kv_waste"] < 1
    again = serve(engine, jobs, GREEDY)
    assert again.steps == served.steps, "counted from its begin"


def test_jobs_come_when_they_are_due(engine):
    served = serve(engine, [Job([1], 1), Job([2], 1, arrives_s=0.05)], GREEDY)
    assert served.seconds >= 0.05
    assert [len(batch.context_lens) for batch in engine.runner.batches] == [1, 1]
    assert max(served.first_token_s) < 0.05, "from its arrival, not from the begin"


def test_a_sampler_that_fails_is_no_result(engine):
    class Broken:
        def apply(self, logits, token_ids, state):
            raise RuntimeError("no")

    with pytest.raises(EngineError, match="Broken"):
        serve(engine, [Job([1], 2)], resolve(SamplingParams(sampler=[Broken()])))
    with pytest.raises(ParameterError, match="context holds 64"):
        serve(engine, [Job([1] * 65, 2)], GREEDY)


def test_nothing_between_the_only_tokens():
    served = Served(seconds=1.0, step_s=1.0, first_token_s=[0.5], output_tokens=1)
    assert served.record()["between_tokens_s"] is None
    assert served.record()["full_slots"] is None


@pytest.mark.parametrize("workload", ["throughput", "prefix", "trace"])
def test_json_of_a_workload(workload, tiny_checkpoint, compiled_kernels):
    arguments = ("bench", "-m", tiny_checkpoint, "--workload", workload, "--requests", 12, "--max-num-seqs", 3)
    done = run_cli(*arguments, "--format", "json")
    assert done.code == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["workload"] == workload
    assert record["output_tok_s"] > 0
    assert set(record["first_token_s"]) == set(record["between_tokens_s"]) == {"p50", "p95", "p99"}
    assert record["max_num_seqs"] == 3
    assert record["sampler"] == ["temperature"]
    if workload == "prefix":
        assert (record["requests"], record["output_tokens"]) == (12, 12 * 16)
        assert record["prompt_tokens"] == 12 * len(prefix_jobs(12, 64, 40)[0].prompt)
        assert record["cached_tokens"] == 0, "20 common tokens fill no block"
        assert record["speedup"] == pytest.approx(record["cold_first_token_s"] / record["warm_first_token_s"])
    if workload == "trace":
        assert record["rate"] == pytest.approx(0.7 * record["throughput"]["requests_s"])


def test_the_table_of_a_workload(tiny_checkpoint, compiled_kernels):
    asked = ("--workload", "trace", "--rate", 500, "--requests", 5, "--sampler", "greedy", "--threads", 1)
    done = run_cli("bench", "-m", tiny_checkpoint, *asked)
    assert done.code == 0, done.stderr
    first, *rows = done.stdout.splitlines()
    assert first.startswith(f"{tiny_checkpoint}, float32, KV float32, 1 thread, trace: 5 requests, ")
    assert first.endswith("up to 64 at once, sampled through greedy")
    assert [row.split("  ")[0] for row in rows][:5] == [
        "output, tok/s",
        "prompts and output, tok/s",
        "requests a second",
        "first token, ms, p50 p95 p99",
        "between tokens, ms, p50 p95 p99",
    ]
    assert rows[-1].split() == ["they", "came,", "a", "second", "500.00"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--workload", "trace", "--batch", 2], "--batch is not for a --workload"),
        (["--workload", "prefix", "--plot", "x.png"], "--plot is not for a --workload"),
        (["--requests", 5], "--requests is for a --workload"),
        (["--max-num-seqs", 5], "--max-num-seqs is for a --workload"),
        (["--workload", "throughput", "--requests", 0], "--requests is 0; it must be an integer from 1 to 10000"),
        (["--workload", "prefix", "--requests", 8], "--requests is 8; it must be an integer from 9 to 10000"),
        (["--workload", "trace", "--rate", 0], "--rate is 0.0; it must be a number from 0.001 to 100000"),
        (["--workload", "throughput", "--rate", 1], "--rate is 1.0; only the workload trace has one"),
        (["--workload", "throughput", "--max-num-seqs", 0], "--max-num-seqs is 0; it must be an integer >= 1"),
        (["--workload", "all"], "'all' is not one of 'throughput', 'prefix', 'trace'"),
    ],
    ids=str,
)
def test_errors_of_workloads(arguments, error, compiled_kernels):
    done = run_cli("bench", *arguments)
    assert (done.code, done.stdout) == (2, "")
    assert error in done.error


def test_a_pool_that_a_request_does_not_fit(compiled_kernels):
    done = run_cli("bench", "--workload", "throughput", "--kv-memory", "1Mi")
    assert (done.code, done.stdout) == (2, "")
    assert "KV entries, the pool has 2: raise --kv-memory" in done.stderr
