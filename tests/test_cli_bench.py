"""`nvg bench`: the work that is timed is the work that was asked for, and what it prints is whole. No timings."""

import importlib.util
import itertools
import json
import math
import re

import numpy as np
import pytest
from cli_runner import run_cli
from fakes import TableRunner, cycle

from nvg.bench import measure
from nvg.bench.dummy import DummyCheckpoint, NumberTokenizer, dummy_config
from nvg.bench.measure import BenchResult, Repetition
from nvg.bench.options import DUMMY_SIZES, BenchOptions
from nvg.bench.work import BareSteps, SampledSteps
from nvg.engine.engine import Engine
from nvg.errors import EngineError, ParameterError
from nvg.model.config import ModelConfig
from nvg.model.runner import GPT2Runner
from nvg.params import EngineConfig, SamplingParams
from nvg.sampling.compose import resolve

PROMISED = {
    *("prefill_tok_s", "decode_tok_s", "load_s", "compile_s", "first_token_s", "peak_rss_mb", "read_gb_s"),
    *("of_read_bandwidth", "of_peak_flops"),
}
SMALL = ("--prompt-tokens", 20, "--new-tokens", 3, "--context", 5, "--repetitions", 2)
VOCAB_SIZE = 30


@pytest.fixture
def small_buffer(monkeypatch):
    """Reads 10 MB instead of 256: structure is what is tested."""
    monkeypatch.setattr("nvg.bench.ceilings.buffer_bytes", lambda: 10_000_000)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("sampler", [(), ("--sampler", "greedy"), ("--sampler", "topp", "-o", "p=0.9")], ids=str)
def test_json_has_every_promised_number(batch, sampler, tiny_checkpoint, compiled_kernels, small_buffer):
    done = run_cli("bench", "-m", tiny_checkpoint, *SMALL, "--batch", batch, *sampler, "--format", "json")
    assert done.code == 0, done.stderr
    result = json.loads(done.stdout)
    assert result.keys() >= PROMISED
    for name in PROMISED - {"compile_s", "peak_rss_mb"}:
        assert 0 < result[name] < math.inf, name
    assert result["compile_s"] == 0, "the kernels were in the cache"
    assert result["peak_rss_mb"] is None or result["peak_rss_mb"] > 30
    assert (result["prompt_tokens"], result["new_tokens"], result["context"]) == (20, 3, 5)
    assert (result["batch"], result["repetitions"], result["model"]) == (batch, 2, str(tiny_checkpoint))
    assert result["sampler"] == list(sampler[1:2])
    assert result["dtype"] == result["kv_dtype"] == "float32"
    assert result["threads"] >= 1
    assert {"cpu", "features", "versions", "kv_bytes_per_token", "weight_bytes", "peak_instruction"} <= result.keys()
    assert result["versions"].keys() >= {"nvg", "python", "numba", "llvmlite", "numpy"}
    assert result["spreads"].keys() == set(Repetition.__dataclass_fields__)
    for name, (low, high) in result["spreads"].items():
        assert low <= result[name] <= high, name
    assert "nvg: repetition 2 of 2 ...\n" in done.stderr


def test_the_table_has_every_row(tiny_checkpoint, compiled_kernels, small_buffer):
    done = run_cli("bench", "-m", tiny_checkpoint, *SMALL, "--threads", 1)
    assert done.code == 0, done.stderr
    first, second, head, *rows = done.stdout.splitlines()
    assert first == f"{tiny_checkpoint}, float32, KV float32, 1 thread, batch 1, nothing sampled"
    assert second == "prompts of 20 tokens, 3 decode steps after 5, 2 repetitions"
    assert head.split() == ["median", "least", "greatest"]
    assert [len(row.rsplit("  ", 3)) for row in rows[:6]] == [4] * 6
    assert rows[-1].startswith("peak memory, MB ")


