"""Steps of the runner: logits against transformers and the naive reference, bits against every way to batch."""

import threading
import time

import numpy as np
import pytest
import reference
from checkpoints import (
    ACTIVATIONS,
    COMBINATION_COLUMNS,
    COMBINATION_IDS,
    COMBINATION_ROWS,
    combination_logits,
    combinations,
    golden,
    golden_directory,
    golden_names,
    write_checkpoint,
)

from nvg.errors import AbortedError
from nvg.kernels.kv import own_tokens
from nvg.model.checkpoint import Checkpoint
from nvg.model.contract import Batch
from nvg.model.runner import GPT2Runner
from nvg.params import EngineConfig
from nvg.runtime.compile_cache import njit

BLOCK_SIZE = 32


def make_runner(directory, threads=2, num_blocks=48, block_size=BLOCK_SIZE, **options):
    with Checkpoint(directory) as checkpoint:
        config = EngineConfig(threads=threads, block_size=block_size, **options)
        runner = GPT2Runner.from_checkpoint(checkpoint.config, checkpoint, config)
    runner.allocate_kv(num_blocks, block_size)
    return runner


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("model"), n_layer=2, n_head=3, n_embd=60, n_positions=200)


PRECISIONS = [("float32", None), ("bfloat16", None), ("int8", "int8"), ("int4", "bfloat16")]


@pytest.fixture(scope="module", params=PRECISIONS, ids=lambda pair: pair[0])
def runner(directory, request):
    dtype, kv_dtype = request.param
    runner = make_runner(directory, dtype=dtype, kv_dtype=kv_dtype)
    yield runner
    runner.close()


def step(runner, parts, rows=None):
    """One step of sequences given as (token ids, first position, block table); the logits of `rows`, or of all."""
    int32 = np.int32
    lengths = [len(ids) for ids, _, _ in parts]
    width = max(len(table) for _, _, table in parts)
    tables = np.zeros((len(parts), width), int32)
    for s, (_, _, table) in enumerate(parts):
        tables[s, : len(table)] = table
    if rows is None:
        rows = range(sum(lengths))
    return runner.execute(
        Batch(
            token_ids=np.concatenate([np.array(ids, int32) for ids, _, _ in parts]),
            positions=np.concatenate([np.arange(p, p + len(ids), dtype=int32) for ids, p, _ in parts]),
            query_offsets=np.cumsum([0, *lengths], dtype=int32),
            block_tables=tables,
            context_lens=np.array([p + len(ids) for ids, p, _ in parts], int32),
            logits_rows=np.array(list(rows), int32),
        )
    ).copy()


def tokens(n, vocab_size=277, seed=0):
    return np.random.default_rng(seed).integers(0, vocab_size, n).tolist()


