"""Checkpoint tensors -> one arena of packed weights, read and packed piece by piece: never a second copy of a model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nvg.kernels.formats import panel_bytes
from nvg.kernels.forward import LAYER_PARAMETERS
from nvg.kernels.pack import BLOCK_BYTES, PACK_CONTEXT, pack
from nvg.model.checkpoint import Checkpoint
from nvg.model.config import ModelConfig
from nvg.runtime.arena import Arena
from nvg.runtime.team import Team

_ALIGNMENT = 64  # bytes: panels begin with a cache line
Bytes = npt.NDArray[np.uint8]


def round32(n: int) -> int:
    """The next multiple of 32: how many columns are stored for n."""
    return (n + 31) // 32 * 32


class Layout:
    """Where each parameter of a checkpoint lies in an arena, matrices packed as `dtype`; offsets are in bytes."""

    def __init__(self, checkpoint: Checkpoint, dtype: str) -> None:
        self.dtype = dtype
        self.offsets: dict[str, int] = {}
        self.size = 0
        for name in checkpoint.names:
            self.offsets[name] = self.size
            stored = _stored_bytes(name, checkpoint.shape(name), dtype)
            self.size += -(-stored // _ALIGNMENT) * _ALIGNMENT


@dataclass(frozen=True)
class PackedWeights:
    """All of a model's parameters in one arena; offsets are in bytes."""

    arena: Bytes
    layer_offsets: np.ndarray[tuple[int, int], np.dtype[np.int64]]  # (n_layer, len(LAYER_PARAMETERS))
    offsets: dict[str, int]
    """Of wpe.weight, ln_f.weight, ln_f.bias, head and embedding (the head itself where it is tied)."""

    @classmethod
    def of(cls, config: ModelConfig, layout: Layout, arena: Bytes) -> PackedWeights:
        """Of an arena that has been filled as `layout` says."""
        offsets = layout.offsets
        head = "wte.weight" if config.tie_word_embeddings else "lm_head.weight"
        layers = [[offsets[f"h.{i}.{parameter}"] for parameter in LAYER_PARAMETERS] for i in range(config.n_layer)]
        others = {name: offsets[name] for name in ("wpe.weight", "ln_f.weight", "ln_f.bias")}
        return cls(
            arena,
            np.array(layers, np.int64).reshape(config.n_layer, len(LAYER_PARAMETERS)),
            {**others, "head": offsets[head], "embedding": offsets["wte.weight"]},
        )


def pack_weights(checkpoint: Checkpoint, layout: Layout, team: Team) -> Arena:
    """Read every tensor of `checkpoint` into an arena of `layout`."""
    arena = Arena(layout.size)
    blocks = np.empty(BLOCK_BYTES * team.num_threads, np.uint8)
    for name in checkpoint.names:
        first = layout.offsets[name]
        stored = _stored_bytes(name, checkpoint.shape(name), layout.dtype)
        _fill(arena.bytes[first : first + stored], name, checkpoint, layout.dtype, team, blocks)
    return arena


def _is_packed(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and name != "wpe.weight"


def _is_rows_of_tokens(name: str) -> bool:
    """(V, C) matrices, whose rows become the packed matrix's columns; the others are (inputs, outputs)."""
    return name in ("wte.weight", "lm_head.weight")


def _inner_and_columns(name: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """(K, N) of a packed matrix."""
    return (shape[1], shape[0]) if _is_rows_of_tokens(name) else (shape[0], shape[1])


def _stored_bytes(name: str, shape: tuple[int, ...], dtype: str) -> int:
    if not _is_packed(name, shape):
        # a bias is read up to the end of its last panel, where it is 0
        return 4 * (round32(shape[0]) if len(shape) == 1 else int(np.prod(shape)))
    k, n = _inner_and_columns(name, shape)
    return round32(n) // 32 * panel_bytes(dtype, k)


def _fill(packed: Bytes, name: str, checkpoint: Checkpoint, dtype: str, team: Team, blocks: Bytes) -> None:
    shape = checkpoint.shape(name)
    if not _is_packed(name, shape):
        values = packed.view(np.float32)
        size = int(np.prod(shape))
        checkpoint.read(name, values[:size].reshape(shape))
        values[size:] = 0
        return
    k, n = _inner_and_columns(name, shape)
    job = pack(dtype)
    for first_row, rows in checkpoint.pieces(name):
        context = np.zeros(1, PACK_CONTEXT)
        context[0] = (
            rows.ctypes.data, rows.shape[0], shape[1], first_row, _is_rows_of_tokens(name), k, n, packed.ctypes.data,
            blocks.ctypes.data,
        )  # fmt: skip
        team.run(job.address, context.ctypes.data)