def test_work_that_takes_all_positions_fits(tiny_checkpoint, compiled_kernels, small_buffer):
    work = ("--prompt-tokens", 64, "--context", 61, "--new-tokens", 3, "--repetitions", 1)
    assert run_cli("bench", "-m", tiny_checkpoint, *work).code == 0
    work = ("--prompt-tokens", 63, "--context", 60, "--new-tokens", 3, "--repetitions", 1, "--sampler", "greedy")
    assert run_cli("bench", "-m", tiny_checkpoint, *work).code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["--batch", 0], 2, "--batch is 0; it must be an integer from 1 to 32768"),
        (["--batch", 40000], 2, "--batch is 40000; it must be an integer from 1 to 32768"),
        (["--new-tokens", -1], 2, "--new-tokens is -1; it must be an integer >= 1"),
        (["--repetitions", 0], 2, "--repetitions is 0; it must be an integer >= 1"),
        (["--prompt-tokens", 513], 2, "--prompt-tokens is 513; these must fit the model's 512 positions"),
        (
            ["--prompt-tokens", 512, "--sampler", "greedy"],
            2,
            "--prompt-tokens is 512; these and the token that is drawn after them must fit the model's 512 positions",
        ),
        (
            ["--context", 500, "--new-tokens", 13],
            2,
            "--new-tokens is 13; after a context of 500 the model's 512 positions leave room for 12: "
            "lower --new-tokens or context",
        ),
        (["--context", 600, "--prompt-tokens", 1], 2, "--context is 600; the model's 512 positions leave no room"),
        (["--dummy", "gpt2", "--context", 1024], 2, "--context is 1024; the model's 1024 positions leave no room"),
        (["--dummy", "gpt3"], 2, "'gpt3' is not one of"),
        (["--dummy", "gpt2", "-m", "tales"], 2, "--dummy stands for a model: give it or --model, not both"),
        (["-o", "p=0.9"], 2, "-o sets an option of a --sampler, and there is none"),
        (["--sampler", "topq"], 2, "topq"),
        (["--sampler", "topp", "-o", "k=2"], 2, "no option of this chain"),
        (["--threads", 257], 2, "--threads is 257"),
        (["-m", "nosuch"], 4, "no model 'nosuch'"),
    ],
    ids=str,
)  # fmt: skip
def test_errors_come_before_the_work(arguments, code, error, monkeypatch):
    monkeypatch.setattr(measure, "load_engine", None)
    monkeypatch.setattr(measure, "compile_kernels", None)
    done = run_cli("bench", *arguments)
    assert done.code == code
    assert error in done.error


def test_a_batch_that_the_memory_cannot_hold_is_refused_before_it_is_loaded(tiny_checkpoint, monkeypatch):
    monkeypatch.setattr("nvg.engine.sizing.available_memory", lambda: 2**20)
    monkeypatch.setattr(measure, "load_engine", None)
    done = run_cli("bench", "-m", tiny_checkpoint, "--prompt-tokens", 64, "--new-tokens", 9, "--batch", 400)
    assert (done.code, done.stdout) == (2, "")
    expected = r"--batch is 400; as many sequences of 64 tokens need 800 blocks; free memory holds \d+: lower the batch"
    assert re.search(expected, done.stderr)


def test_a_dummy_needs_no_file(compiled_kernels, small_buffer, monkeypatch):
    monkeypatch.setattr(measure, "dummy_config", lambda size: CONFIG)
    done = run_cli("bench", "--dummy", "gpt2-xl", *SMALL, "--sampler", "greedy", "--format", "json")
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["model"] == "gpt2-xl"
    assert json.loads(done.stdout)["of_read_bandwidth"] > 0


def test_a_plot_without_matplotlib_or_place_is_refused(monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "matplotlib" else find(name, *rest)
    )
    done = run_cli("bench", "--plot", tmp_path / "a.png")
    assert (done.code, done.stdout) == (1, "")
    assert done.error == '--plot needs matplotlib, which is not installed: pip install "nvg[bench]"'
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    assert "it must be the name of a .png file" in run_cli("bench", "--plot", tmp_path / "a.jpg").error
    assert "does not exist" in run_cli("bench", "--plot", tmp_path / "no" / "a.png").error


def result(*, weight_bytes=10**6):
    """A result of three repetitions, without any work."""
    repetitions = tuple(Repetition(10.0 * i, i, 30.0, 100.0, 0.1 * i if weight_bytes else None, 0.5) for i in (3, 1, 2))
    return BenchResult(
        "tales", EngineConfig(), BenchOptions(), (), 2, 1.0, 0.0, 0.1, None, weight_bytes, 4.0, "fma", repetitions
    )  # fmt: skip


def test_figures_are_medians_with_least_and_greatest():
    record = result().record()
    assert record["prefill_tok_s"] == 20
    assert record["spreads"]["prefill_tok_s"] == [10, 30]
    assert record["peak_rss_mb"] is None
    assert result(weight_bytes=None).record()["of_read_bandwidth"] is None
    assert result(weight_bytes=None).record()["spreads"]["of_read_bandwidth"] is None
    json.dumps(record)


