"""A Hugging Face GPT-2 directory -> an OpenVINO model as OpenVINO GenAI wants it. Needs the packages openvino and nncf.

The graph is the one that `optimum-cli export openvino` makes of a GPT-2: stateful (keys and values are variables,
reordered by `beam_idx`), one ScaledDotProductAttention a layer, the head tied to the embedding. int8 and int4 are
compressed by nncf with that command's defaults: int8 per row and asymmetric; int4 asymmetric in groups of 128, with
the embedding and the head in int8.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as op
from openvino.op.util import Variable, VariableInfo

from nvg.model.checkpoint import Checkpoint
from nvg.model.config import ModelConfig

GROUP_SIZE = 128
"""Of int4 weights, as `optimum-cli export openvino --weight-format int4` has it."""
MODEL_FILE = "openvino_model.xml"
_GELU = {"gelu_new": "TANH", "gelu_pytorch_tanh": "TANH", "gelu_fast": "TANH", "gelu": "ERF"}


def write_openvino(directory: Path, precision: str, target: Path) -> None:
    """Write the checkpoint in `directory` to `target` with weights in float32, bfloat16, int8 or int4.

    bfloat16 weights are stored in float32: OpenVINO rounds them when it compiles the model for bfloat16 inference.
    Raises ValueError for a model that this graph would compute differently.
    """
    with Checkpoint(directory) as checkpoint:
        if checkpoint.config.activation_function not in _GELU:
            raise ValueError(f"to_openvino has no activation {checkpoint.config.activation_function}")
        model = _Graph(checkpoint).model
    if precision in ("int8", "int4"):
        model = _compress(model, precision)
    target.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "generation_config.json"):
        if (directory / name).is_file():
            shutil.copyfile(directory / name, target / name)
    ov.save_model(model, target / MODEL_FILE, compress_to_fp16=False)


def _compress(model: ov.Model, precision: str) -> ov.Model:
    import nncf

    if precision == "int8":
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
    return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT4_ASYM, group_size=GROUP_SIZE, ratio=1.0)


def _integers(*values: int) -> Any:
    return op.constant(np.array(values, np.int64))


class _Graph:
    """Builds the model, layer by layer; B sequences of T new tokens, S with the past."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._config: ModelConfig = checkpoint.config
        self._sinks: list[Any] = []
        ids = _parameter("input_ids", [-1, -1], ov.Type.i64)  # (B, T)
        attention_mask = _parameter("attention_mask", [-1, -1], ov.Type.i64)  # (B, S)
        positions = _parameter("position_ids", [-1, -1], ov.Type.i64)  # (B, T)
        self._beams = _parameter("beam_idx", [-1], ov.Type.i32)  # (B,)
        self._batch = op.gather(op.shape_of(ids), _integers(0), op.constant(0))
        self._mask = _causal_mask(ids, attention_mask)
        table = self._constant("wte.weight")
        x = op.add(
            op.gather(table, ids, op.constant(0)), op.gather(self._constant("wpe.weight"), positions, op.constant(0))
        )
        for layer in range(self._config.n_layer):
            x = self._layer(x, layer)
        head = table if self._config.tie_word_embeddings else self._constant("lm_head.weight")
        logits = op.matmul(self._norm(x, "ln_f"), head, False, True)
        logits.output(0).get_tensor().set_names({"logits"})
        parameters = [ids, attention_mask, positions, self._beams]
        self.model = ov.Model([op.result(logits)], self._sinks, parameters, "gpt2")

    def _constant(self, name: str, shape: tuple[int, ...] | None = None) -> Any:
        values = self._checkpoint.read(name)
        return op.constant(values if shape is None else values.reshape(shape), name=name)

    def _linear(self, x: Any, name: str) -> Any:
        """Conv1D weights are (inputs, outputs); a bias is added as (1, 1, outputs)."""
        weight = op.constant(np.ascontiguousarray(self._checkpoint.read(f"{name}.weight").T), name=f"{name}.weight")
        return op.add(op.matmul(x, weight, False, True), self._constant(f"{name}.bias", (1, 1, -1)))

    def _norm(self, x: Any, name: str) -> Any:
        normal = op.mvn(x, _integers(-1), True, self._config.layer_norm_epsilon, "INSIDE_SQRT")
        scaled = op.multiply(normal, self._constant(f"{name}.weight", (1, 1, -1)))
        return op.add(scaled, self._constant(f"{name}.bias", (1, 1, -1)))

    def _heads(self, x: Any) -> Any:
        """(B, T, C) -> (B, heads, T, D)."""
        shape = _integers(0, 0, self._config.n_head, self._config.head_size)
        return op.transpose(op.reshape(x, shape, True), _integers(0, 2, 1, 3))

    def _cached(self, new: Any, layer: int, kind: str) -> Any:
        """All keys or values, (B, heads, S, D): the variable's, and the new ones that are appended to it."""
        config = self._config
        info = VariableInfo()
        info.variable_id = f"past_key_values.{layer}.{kind}present.{layer}.{kind}"
        info.data_shape = ov.PartialShape([-1, config.n_head, -1, config.head_size])
        info.data_type = ov.Type.f32
        variable = Variable(info)
        shape = op.concat([self._batch, _integers(config.n_head, 0, config.head_size)], 0)
        empty = op.broadcast(op.constant(np.float32(0)), shape)
        past = op.gather(op.read_value(empty, variable), self._beams, op.constant(0))
        everything = op.concat([past, new], 2)
        self._sinks.append(op.assign(everything, variable))
        return everything

    def _layer(self, x: Any, layer: int) -> Any:
        config, prefix = self._config, f"h.{layer}"
        qkv = self._linear(self._norm(x, f"{prefix}.ln_1"), f"{prefix}.attn.c_attn")
        query, key, value = op.split(qkv, op.constant(2), 3).outputs()
        scale = config.head_size**-0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            scale /= layer + 1
        attended = op.scaled_dot_product_attention(
            self._heads(query),
            self._cached(self._heads(key), layer, "key"),
            self._cached(self._heads(value), layer, "value"),
            self._mask,
            op.constant(np.float32(scale)),
        )
        merged = op.reshape(op.transpose(attended, _integers(0, 2, 1, 3)), _integers(0, 0, config.n_embd), True)
        x = op.add(x, self._linear(merged, f"{prefix}.attn.c_proj"))
        hidden = self._linear(self._norm(x, f"{prefix}.ln_2"), f"{prefix}.mlp.c_fc")
        hidden = op.gelu(hidden, _GELU[config.activation_function])
        return op.add(x, self._linear(hidden, f"{prefix}.mlp.c_proj"))


