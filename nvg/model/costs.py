"""What a step of a GPT-2 must do at least: operations to compute, bytes to read. Pure functions of the shape."""

from __future__ import annotations

from nvg.kernels.kv import kv_bytes_per_entry
from nvg.model.config import ModelConfig

_FLOAT_BYTES = 4


def prefill_operations(config: ModelConfig, num_tokens: int, num_rows: int = 1) -> int:
    """Operations of the matmuls of `num_tokens` tokens of one sequence from its beginning, attention's included; a
    multiply-add counts as two.

    Token t attends to t + 1 keys. The last `num_rows` tokens have logits; of the others the last layer needs nothing
    but keys and values. Anything but matmuls is not counted.
    """
    c, t = config.n_embd, num_tokens
    pairs = t * (t + 1) // 2  # of a query and a key, in every layer but the last one
    last_pairs = pairs - (t - num_rows) * (t - num_rows + 1) // 2
    products = (config.n_layer - 1) * t * _layer_weights(config)
    products += t * 2 * c * c + num_rows * (_layer_weights(config) - 2 * c * c)
    products += ((config.n_layer - 1) * pairs + last_pairs) * 2 * c  # q k and p v
    products += num_rows * c * config.vocab_size
    return 2 * products


def decode_operations(config: ModelConfig, context: int, num_steps: int) -> float:
    """The same of one sequence's decode step with its row of logits: the mean of `num_steps` steps of which the first
    comes after `context` tokens."""
    keys = context + (num_steps + 1) / 2  # a token attends to itself, too
    return row_operations(config) + 4 * config.n_layer * keys * config.n_embd


def row_operations(config: ModelConfig) -> int:
    """The same of one row of a step with its logits, without attention's: what a row costs in every batch."""
    return 2 * (config.n_layer * _layer_weights(config) + config.n_embd * config.vocab_size)


def streamed_weight_bytes(config: ModelConfig, weight_bytes: int) -> int:
    """Of `weight_bytes`, all of a model's parameters as they are stored, those that every decode step reads.

    Not wpe (float32), of which it reads a row a sequence, nor the embedding where that is not the head; this has the
    same bytes for a weight as all the matrices have.
    """
    positions = _FLOAT_BYTES * config.n_positions * config.n_embd
    if config.tie_word_embeddings:
        return weight_bytes - positions
    vectors = config.n_layer * (9 * config.n_embd + config.n_inner) + 2 * config.n_embd  # biases and layer norms
    embedding = config.vocab_size * config.n_embd
    matrices = 2 * embedding + config.n_layer * _layer_weights(config)
    return weight_bytes - positions - (weight_bytes - positions - _FLOAT_BYTES * vectors) * embedding // matrices


def decode_kv_bytes(bytes_per_block: int, block_size: int, context: int, num_steps: int) -> float:
    """KV bytes that one sequence's decode step reads, the mean of `num_steps` steps of which the first comes after
    `context` tokens; `bytes_per_block` are those of `block_size` entries in all layers."""
    mean_entries = context + (num_steps + 1) / 2  # a step's own entry is read, too
    return mean_entries * bytes_per_block / block_size


def kv_block_bytes(config: ModelConfig, kv_dtype: str, block_size: int) -> int:
    """KV bytes of a block of `block_size` entries, in all layers."""
    return kv_bytes_per_entry(kv_dtype, config.n_layer, config.n_head, config.head_size) * block_size


def _layer_weights(config: ModelConfig) -> int:
    """Elements of a layer's four matrices."""
    return config.n_embd * (4 * config.n_embd + 2 * config.n_inner)
