"""Counts of operations and bytes against a model that is counted tensor by tensor, loop by loop."""

import math
from dataclasses import replace

import pytest
from checkpoints import random_tensors

from nvg.model.config import ModelConfig
from nvg.model.costs import decode_kv_bytes, decode_operations, prefill_operations, streamed_weight_bytes

CONFIG = ModelConfig(vocab_size=101, n_positions=40, n_embd=12, n_layer=3, n_head=2, n_inner=20)


def shapes(config):
    values = {name: getattr(config, name) for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_inner")}
    tensors = random_tensors({**values, "tie_word_embeddings": config.tie_word_embeddings}, 0, lambda name, shape: 1)
    return {name: tensor.shape for name, tensor in tensors.items()}


@pytest.mark.parametrize(("num_tokens", "num_rows"), [(1, 1), (7, 1), (40, 3), (5, 0)])
def test_operations_are_those_of_every_product(num_tokens, num_rows):
    expected = 0
    last = CONFIG.n_layer - 1
    for name, shape in shapes(CONFIG).items():
        if len(shape) == 2 and name.startswith("h."):
            for token in range(num_tokens):
                columns = shape[1]
                if name.startswith(f"h.{last}.") and token < num_tokens - num_rows:
                    columns = 2 * CONFIG.n_embd if "c_attn" in name else 0  # a key and a value
                expected += 2 * shape[0] * columns
    for layer in range(CONFIG.n_layer):
        for _head in range(CONFIG.n_head):
            for token in range(0 if layer < last else num_tokens - num_rows, num_tokens):
                for _key in range(token + 1):
                    expected += 2 * CONFIG.head_size  # a score
                    expected += 2 * CONFIG.head_size  # a value's weight in the sum
    expected += 2 * num_rows * CONFIG.n_embd * CONFIG.vocab_size
    assert prefill_operations(CONFIG, num_tokens, num_rows) == expected


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bytes_per_weight", [4, 2, 1])
def test_streamed_weights_are_all_but_the_tables_that_are_looked_up(tied, bytes_per_weight):
    config = replace(CONFIG, tie_word_embeddings=tied)
    stored = streamed = 0
    for name, shape in shapes(config).items():
        is_matrix = len(shape) == 2 and name != "wpe.weight"
        size = math.prod(shape) * (bytes_per_weight if is_matrix else 4)
        stored += size
        if name != "wpe.weight" and (tied or name != "wte.weight"):
            streamed += size
    assert streamed_weight_bytes(config, stored) == streamed


def test_a_decode_step_is_what_one_more_token_adds_to_a_prefill():
    for context, num_steps in ((0, 1), (5, 1), (5, 4)):
        before, after = (prefill_operations(CONFIG, context + more, more) for more in (0, num_steps))
        assert decode_operations(CONFIG, context, num_steps) == pytest.approx((after - before) / num_steps)


def test_kv_bytes_are_the_mean_over_the_steps():
    entry = 10
    for context, num_steps in ((0, 1), (32, 64), (5, 4)):
        lengths = [context + step + 1 for step in range(num_steps)]
        expected = entry * sum(lengths) / num_steps
        assert decode_kv_bytes(32 * entry, 32, context, num_steps) == pytest.approx(expected)
