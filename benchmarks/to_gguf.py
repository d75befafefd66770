"""A Hugging Face GPT-2 directory -> a GGUF file for llama.cpp. Needs the packages gguf and llama-cpp-python.

The file with float32 weights is written here, the others are made from it by llama.cpp's own quantiser. Keys and
tensor names are those of the GGUF specification (docs/gguf.md of ggml) and of llama.cpp's gpt2 architecture. The
tokenizer in the file is a stand-in: benchmarks exchange token ids.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
from converted import converted
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

_FILE_TYPES = {
    "f16": llama_cpp.LLAMA_FTYPE_MOSTLY_F16,
    "bf16": llama_cpp.LLAMA_FTYPE_MOSTLY_BF16,
    "q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
}
_PURE = "-pure"


def gguf_file(directory: Path, scratch: Path, kind: str) -> Path:
    """A file in `scratch` with the checkpoint's weights as f32, f16, bf16, q8_0, q4_0 or q4_0-pure.

    q4_0 is what llama.cpp makes of it by itself: the head, and with it the embedding that is tied to it, in Q6_K; pure
    has all matrices in Q4_0. Raises ValueError, RuntimeError.
    """
    whole = converted(scratch / "gguf-f32.gguf", write_gguf, directory)
    return whole if kind == "f32" else converted(scratch / f"gguf-{kind}.gguf", quantise_gguf, whole, kind)


def quantise_gguf(source: Path, kind: str, path: Path) -> None:
    """Write the float32 file `source` to `path` as `kind` (see `gguf_file`). Raises RuntimeError."""
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = _FILE_TYPES[kind.removesuffix(_PURE)]
    options.pure = kind.endswith(_PURE)
    silence = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silence, ctypes.c_void_p(0))
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), ctypes.byref(options))
    if status:
        raise RuntimeError(f"llama_model_quantize returned {status} for {kind}")


def write_gguf(directory: Path, path: Path) -> None:
    """Write the checkpoint in `directory` to `path`, in float32.

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
