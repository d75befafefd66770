"""A naive GPT-2 in NumPy: the witness for the engine. It shares no code with nvg, keeps no cache, and recomputes all.

Letters: T tokens, V vocabulary, C n_embd, H heads, D head size.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Model:
    """A checkpoint's config.json, as it is, and its tensors without the prefix `transformer.`."""

    config: dict
    tensors: dict


def load(directory, dtype=np.float64) -> Model:
    """Read a directory's config.json and model.safetensors (F32, F16 or BF16), widened to `dtype`."""
    raw = (Path(directory) / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    header.pop("__metadata__", None)
    carriers = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # what else there is are masks
    tensors = {}
    for name, info in header.items():
        if info["dtype"] not in carriers:
            continue
        begin, end = info["data_offsets"]
        values = np.frombuffer(raw[start + begin : start + end], carriers[info["dtype"]])
        if info["dtype"] == "BF16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        tensors[name.removeprefix("transformer.")] = values.astype(dtype).reshape(info["shape"])
    return Model(json.loads((Path(directory) / "config.json").read_text()), tensors)


def _gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _silu(x):
    return x / (1 + np.exp(-x))


ACTIVATIONS = {
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu": lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "relu": lambda x: np.maximum(x, 0),
    "silu": _silu,
    "swish": _silu,
    "tanh": np.tanh,
}


def logits(model: Model, token_ids) -> np.ndarray:
    """The logits after every token: (T, V), in the dtype of the tensors."""
    config, w = model.config, model.tensors
    n_head = config["n_head"]

    def layer_norm(x, name):
        centred = x - x.mean(axis=-1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + config["layer_norm_epsilon"])
        return centred / deviation * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x, name):
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    def attention(x, layer):
        heads = [split_heads(part) for part in np.split(linear(x, f"h.{layer}.attn.c_attn"), 3, axis=-1)]
        query, key, value = heads
        scores = query @ key.swapaxes(-1, -2)  # (H, T, T)
        if config.get("scale_attn_weights", True):
            scores = scores / math.sqrt(query.shape[-1])
        if config.get("scale_attn_by_inverse_layer_idx", False):
            scores = scores / (layer + 1)
        scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed = (weights @ value).swapaxes(0, 1).reshape(x.shape)
        return linear(mixed, f"h.{layer}.attn.c_proj")

    def split_heads(x):
        return x.reshape(len(x), n_head, -1).swapaxes(0, 1)  # (T, C) -> (H, T, D)

    x = w["wte.weight"][np.asarray(token_ids)] + w["wpe.weight"][: len(token_ids)]  # (T, C)
    for layer in range(config["n_layer"]):
        x = x + attention(layer_norm(x, f"h.{layer}.ln_1"), layer)
        hidden = linear(layer_norm(x, f"h.{layer}.ln_2"), f"h.{layer}.mlp.c_fc")
        x = x + linear(ACTIVATIONS[config["activation_function"]](hidden), f"h.{layer}.mlp.c_proj")
    head = w["wte.weight"] if config.get("tie_word_embeddings", True) else w["lm_head.weight"]
    return layer_norm(x, "ln_f") @ head.T


def greedy(model: Model, token_ids, n: int) -> list[int]:
    """The n tokens that follow, each the most probable one (the lowest id among equals)."""
    ids = list(token_ids)
    for _ in range(n):
        ids.append(int(logits(model, ids)[-1].argmax()))
    return ids[len(token_ids) :]
