"""A request's answer is the same, bit by bit, alone and in any company."""

import pytest
from checkpoints import write_checkpoint
from company import Bench, check_company, configs, disturbances, wishes
from fakes import SMALL_BLOCK, HistoryRunner, LetterTokenizer, with_small_blocks
from hypothesis import given, settings
from hypothesis import strategies as st

from nvg.model.checkpoint import Checkpoint
from nvg.model.runner import GPT2Runner
from nvg.params import EngineConfig

CONTEXT = 24
VOCAB_SIZE = 5
NUM_IDS = 99
"""Of the tokenizer, beside a model with more."""


@given(st.data())
def test_scheduling_never_changes_an_answer(data):
    mix = data.draw(wishes(CONTEXT, VOCAB_SIZE))
    num_blocks = data.draw(st.sampled_from([1, 2, *range(4, 24)]))
    config = with_small_blocks(data.draw(configs(kv_memory=num_blocks * SMALL_BLOCK * 4)))
    rows = data.draw(st.integers(config.max_num_seqs, 12))
    limits = {"max_model_len": CONTEXT, "max_batched_tokens": 64}
    runner = HistoryRunner(VOCAB_SIZE, max_logits_rows=rows, **limits)
    bench = Bench(config, runner, LetterTokenizer(VOCAB_SIZE), data.draw(disturbances()))

    def make_alone():
        config = with_small_blocks(EngineConfig(max_num_seqs=8))
        return Bench(config, HistoryRunner(VOCAB_SIZE, max_logits_rows=64, **limits), LetterTokenizer(VOCAB_SIZE))

    check_company(bench, make_alone, mix)


@pytest.fixture(scope="module", params=["float32", "int8"])
def runners(request, tmp_path_factory):
    """The same model with one thread and with two."""
    directory = write_checkpoint(
        tmp_path_factory.mktemp("model"), n_layer=2, n_head=2, n_embd=24, n_positions=100, vocab_size=277
    )
    made = []
    for threads in (1, 2):
        config = EngineConfig(dtype=request.param, threads=threads, max_num_batched_tokens=64)
        with Checkpoint(directory) as checkpoint:
            made.append(GPT2Runner.from_checkpoint(checkpoint.config, checkpoint, config))
    yield made
    for runner in made:
        runner.close()


@settings(max_examples=30)
@given(st.data())
def test_kernels_give_the_same_bits_in_any_company(runners, data):
    context = 100
    mix = data.draw(wishes(context, NUM_IDS, most=6))
    together, single = data.draw(st.permutations(runners))
    num_blocks = data.draw(st.integers(1, 16))
    config = data.draw(configs(kv_memory=num_blocks * together.bytes_per_block(32)))
    bench = Bench(config, together, LetterTokenizer(NUM_IDS), data.draw(disturbances()))

    def make_alone():
        return Bench(EngineConfig(max_num_seqs=8), single, LetterTokenizer(NUM_IDS), draws_compiled=False)

    check_company(bench, make_alone, mix)
