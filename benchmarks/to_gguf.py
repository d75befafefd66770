"""A Hugging Face GPT-2 directory -> a GGUF file with float32 weights, for llama.cpp. Needs the package gguf.

Keys and tensor names are those of the GGUF specification (docs/gguf.md of ggml) and of llama.cpp's gpt2 architecture.
The tokenizer in the file is a stand-in: benchmarks exchange token ids.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from dummy import vocabulary

from nvg.model.checkpoint import Checkpoint
from nvg.model.config import ModelConfig

_LAYER_NAMES = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
_OTHER_NAMES = {
    "wte.weight": "token_embd.weight",
    "wpe.weight": "position_embd.weight",
    "ln_f.weight": "output_norm.weight",
    "ln_f.bias": "output_norm.bias",
    "lm_head.weight": "output.weight",
}
_SAME_GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")
_NORMAL_TOKEN, _CONTROL_TOKEN = 1, 3
_ALL_F32 = 0


def write_gguf(directory: Path, path: Path) -> None:
    """Write the checkpoint in `directory` to `path`.

    Raises ValueError for a model that llama.cpp's gpt2 architecture would compute differently.
    """
    with Checkpoint(directory) as checkpoint:
        config = checkpoint.config
        _check(config)
        writer = gguf.GGUFWriter(path, "gpt2")
        _add_metadata(writer, config)
        for name in checkpoint.names:
            writer.add_tensor(_gguf_name(name), _gguf_layout(name, checkpoint.read(name)))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _check(config: ModelConfig) -> None:
    if config.activation_function not in _SAME_GELU:
        raise ValueError(f"llama.cpp's gpt2 has the activation gelu_new, the model has {config.activation_function}")
    if not config.scale_attn_weights or config.scale_attn_by_inverse_layer_idx:
        raise ValueError("llama.cpp's gpt2 scales attention by 1 / sqrt(head size) only")


def _add_metadata(writer: Any, config: ModelConfig) -> None:
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(config.n_inner)
    writer.add_block_count(config.n_layer)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_file_type(_ALL_F32)
    tokens, merges = vocabulary(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([_NORMAL_TOKEN] * (len(tokens) - 1) + [_CONTROL_TOKEN])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(len(tokens) - 1)
    writer.add_eos_token_id(len(tokens) - 1)


def _gguf_name(name: str) -> str:
    if name in _OTHER_NAMES:
        return _OTHER_NAMES[name]
    _, layer, rest = name.split(".", 2)
    module, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{_LAYER_NAMES[module]}.{kind}"


def _gguf_layout(name: str, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Conv1D weights are (inputs, outputs); GGUF wants (outputs, inputs)."""
    is_conv1d = name.startswith("h.") and values.ndim == 2
    return np.ascontiguousarray(values.T) if is_conv1d else values
