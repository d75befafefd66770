"""GPT2Runner: packed weights, preallocated buffers and a paged KV pool; one step in, logits out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from nvg.errors import AbortedError
from nvg.kernels import checksum, layers
from nvg.kernels import forward as forward_module
from nvg.kernels.attention import QUERY_ROWS, SUM_ROWS
from nvg.kernels.formats import PANEL, operand_bytes, panel_bytes, steps_of
from nvg.kernels.forward import CONTEXT, describe_step, forward
from nvg.kernels.matmul import ROW_BLOCK
from nvg.kernels.pack import pack
from nvg.model.checkpoint import Checkpoint
from nvg.model.config import ModelConfig
from nvg.model.contract import Batch, Float32, Int32, StepJob
from nvg.model.costs import kv_block_bytes
from nvg.model.packed_cache import CachedWeights
from nvg.model.packing import Layout, PackedWeights, round32
from nvg.params import EngineConfig
from nvg.runtime import team as team_module
from nvg.runtime.compile_cache import CompileStep, prepare
from nvg.runtime.cores import default_threads
from nvg.runtime.kernel_store import Report
from nvg.runtime.team import ABORT, MEETING_WORDS, PATIENCE, Team

_ACTIVATIONS = {
    "gelu_new": layers.GELU_TANH,
    "gelu_pytorch_tanh": layers.GELU_TANH,
    "gelu_fast": layers.GELU_TANH,
    "gelu_python_tanh": layers.GELU_TANH,
    "gelu_accurate": layers.GELU_TANH,
    "gelu": layers.GELU_ERF,
    "gelu_python": layers.GELU_ERF,
    "relu": layers.RELU,
    "silu": layers.SILU,
    "swish": layers.SILU,
    "tanh": layers.TANH,
}
_LOGITS_ROWS = 64


def compile_steps(dtype: str = EngineConfig.dtype, kv_dtype: str | None = None) -> list[CompileStep]:
    """All that must be compiled before a GPT-2 can run with weights of `dtype`; kv_dtype None follows it."""
    steps = [
        forward(dtype, kv_dtype or default_kv_dtype(dtype)).step(),  # takes longest
        pack(dtype).step(),
        *team_module.compile_steps(),
        *forward_module.compile_steps(),
        *checksum.compile_steps(),
    ]
    return [step.found_in(__name__, dtype, kv_dtype) for step in steps]


def default_kv_dtype(dtype: str) -> str:
    """How keys and values are stored unless a choice is made."""
    return "float32" if dtype == "float32" else "bfloat16"


def _row_bytes(num_floats: int) -> int:
    """Bytes of a row of float32 with room to the next multiple of 32: an odd number of cache lines, so that rows beside
    each other do not fall into the same sets of a cache."""
    return operand_bytes("float32", num_floats)


class GPT2Runner:
    """A GPT-2 with weights of one dtype (see nvg.model.contract.ModelRunner)."""

    def __init__(
        self, config: ModelConfig, checkpoint: Checkpoint, engine_config: EngineConfig, report: Report | None = None
    ) -> None:
        self._config = config
        self.dtype = engine_config.dtype
        self.kv_dtype = engine_config.kv_dtype or default_kv_dtype(self.dtype)
        self.vocab_size = config.vocab_size
        self.max_model_len = min(config.n_positions, engine_config.max_model_len or config.n_positions)
        self.max_batched_tokens = engine_config.max_num_batched_tokens
        self.max_logits_rows = max(_LOGITS_ROWS, min(engine_config.max_num_seqs, self.max_batched_tokens))
        self._team = Team(engine_config.threads or default_threads())
        try:
            layout = Layout(checkpoint, self.dtype)
            self._cached = CachedWeights(checkpoint, layout, self.num_threads, report)
            self._weights = PackedWeights.of(config, layout, self._cached.arena)
        except BaseException:
            self._team.close()
            raise
        self._job = forward(self.dtype, self.kv_dtype)
        self._allocate_buffers()
        self._meeting = np.zeros(MEETING_WORDS, np.int64)
        self._context = np.zeros(1, CONTEXT)
        self._fill_context()
        self._pool = np.empty((0, 0), np.uint8)

    @classmethod
    def from_checkpoint(
        cls, config: ModelConfig, checkpoint: Checkpoint, engine_config: EngineConfig, report: Report | None = None
    ) -> GPT2Runner:
        """Compile what is missing, read and pack the weights. `report` gets lines about what takes time."""
        prepare(cls.compile_steps(engine_config), report)
        return cls(config, checkpoint, engine_config, report)

    @staticmethod
    def compile_steps(engine_config: EngineConfig) -> list[CompileStep]:
        """What `from_checkpoint` compiles."""
        return compile_steps(engine_config.dtype, engine_config.kv_dtype)

    def _allocate_buffers(self) -> None:
        config, rows = self._config, self.max_batched_tokens
        threads = self._team.num_threads
        all_rows = max(rows, self.max_logits_rows)
        self._row_bytes = {
            "ld_embd": _row_bytes(config.n_embd),
            "ld_qkv": _row_bytes(3 * config.n_embd),
            "ld_scores": _row_bytes(self.max_model_len + PANEL),
            "ld_sums": _row_bytes(config.head_size),
            "ld_operand": operand_bytes(self.dtype, config.n_embd),
            "ld_inner_operand": operand_bytes(self.dtype, config.n_inner),
        }
        width = self._row_bytes
        self._buffers: dict[str, npt.NDArray[Any]] = {
            "x": np.zeros((rows, width["ld_embd"]), np.uint8),
            "last_x": np.zeros((self.max_logits_rows, width["ld_embd"]), np.uint8),
            "y": np.zeros((rows, width["ld_embd"]), np.uint8),
            # a row more, because each head is read in whole groups of 32
            "qkv": np.zeros((rows + 1, width["ld_qkv"]), np.uint8),
            "operand": np.zeros((all_rows, width["ld_operand"]), np.uint8),
            "inner_operand": np.zeros((rows, width["ld_inner_operand"]), np.uint8),
            "scores": np.zeros((threads, QUERY_ROWS, width["ld_scores"]), np.uint8),
            "sums": np.zeros((threads, SUM_ROWS, width["ld_sums"]), np.uint8),
            "panel_rows": np.zeros((threads, ROW_BLOCK, PANEL), np.float32),
            "norm_rows": np.zeros((threads, width["ld_embd"]), np.uint8),
            "logits": np.empty((self.max_logits_rows, round32(config.vocab_size)), np.float32),
        }
        scales = np.full(config.n_layer, 1 / math.sqrt(config.head_size) if config.scale_attn_weights else 1.0)
        if config.scale_attn_by_inverse_layer_idx:
            scales /= np.arange(1, config.n_layer + 1)
        self._buffers["attention_scales"] = scales.astype(np.float32)
        self._sequence_of = np.zeros(rows, np.int32)
        self._tile_offsets = np.zeros(rows + 1, np.int32)
        self._ones = np.zeros(rows, np.int32)

    def _fill_context(self) -> None:
        config, weights, buffers, context = self._config, self._weights, self._buffers, self._context[0]
        for name in ("n_layer", "n_head", "n_embd", "n_inner"):
            context[name] = getattr(config, name)
        context["padded_vocab_size"] = round32(config.vocab_size)
        context["activation"] = _ACTIVATIONS[config.activation_function]
        context["epsilon"] = config.layer_norm_epsilon
        base = weights.arena.ctypes.data
        self._layer_addresses = weights.layer_offsets + base
        context["layer_addresses"] = self._layer_addresses.ctypes.data
        context["wpe"], context["head"] = base + weights.offsets["wpe.weight"], base + weights.offsets["head"]
        context["ln_f_weight"] = base + weights.offsets["ln_f.weight"]
        context["ln_f_bias"] = base + weights.offsets["ln_f.bias"]
        context["embedding"] = base + weights.offsets["embedding"]
        context["embd_panel_bytes"] = panel_bytes(self.dtype, config.n_embd)
        context["inner_panel_bytes"] = panel_bytes(self.dtype, config.n_inner)
        context["embd_steps"] = steps_of(self.dtype, config.n_embd)
        context["inner_steps"] = steps_of(self.dtype, config.n_inner)
        for name, buffer in buffers.items():
            context[name] = buffer.ctypes.data
        for name, size in self._row_bytes.items():
            context[name] = size
        context["meeting"] = self._meeting.ctypes.data
        self._context_address = self._context.ctypes.data

    @property
    def num_threads(self) -> int:
        """Compute threads, the caller's included."""
        return self._team.num_threads

    @property
    def is_from_cache(self) -> bool:
        """Whether the weights were packed by an earlier run."""
        return self._cached.is_from_cache

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights."""
        return self._weights.arena.nbytes

    def bytes_per_block(self, block_size: int) -> int:
        """KV bytes of a block of `block_size` entries, in all layers."""
        return kv_block_bytes(self._config, self.kv_dtype, block_size)

    def allocate_kv(self, num_blocks: int, block_size: int) -> None:
        """Reserve the KV pool; memory is touched when it is used. Raises MemoryError."""
        self._pool = np.empty((num_blocks, self.bytes_per_block(block_size)), np.uint8)
        context = self._context[0]
        context["pool"] = self._pool.ctypes.data
        context["block_size"] = block_size

    def copy_blocks(self, src: Int32, dst: Int32) -> None:
        """Copy whole blocks src[i] -> dst[i], in order."""
        for source, target in zip(src, dst, strict=True):
            self._pool[target] = self._pool[source]

    @property
    def step_job(self) -> StepJob:
        """See nvg.model.contract.TeamRunner."""
        logits = self._buffers["logits"]
        return StepJob(
            self._job.address, self._context_address, self._meeting.ctypes.data, logits.ctypes.data, logits.strides[0]
        )

    def execute(self, batch: Batch) -> Float32:
        """Run one step; logits (R, V), valid and writable until the next call.

        Raises AbortedError if `abort` was called while it ran; what it wrote to the KV pool is then void.
        """
        return self.execute_through(batch, self._job.address, self._context_address)

    def execute_through(self, batch: Batch, job: int, context: int) -> Float32:
        """See nvg.model.contract.TeamRunner."""
        num_rows = len(batch.logits_rows)
        assert len(batch.token_ids) <= self.max_batched_tokens
        assert num_rows <= self.max_logits_rows
        longest = describe_step(
            self._context_address, batch.token_ids, batch.positions, batch.query_offsets, batch.block_tables,
            batch.logits_rows, self._sequence_of, self._tile_offsets, self._ones,
        )  # fmt: skip
        assert longest <= self.max_model_len
        self._meeting[:] = 0
        self._meeting[PATIENCE] = self._team.patience
        self._team.run(job, context)
        if self._meeting[ABORT]:
            raise AbortedError("the step was aborted")
        logits: Float32 = self._buffers["logits"][:num_rows, : self.vocab_size]
        return logits

    def abort(self) -> None:
        """Make the running `execute` stop early; from any thread; without effect when none runs."""
        self._meeting[ABORT] = 1

    def close(self) -> None:
        """End the threads, free the memory, and keep packed weights that the cache doesn't have yet."""
        self._team.close()
        self._cached.close()
        self._pool = np.empty((0, 0), np.uint8)
        self._buffers.clear()