def _parameter(name: str, shape: list[int], dtype: ov.Type) -> Any:
    parameter = op.parameter(shape, dtype, name=name)
    parameter.output(0).get_tensor().set_names({name})
    return parameter


def _causal_mask(ids: Any, attention_mask: Any) -> Any:
    """What is added to the scores, (B, 1, T, S): -inf where a key comes later than the query, or is padding."""
    axis, one = op.constant(0), op.constant(np.int64(1))
    num_new = op.gather(op.shape_of(ids), op.constant(1), axis)
    num_all = op.gather(op.shape_of(attention_mask), op.constant(1), axis)
    zero = op.constant(np.int64(0))
    keys = op.range(zero, num_all, one, "i64")  # (S,)
    queries = op.range(op.subtract(num_all, num_new), num_all, one, "i64")  # (T,)
    seen = op.less_equal(op.unsqueeze(keys, _integers(0)), op.unsqueeze(queries, _integers(1)))  # (T, S)
    real = op.convert(op.unsqueeze(attention_mask, _integers(1, 2)), "boolean")  # (B, 1, 1, S)
    allowed = op.logical_and(op.unsqueeze(seen, _integers(0, 1)), real)
    return op.select(allowed, op.constant(np.float32(0)), op.constant(np.float32(np.finfo(np.float32).min)))
