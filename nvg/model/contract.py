"""The joint of the house: what the engine hands to a model runner, and what a runner is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Batch:
    """One step: a flat list of T tokens of S sequences, R of whose logits are wanted. All arrays are int32.

    A sequence's tokens are consecutive. Token t of sequence s is stored at slot `positions[t] % block_size` of block
    `block_tables[s, positions[t] // block_size]`; new keys and values are written before attention reads.
    """

    token_ids: Int32  # (T,)
    positions: Int32  # (T,)
    query_offsets: Int32  # (S + 1,) sequence s owns tokens query_offsets[s] : query_offsets[s + 1]
    block_tables: Int32  # (S, B)
    context_lens: Int32  # (S,) KV entries after this step
    logits_rows: Int32  # (R,) indices into the T tokens; R may be 0


class ModelRunner(Protocol):
    """Runs steps. Owns its buffers and its KV pool; not thread-safe but for `abort`."""

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""

    @property
    def max_model_len(self) -> int:
        """Most tokens that one sequence can have."""

    @property
    def max_batched_tokens(self) -> int:
        """Most tokens in one step."""

    @property
    def max_logits_rows(self) -> int:
        """Most rows of logits in one step."""

    def bytes_per_block(self, block_size: int) -> int:
        """KV bytes of a block of `block_size` entries."""

    def allocate_kv(self, num_blocks: int, block_size: int) -> None:
        """Reserve the KV pool; memory is touched when it is used."""

    def copy_blocks(self, src: Int32, dst: Int32) -> None:
        """Copy whole blocks src[i] -> dst[i] in every layer."""

    def execute(self, batch: Batch) -> Float32:
        """Run one step; logits (R, vocab_size), valid and writable until the next call.

        Raises AbortedError if `abort` was called while it ran.
        """

    def abort(self) -> None:
        """Make the running `execute` stop early; from any thread; without effect when none runs."""

    def close(self) -> None:
        """Free threads and memory."""


@dataclass(frozen=True)
class StepJob:
    """A runner's step as machine code, and where it leaves its logits."""

    address: int
    """Of a `nvg.runtime.compile_cache.Job`; a step must have been described in `context` before each call."""
    context: int
    meeting: int
    """Address of the words of the meeting point that the step's threads use (see `nvg.runtime.team.barrier`)."""
    logits: int
    """Address of row 0, float32, which the next step overwrites."""
    ld_logits: int
    """Bytes between rows."""


class TeamRunner(ModelRunner, Protocol):
    """A runner whose step is a job of a thread team, so that other compiled code can go on where it ends."""

    @property
    def num_threads(self) -> int:
        """Threads of the team."""

    @property
    def step_job(self) -> StepJob:
        """The step, for jobs that call it. Stays what it is."""

    def execute_through(self, batch: Batch, job: int, context: int) -> Float32:
        """`execute`, but that the team runs the job at address `job` with `context`, which calls `step_job`: once,
        or more often if each sequence has one token, with other token ids and the next positions in the batch's
        arrays."""
