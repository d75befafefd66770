"""A checkpoint's config.json, checked: every value that decides the computation, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from nvg.errors import CheckpointError, shown
from nvg.files import read_json

MODEL_TYPE = "gpt2"
ACTIVATIONS = (
    *("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_python_tanh", "gelu_accurate", "gelu", "gelu_python"),
    *("relu", "silu", "swish", "tanh"),
)
"""Activation names as Hugging Face spells them. The first five are one function (the tanh approximation of GELU), so
are `gelu` and `gelu_python` (the exact one, by erf), `silu` and `swish`."""
MAX_HEAD_SIZE = 128

# Far above any GPT-2 that exists: a damaged or hostile file is refused before anything is sized by it.
_LARGEST = {
    "vocab_size": 2**24,
    "n_positions": 2**20,
    "n_embd": 2**16,
    "n_layer": 2**10,
    "n_head": 2**16,
    "n_inner": 2**20,
}
# What transformers (GPT2Config) takes where a config.json does not say, and its other names of the sizes.
_USUAL_SIZES = {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}
_USUAL_EOS = 50256
_OTHER_NAMES = {
    "n_positions": "max_position_embeddings",
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape and the arithmetic of a GPT-2. Field names are those of config.json.

    Raises CheckpointError, naming the field, its value and what is allowed.
    """

    vocab_size: int
    n_positions: int
    """Most tokens of a sequence: rows of wpe."""
    n_embd: int
    n_layer: int
    n_head: int
    n_inner: int
    """Width of the MLP's hidden layer."""
    activation_function: str = "gelu_new"
    """One of ACTIVATIONS."""
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True
    """Divide attention scores by sqrt(head_size)."""
    scale_attn_by_inverse_layer_idx: bool = False
    """Divide attention scores of layer i (from 0) by i + 1, too."""
    tie_word_embeddings: bool = True
    """The output head is wte; otherwise it is lm_head.weight."""
    eos_token_ids: tuple[int, ...] = ()
    model_type: str = MODEL_TYPE

    def __post_init__(self) -> None:
        for name in _LARGEST:
            _check_size(name, getattr(self, name), _LARGEST[name])
        if self.n_embd % self.n_head or self.head_size > MAX_HEAD_SIZE:
            raise CheckpointError(
                f"n_head is {self.n_head}; it must divide n_embd ({self.n_embd}) into heads of 1 to {MAX_HEAD_SIZE}"
            )
        if self.activation_function not in ACTIVATIONS:
            raise CheckpointError(
                f"activation_function is {shown(self.activation_function)}; it must be one of {', '.join(ACTIVATIONS)}"
            )
        epsilon: Any = self.layer_norm_epsilon
        if isinstance(epsilon, bool) or not isinstance(epsilon, (int, float)) or not 0 < epsilon <= 1:
            raise CheckpointError(f"layer_norm_epsilon is {shown(epsilon)}; it must be a number above 0 and at most 1")
        object.__setattr__(self, "layer_norm_epsilon", float(epsilon))
        for name in ("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "tie_word_embeddings"):
            _check_flag(name, getattr(self, name))
        if any(not 0 <= token_id < self.vocab_size for token_id in self.eos_token_ids):
            raise CheckpointError(
                f"eos_token_ids are {self.eos_token_ids}; each must be from 0 to {self.vocab_size - 1} (vocab_size - 1)"
            )

    @property
    def head_size(self) -> int:
        """Width of one attention head: n_embd / n_head."""
        return self.n_embd // self.n_head

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str) -> ModelConfig:
        """The config that `data`, the parsed config.json, describes; keys that don't matter are ignored.

        What is missing is as in transformers, and sizes may have its other names (hidden_size ...).

        `where` begins every error: the file's path. Raises CheckpointError for another kind of model, for what nvg
        does not run (cross attention, pruned heads, quantised weights) and for a value outside its range.
        """
        try:
            _refuse_other_models(data)
            return cls._from_gpt2(data)
        except CheckpointError as error:
            raise CheckpointError(f"{where}: {error}") from None

    @classmethod
    def _from_gpt2(cls, data: Mapping[str, Any]) -> ModelConfig:
        values: dict[str, Any] = {name: _size(name, data) for name in _USUAL_SIZES}
        for name in (field.name for field in fields(cls)):
            if name in data and name not in (*_USUAL_SIZES, "eos_token_ids", "model_type"):
                values[name] = data[name]
        if values.get("n_inner") is None:
            values["n_inner"] = 4 * values["n_embd"]
        config = cls(**values)
        return config._with_eos(data.get("eos_token_id", _USUAL_EOS))

    def _with_eos(self, value: Any) -> ModelConfig:
        """Take `value` (null, an id or a list of ids, as in JSON) as the end-of-text ids.

        An id beyond the vocabulary can't be drawn, so it is dropped: many a small GPT-2 was saved with 50256 there.
        """
        ids = [] if value is None else value if isinstance(value, list) else [value]
        for token_id in ids:
            if isinstance(token_id, bool) or not isinstance(token_id, int) or token_id < 0:
                raise CheckpointError(
                    f"eos_token_id is {shown(value)}; it must be an integer >= 0, a list of them, or null"
                )
        known = dict.fromkeys(token_id for token_id in ids if token_id < self.vocab_size)
        return replace(self, eos_token_ids=tuple(known))


