"""Checkpoint tensors -> one arena of packed weights, read and packed piece by piece: never a second copy of a model."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nvg.kernels.formats import panel_bytes
from nvg.kernels.forward import LAYER_PARAMETERS
from nvg.kernels.pack import BLOCK_BYTES, PACK_CONTEXT, pack
from nvg.model.checkpoint import Checkpoint
from nvg.model.config import ModelConfig
from nvg.runtime.arena import Arena

_ALIGNMENT = 64  # bytes: panels begin with a cache line
_PIECE_BYTES = 2**20
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


def pack_weights(checkpoint: Checkpoint, layout: Layout, arena: Arena, num_threads: int) -> None:
    """Read every tensor of `checkpoint` into an arena of `layout`.

    Threads take pieces of tensors in turn and do all the work on each, which stays in a core's own cache meanwhile.
    """
    pieces = deque(_pieces(checkpoint, layout, arena.bytes))
    with ThreadPoolExecutor(num_threads) as pool:
        workers = [pool.submit(_pack_pieces, pieces, checkpoint, layout.dtype) for _ in range(num_threads)]
        try:
            for worker in workers:
                worker.result()
        finally:
            pieces.clear()  # after an error, or Ctrl-C, nobody goes on


@dataclass(frozen=True)
class _Piece:
    """Some rows of a tensor, and where all of it goes."""

    name: str
    rows: range
    packed: Bytes


def _pieces(checkpoint: Checkpoint, layout: Layout, arena: Bytes) -> Iterator[_Piece]:
    for name, first in layout.offsets.items():
        shape = checkpoint.shape(name)
        packed = arena[first : first + _stored_bytes(name, shape, layout.dtype)]
        step = max(1, _PIECE_BYTES // (4 * shape[1] * 32)) * 32 if _is_packed(name, shape) else shape[0]
        for row in range(0, shape[0], step):
            yield _Piece(name, range(row, min(row + step, shape[0])), packed)


def _pack_pieces(pieces: deque[_Piece], checkpoint: Checkpoint, dtype: str) -> None:
    """Take pieces until none is left."""
    values = np.empty(0, np.float32)
    block = np.empty(BLOCK_BYTES, np.uint8)
    job = pack(dtype).function
    context = np.zeros(1, PACK_CONTEXT)
    while pieces:
        try:
            piece = pieces.popleft()
        except IndexError:  # another thread was faster
            return
        shape = checkpoint.shape(piece.name)
        if not _is_packed(piece.name, shape):
            _copy(piece, checkpoint)
            continue
        size = len(piece.rows) * shape[1]
        if values.size < size:
            values = np.empty(size, np.float32)
        checkpoint.read_rows(piece.name, piece.rows[0], values[:size].reshape(-1, shape[1]))
        k, n = _inner_and_columns(piece.name, shape)
        context[0] = (
            values.ctypes.data, len(piece.rows), shape[1], piece.rows[0], _is_rows_of_tokens(piece.name), k, n,
            piece.packed.ctypes.data, block.ctypes.data,
        )  # fmt: skip
        job(context.ctypes.data, 0, 1)


def _copy(piece: _Piece, checkpoint: Checkpoint) -> None:
    values = piece.packed.view(np.float32)
    shape = checkpoint.shape(piece.name)
    size = math.prod(shape)
    checkpoint.read(piece.name, values[:size].reshape(shape))
    values[size:] = 0


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
        return 4 * (round32(shape[0]) if len(shape) == 1 else math.prod(shape))
    k, n = _inner_and_columns(name, shape)
    return round32(n) // 32 * panel_bytes(dtype, k)