@pytest.mark.parametrize("name", golden_names())
def test_logits_are_those_of_transformers(name, tmp_path):
    case = golden(name)
    runner = make_runner(golden_directory(case, tmp_path))
    try:
        table = list(range(5, 5 + -(-len(case.token_ids) // BLOCK_SIZE)))
        logits = []
        for first in range(0, len(case.token_ids), 60):
            logits.append(step(runner, [(case.token_ids[first : first + 60], first, table)]))
        logits = np.concatenate(logits)
        assert np.abs(logits[np.ix_(case.positions, case.columns)] - case.logits).max() < 1e-4
        wide = logits.astype(np.float64)
        logsumexp = np.log(np.exp(wide - wide.max(1, keepdims=True)).sum(1)) + wide.max(1)
        assert np.abs(logsumexp - case.logsumexp).max() < 1e-4
        top = logits.max(1)
        assert (top - logits[np.arange(len(logits)), case.argmax] < 2e-4).all()
    finally:
        runner.close()


@pytest.mark.parametrize(
    "rows",
    [[], [39], [40, 61], [0, 39, 40, 61], [40], [61, 39, 40], [40, 40], list(range(5, 41))],
    ids=str,
)
def test_rows_that_nobody_wants_change_nothing(runner, rows):
    """The last layer may leave out what has no logits, but not its keys and values."""
    lengths, tables = (40, 1, 21), ([4, 2, 7], [3, 8], [6, 1, 5])
    first = [tokens(n, seed=s) for s, n in enumerate(lengths)]
    then = [tokens(1 + s, seed=9 + s) for s in range(3)]

    def run(rows):
        for block in runner._pool:
            block[:] = 255  # NaN
        step(runner, [(tokens(5, seed=5), 0, tables[1])])
        starts = (0, 5, 0)
        now = step(runner, list(zip(first, starts, tables, strict=True)), rows)
        ends = [start + n for start, n in zip(starts, lengths, strict=True)]
        return now, step(runner, list(zip(then, ends, tables, strict=True)))

    everything, after = run(None)
    some, after_some = run(rows)
    np.testing.assert_array_equal(some, everything[rows])
    np.testing.assert_array_equal(after_some, after)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_logits_of_every_combination_of_flags_are_those_of_transformers(activation, tmp_path):
    every, expected = combinations(), combination_logits()
    assert every.keys() == expected.keys()
    names = [name for name in every if name.rpartition("-")[0] == activation]
    assert len(names) == 16
    for name in names:
        runner = make_runner(write_checkpoint(tmp_path / name, **every[name]), num_blocks=1)
        try:
            logits = step(runner, [(COMBINATION_IDS, 0, [0])], COMBINATION_ROWS)[:, COMBINATION_COLUMNS]
        finally:
            runner.close()
        assert np.abs(logits - expected[name]).max() < 1e-4, every[name]


@pytest.mark.parametrize(
    "options",
    [
        {"n_embd": 24, "n_head": 24},  # heads of one
        {"n_embd": 128, "n_head": 1},  # a head of 128
        {"n_embd": 20, "n_head": 4, "n_inner": 33},
        {"n_embd": 66, "n_head": 2, "tie": False, "activation": "gelu"},
        {"n_embd": 48, "n_head": 2, "dtype": "BF16", "scale_attn_by_inverse_layer_idx": True, "n_layer": 3},
        {"n_embd": 32, "n_head": 2, "scale_attn_weights": False, "activation": "tanh", "with_masks": True},
    ],
    ids=str,
)
def test_logits_are_those_of_the_naive_reference(options, tmp_path):
    directory = write_checkpoint(tmp_path, **{"seed": 7, **options})
    ids = tokens(60)
    expected = reference.logits(reference.load(directory), ids)
    runner = make_runner(directory)
    try:
        assert np.abs(step(runner, [(ids, 0, [3, 0])]) - expected).max() < 1e-4
    finally:
        runner.close()


@pytest.fixture(scope="module")
def alone(runner):
    """(ids, logits) of one sequence run at once, the bits that everything else must have."""
    ids = tokens(60, seed=1) + tokens(4, seed=2)
    return ids, step(runner, [(ids, 0, [0, 1])])


def test_cached_decode_has_the_bits_of_full_recompute(runner, alone):
    ids, expected = alone
    step(runner, [(ids[:20], 0, [7, 3])], rows=[])
    for position in range(20, 64):
        assert np.array_equal(step(runner, [(ids[position : position + 1], position, [7, 3])])[0], expected[position])


@pytest.mark.parametrize("pieces", [(1, 63), (31, 33), (5, 6, 7, 46)])
def test_a_prompt_in_pieces_has_the_same_bits(runner, alone, pieces):
    ids, expected = alone
    first, parts = 0, []
    for size in pieces:
        parts.append(step(runner, [(ids[first : first + size], first, [9, 8])]))
        first += size
    assert np.array_equal(np.concatenate(parts), expected)


def test_a_sequence_has_the_same_bits_in_a_batch(runner, alone):
    ids, expected = alone
    step(runner, [(tokens(150, seed=3)[:64], 0, [20, 21, 22])], rows=[])
    batch = [
        (tokens(1, seed=4), 64, [20, 21, 22]),
        (ids[:40], 0, [11, 10]),
        (tokens(13, seed=5), 0, [30]),
        (tokens(1, seed=6), 0, [31]),
    ]
    logits = step(runner, batch, rows=range(1, 41))
    assert np.array_equal(logits, expected[:40])
    batch[1] = (ids[40:], 40, [11, 10])
    assert np.array_equal(step(runner, batch, rows=range(1, 25)), expected[40:])


def test_one_and_two_and_three_threads_give_the_same_bits(directory, runner, alone):
    ids, expected = alone
    for threads in (1, 3):
        other = make_runner(directory, threads=threads, dtype=runner.dtype, kv_dtype=runner.kv_dtype)
        try:
            assert np.array_equal(step(other, [(ids, 0, [1, 0])]), expected)
        finally:
            other.close()


def test_the_block_size_does_not_change_the_bits(directory, runner, alone):
    ids, expected = alone
    options = {"dtype": runner.dtype, "kv_dtype": runner.kv_dtype}
    other = make_runner(directory, block_size=64, num_blocks=4, **options)
    try:
        assert np.array_equal(step(other, [(ids, 0, [2])]), expected)
    finally:
        other.close()


@pytest.mark.parametrize(
    ("dtype", "kv_dtype", "most"),
    [
        ("float32", "bfloat16", 0.006),
        ("float32", "int8", 0.02),
        ("bfloat16", None, 0.015),
        ("int8", None, 0.04),
        ("int4", None, 0.4),
    ],
)
@pytest.mark.parametrize(
    "shape",
    [{"n_head": 3, "n_embd": 60}, {"n_head": 2, "n_embd": 96, "tie": False}, {"n_head": 3, "n_embd": 45}],
    ids=str,
)
def test_logits_of_other_precisions_are_near_the_naive_reference(dtype, kv_dtype, most, shape, tmp_path):
    """Root mean square of the error in standard deviations of the logits."""
    directory = write_checkpoint(tmp_path, n_layer=2, n_positions=200, **shape)
    ids = tokens(64)
    expected = reference.logits(reference.load(directory), ids)
    runner = make_runner(directory, dtype=dtype, kv_dtype=kv_dtype)
    try:
        error = step(runner, [(ids, 0, [5, 1])]) - expected
        assert 0 < np.sqrt((error**2).mean()) / expected.std() < most
    finally:
        runner.close()


@pytest.mark.parametrize("missing", [0, 1])
def test_stale_memory_does_not_matter(runner, alone, missing):
    ids, expected = alone
    num_tokens = len(ids) - missing  # an even and an odd number of keys
    runner._pool[:] = 0xFF  # every float a NaN
    assert np.array_equal(step(runner, [(ids[:num_tokens], 0, [4, 2])]), expected[:num_tokens])


@njit
def _own_tokens(positions, sequence_of, num_tokens, thread, num_threads):
    return own_tokens(positions, sequence_of, num_tokens, thread, num_threads)


@pytest.mark.parametrize("num_threads", [1, 2, 3, 5])
def test_no_pair_of_slots_is_written_by_two_threads(num_threads):
    positions = np.array([5, 6, 7, 8, 3, 0, 1, 2, 3, 4, 9], np.int32)
    sequence_of = np.array([0, 0, 0, 0, 1, 2, 2, 2, 2, 2, 3], np.int32)
    pairs = list(zip(sequence_of.tolist(), (positions // 2).tolist(), strict=True))
    shares = [_own_tokens(positions, sequence_of, 11, thread, num_threads) for thread in range(num_threads)]
    assert [token for first, end in shares for token in range(first, end)] == list(range(11))
    owners = {pair: {t for t, (first, end) in enumerate(shares) if pair in pairs[first:end]} for pair in pairs}
    assert all(len(threads) == 1 for threads in owners.values())


def test_blocks_are_copied_whole(runner, alone):
    ids, expected = alone
    step(runner, [(ids[:50], 0, [0, 1])], rows=[])
    runner.copy_blocks(np.array([0, 1], np.int32), np.array([40, 41], np.int32))
    runner._pool[:2] = 0xFF
    assert np.array_equal(step(runner, [(ids[50:], 50, [40, 41])]), expected[50:])


def test_bytes_per_block_are_what_the_pool_has(runner):
    assert runner.bytes_per_block(BLOCK_SIZE) * 48 == runner._pool.nbytes


def test_abort_ends_a_running_step_and_the_next_one_is_whole(tmp_path):
    directory = write_checkpoint(tmp_path, n_layer=8, n_head=8, n_embd=512, n_positions=512)
    runner = make_runner(directory, num_blocks=16)
    ids, table = tokens(500), list(range(16))
    try:
        expected = step(runner, [(ids, 0, table)], rows=[499])

        def abort():
            time.sleep(0.02)
            runner.abort()

        for _ in range(20):  # the step may end before the abort comes
            thread = threading.Thread(target=abort)
            thread.start()
            try:
                step(runner, [(ids, 0, table)], rows=[499])
            except AbortedError:
                break
            finally:
                thread.join()
        else:
            pytest.fail("no step was aborted")
        assert np.array_equal(step(runner, [(ids, 0, table)], rows=[499]), expected)
    finally:
        runner.close()


def test_weights_are_not_kept_twice(runner):
    config = runner._config
    parameters = config.vocab_size * config.n_embd + config.n_positions * config.n_embd
    parameters += config.n_layer * 12 * config.n_embd**2
    per_weight = {"float32": 4, "bfloat16": 2, "int8": 34 / 32, "int4": 18 / 32}[runner.dtype]
    vectors = 4 * (config.n_positions * config.n_embd + config.n_layer * 13 * config.n_embd + 2 * config.n_embd)
    assert runner.weight_bytes < per_weight * parameters * 1.35 + vectors  # tiny matrices are padded to 32 by 32