def read_config(directory: str | os.PathLike[str]) -> ModelConfig:
    """The checked config of a checkpoint directory, from its config.json.

    The end-of-text ids come from generation_config.json where that file names any. Raises CheckpointError.
    """
    path = Path(directory) / "config.json"
    config = ModelConfig.from_dict(read_json(path), str(path))
    path = path.with_name("generation_config.json")
    if os.path.lexists(path):
        eos = read_json(path).get("eos_token_id")
        if eos is not None:
            try:
                return config._with_eos(eos)
            except CheckpointError as error:
                raise CheckpointError(f"{path}: {error}") from None
    return config


def _refuse_other_models(data: Mapping[str, Any]) -> None:
    model_type = data.get("model_type")
    if model_type is None and data.get("architectures") != ["GPT2LMHeadModel"]:
        raise CheckpointError(f'model_type is missing; nvg runs GPT-2 models ("model_type": "{MODEL_TYPE}")')
    if model_type not in (None, MODEL_TYPE):
        raise CheckpointError(
            f'model_type is {shown(model_type)}; nvg runs GPT-2 models ("model_type": "{MODEL_TYPE}")'
        )
    cross = data.get("add_cross_attention", False)
    _check_flag("add_cross_attention", cross)
    if cross:
        raise CheckpointError(
            "add_cross_attention is true; nvg runs decoders without cross attention: it must be false"
        )
    if data.get("pruned_heads"):
        raise CheckpointError(
            f"pruned_heads is {shown(data['pruned_heads'])}; nvg runs models with all heads: it must be empty"
        )
    if data.get("quantization_config") is not None:
        method = data["quantization_config"]
        method = method.get("quant_method", method) if isinstance(method, dict) else method
        raise CheckpointError(
            f"quantization_config is set ({shown(method)}); nvg reads float32, float16 and bfloat16 weights: "
            "take the model that was not quantised"
        )


def _size(name: str, data: Mapping[str, Any]) -> int:
    """A size of config.json, under either of its names."""
    given = {key: data[key] for key in (name, _OTHER_NAMES.get(name, name)) if key in data}
    for key, value in given.items():
        _check_size(key, value, _LARGEST[name])
    if len(set(given.values())) > 1:
        told = " and ".join(f"{key} is {value}" for key, value in given.items())
        raise CheckpointError(f"{told}; they are two names of one size: remove the wrong one")
    return next(iter(given.values()), _USUAL_SIZES[name])


def _check_size(name: str, value: object, largest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
        raise CheckpointError(f"{name} is {shown(value)}; it must be an integer from 1 to {largest}")


def _check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise CheckpointError(f"{name} is {shown(value)}; it must be true or false")