@pytest.mark.parametrize("weight_bytes", [10**6, None])
def test_the_plot_is_a_png(weight_bytes, tmp_path):
    pytest.importorskip("matplotlib")
    from nvg.bench.plot import check_plot, write_plot

    path = tmp_path / "out.png"
    check_plot(path)
    write_plot(result(weight_bytes=weight_bytes), path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_fractions_follow_from_the_counts(monkeypatch, compiled_kernels, tiny_checkpoint):
    """With a machine of known rates and work of known duration."""

    class Machine:
        read_bytes_s = staticmethod(lambda: 1e9)
        operations_s = staticmethod(lambda instruction: 2e9)
        close = staticmethod(lambda: None)

    monkeypatch.setattr("nvg.bench.ceilings.Ceilings", lambda *arguments: Machine)
    monkeypatch.setattr(BareSteps, "prefill", lambda self, prompts: 0.25)
    monkeypatch.setattr(BareSteps, "decode", lambda self, contexts, tokens: (tokens.size, 0.5))
    options = BenchOptions(prompt_tokens=10, new_tokens=4, batch=2, context=8, repetitions=1)
    found = measure.run(EngineConfig(model=str(tiny_checkpoint)), options, lambda line: None)
    (repetition,) = found.repetitions
    assert repetition.prefill_tok_s == 2 * 10 / 0.25
    assert repetition.decode_tok_s == 2 * 4 / 0.5
    square, vocab_size = 32 * 32, 277
    first_layer = 10 * 12 * square + 2 * 32 * (10 * 11 // 2)
    last_layer = 10 * 2 * square + 10 * square + 2 * 32 * 10  # keys and values of all, and the rest of one
    products = first_layer + last_layer + 32 * vocab_size
    assert repetition.of_peak_flops == pytest.approx(2 * 2 * products / 0.25 / 2e9)
    kv = (8 + 2.5) * found.kv_bytes_per_token
    step_bytes = found.weight_bytes - 4 * 64 * 32 + 2 * kv
    assert repetition.of_read_bandwidth == pytest.approx(step_bytes * 4 / 0.5 / 1e9)


@pytest.fixture
def engine(request):
    """An engine on a runner that checks the batches which it gets."""
    config = EngineConfig(max_num_seqs=8, max_num_batched_tokens=16, max_model_len=64)
    runner = TableRunner(cycle(VOCAB_SIZE), max_batched_tokens=16)
    return Engine(config, runner, NumberTokenizer(VOCAB_SIZE))


def random_ids(rows, columns):
    return np.random.default_rng(rows * 100 + columns).integers(1, VOCAB_SIZE, (rows, columns), np.int32)


@pytest.mark.parametrize(("num_seqs", "length"), [(1, 1), (1, 16), (1, 50), (3, 16), (3, 10), (8, 2), (2, 33)])
def test_bare_prefill_runs_every_prompt_once_and_asks_for_its_last_row(num_seqs, length, engine):
    prompts = random_ids(num_seqs, length)
    BareSteps(engine).prefill(prompts)
    batches = engine.runner.batches
    assert np.array_equal(np.concatenate([batch.token_ids for batch in batches]), prompts.reshape(-1))
    assert len(batches) == -(-prompts.size // 16), "steps are as full as they can be"
    asked = list(itertools.chain(*(batch.token_ids[batch.logits_rows].tolist() for batch in batches)))
    assert asked == prompts[:, -1].tolist()
    assert engine.pool.num_free == engine.pool.num_blocks


@pytest.mark.parametrize(("num_seqs", "length", "num_steps"), [(1, 1, 1), (1, 32, 5), (3, 31, 5), (8, 20, 3)])
def test_bare_decode_feeds_each_sequence_a_token_a_step(num_seqs, length, num_steps, engine):
    tokens = random_ids(num_steps, num_seqs)
    num_tokens, seconds = BareSteps(engine).decode(random_ids(num_seqs, length), tokens)
    assert num_tokens == tokens.size
    assert seconds > 0
    for step, batch in enumerate(engine.runner.batches[-num_steps:]):
        assert batch.token_ids.tolist() == tokens[step].tolist()
        assert batch.context_lens.tolist() == [length + step + 1] * num_seqs
        assert batch.logits_rows.tolist() == list(range(num_seqs))
    assert engine.pool.num_free == engine.pool.num_blocks


@pytest.mark.parametrize(("num_seqs", "length", "num_steps"), [(1, 1, 1), (1, 32, 5), (3, 31, 5), (4, 20, 3)])
def test_sampled_decode_times_steps_of_the_whole_batch(num_seqs, length, num_steps, engine):
    steps = SampledSteps(engine, resolve(SamplingParams(temperature=0)))
    tokens = random_ids(num_steps, num_seqs)
    num_tokens, _ = steps.decode(random_ids(num_seqs, length), tokens)
    assert num_tokens == tokens.size
    for batch in engine.runner.batches[-num_steps:]:
        assert len(batch.token_ids) == len(batch.logits_rows) == num_seqs
    assert not engine.has_work
    assert engine.pool.num_free == engine.pool.num_blocks


def test_sampled_prefill_ends_with_each_first_token(engine):
    steps = SampledSteps(engine, resolve(SamplingParams(temperature=0)))
    prompts = random_ids(3, 10)
    steps.prefill(prompts)
    assert sum(len(batch.logits_rows) for batch in engine.runner.batches) == 3
    assert sum(len(batch.token_ids) for batch in engine.runner.batches) == prompts.size
    assert not engine.has_work


class Broken:
    """Fails at once."""

    def apply(self, logits, token_ids, state):
        raise ValueError("broken on purpose")


@pytest.mark.parametrize("name", ["prefill", "decode"])
def test_a_sampler_that_fails_ends_the_benchmark(name, engine):
    steps = SampledSteps(engine, resolve(SamplingParams(sampler=Broken())))
    arguments = (random_ids(2, 4),) if name == "prefill" else (random_ids(2, 4), random_ids(2, 2))
    with pytest.raises(EngineError, match="broken on purpose"):
        getattr(steps, name)(*arguments)
    assert not engine.has_work


def test_without_a_length_prompts_are_as_long_as_fits():
    for n_positions, sampled, expected in ((1024, True, 512), (512, False, 512), (512, True, 511), (100, False, 100)):
        options = BenchOptions(context=4, new_tokens=1)
        assert options.for_model(n_positions, sampled=sampled).prompt_tokens == expected


def test_the_longest_sequence_is_that_of_the_longest_work():
    assert BenchOptions(prompt_tokens=50, context=10, new_tokens=5).longest(sampled=False) == 50
    assert BenchOptions(prompt_tokens=5, context=10, new_tokens=5).longest(sampled=False) == 15
    assert BenchOptions(prompt_tokens=50, context=10, new_tokens=5).longest(sampled=True) == 51
    assert BenchOptions(prompt_tokens=5, context=10, new_tokens=5).longest(sampled=True) == 16
    assert BenchOptions(batch=300, prompt_tokens=5, context=10, new_tokens=5).longest(sampled=True) == 25


@pytest.mark.parametrize("size", DUMMY_SIZES)
def test_dummies_have_the_published_sizes(size):
    parameters = {"gpt2": 124, "gpt2-medium": 355, "gpt2-large": 774, "gpt2-xl": 1558}
    checkpoint = DummyCheckpoint(dummy_config(size))
    total = sum(math.prod(checkpoint.shape(name)) for name in checkpoint.names)
    assert round(total / 1e6) == parameters[size]


CONFIG = ModelConfig(vocab_size=3000, n_positions=64, n_embd=96, n_layer=2, n_head=3, n_inner=384)


def test_a_dummy_is_the_same_whole_or_in_pieces_and_looks_like_weights():
    with DummyCheckpoint(CONFIG) as checkpoint:
        for name in checkpoint.names:
            values = checkpoint.read(name)
            gain = ".ln_" in f".{name}" and name.endswith("weight")
            assert values.mean() == pytest.approx(1 if gain else 0, abs=0.01), name
            assert values.std() == pytest.approx(0.02, rel=0.3), name
            out = np.empty_like(values)
            assert checkpoint.read(name, out) is out
            assert np.array_equal(out, values)
            if values.ndim == 2:
                rows = np.empty((40, values.shape[1]), np.float32)
                for first in range(0, len(values) - 40, 37):
                    checkpoint.read_rows(name, first, rows)
                    assert np.array_equal(rows, values[first : first + 40])
        assert not np.array_equal(checkpoint.read("h.0.mlp.c_fc.weight"), checkpoint.read("h.1.mlp.c_fc.weight"))
        rows = checkpoint.read("wte.weight")
        assert len(np.unique(rows[:, 0])) > 2900


def test_a_dummy_runs(compiled_kernels):
    config = EngineConfig(max_num_seqs=2, threads=1)
    runner = GPT2Runner.from_checkpoint(CONFIG, DummyCheckpoint(CONFIG), config)  # type: ignore[arg-type]
    try:
        engine = Engine(config, runner, NumberTokenizer(CONFIG.vocab_size))
        BareSteps(engine).prefill(np.arange(20, dtype=np.int32).reshape(2, 10))
        assert np.isfinite(runner._buffers["logits"][:2, :3000]).all()
    finally:
        runner.close()


def test_the_tokenizer_of_numbers_goes_there_and_back():
    tokenizer = NumberTokenizer(300)
    assert tokenizer.decode([0, 299, 12]) == "0 299 12 "
    assert tokenizer.encode("0 299 12 ") == [0, 299, 12]
    assert tokenizer.encode_batch(["1", ""]) == [[1], []]
    for text in ("300", "-1", "a", "²"):
        with pytest.raises(ParameterError):
            tokenizer.encode(text)
    for token_id in (-1, 300):
        with pytest.raises(ParameterError):
            tokenizer.token_bytes(token_id)
