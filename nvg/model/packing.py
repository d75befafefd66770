"""Checkpoint tensors -> one arena of packed weights, read and packed piece by piece: never a second copy of a model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nvg.kernels.forward import LAYER_PARAMETERS
from nvg.kernels.pack import PACK_CONTEXT, pack
from nvg.model.checkpoint import Checkpoint
from nvg.model.config import ModelConfig
from nvg.model.contract import Float32
from nvg.runtime.team import Team

_ALIGNMENT = 32  # floats: panels begin at a multiple of 128 bytes


def round32(n: int) -> int:
    """The next multiple of 32: how many columns are stored for n."""
    return (n + 31) // 32 * 32


@dataclass(frozen=True)
class PackedWeights:
    """All of a model's parameters in one float32 arena; offsets are in elements."""

    arena: Float32
    layer_offsets: np.ndarray[tuple[int, int], np.dtype[np.int64]]  # (n_layer, len(LAYER_PARAMETERS))
    offsets: dict[str, int]
    """Of wpe.weight, ln_f.weight, ln_f.bias, head and embedding (the head itself where it is tied)."""


def pack_weights(config: ModelConfig, checkpoint: Checkpoint, team: Team) -> PackedWeights:
    """Read every tensor of `checkpoint` into a packed arena."""
    head = "wte.weight" if config.tie_word_embeddings else "lm_head.weight"
    offsets: dict[str, int] = {}
    size = 0
    for name in checkpoint.names:
        offsets[name] = size
        size += round32(_stored_size(name, checkpoint.shape(name)))
    arena = _aligned_empty(size)
    for name in checkpoint.names:
        stored = _stored_size(name, checkpoint.shape(name))
        _fill(arena[offsets[name] : offsets[name] + stored], name, checkpoint, team)
    layers = [[offsets[f"h.{i}.{parameter}"] for parameter in LAYER_PARAMETERS] for i in range(config.n_layer)]
    others = {name: offsets[name] for name in ("wpe.weight", "ln_f.weight", "ln_f.bias")}
    return PackedWeights(
        arena,
        np.array(layers, np.int64).reshape(config.n_layer, len(LAYER_PARAMETERS)),
        {**others, "head": offsets[head], "embedding": offsets["wte.weight"]},
    )


def _is_packed(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and name != "wpe.weight"


def _is_rows_of_tokens(name: str) -> bool:
    """(V, C) matrices, whose rows become the packed matrix's columns; the others are (inputs, outputs)."""
    return name in ("wte.weight", "lm_head.weight")


def _stored_size(name: str, shape: tuple[int, ...]) -> int:
    if not _is_packed(name, shape):
        return int(np.prod(shape))
    return shape[1] * round32(shape[0]) if _is_rows_of_tokens(name) else shape[0] * round32(shape[1])


def _fill(packed: Float32, name: str, checkpoint: Checkpoint, team: Team) -> None:
    shape = checkpoint.shape(name)
    if not _is_packed(name, shape):
        checkpoint.read(name, packed.reshape(shape))
        return
    transposed = _is_rows_of_tokens(name)
    k, n = shape[::-1] if transposed else shape
    for first_row, rows in checkpoint.pieces(name):
        context = np.zeros(1, PACK_CONTEXT)
        context[0] = (
            rows.ctypes.data, rows.shape[0], shape[1], first_row, transposed, k, n, packed.ctypes.data,
        )  # fmt: skip
        team.run(pack.address, context.ctypes.data)


def _aligned_empty(size: int) -> Float32:
    buffer = np.empty(size + _ALIGNMENT, np.float32)
    start = (-buffer.ctypes.data // buffer.itemsize) % _ALIGNMENT
    return buffer[start : start + size]
