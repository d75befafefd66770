"""llama.cpp through llama-cpp-python's low-level functions."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import llama_cpp
import numpy as np
from engines import Setup
from stepping import SteppingEngine
from to_gguf import gguf_file
from work import TOP_P, Logits, Outcome, Work

UBATCH_TOKENS = 512
"""llama.cpp's own default of n_ubatch."""
_KV_TYPES = {"f16": llama_cpp.GGML_TYPE_F16, "f32": llama_cpp.GGML_TYPE_F32}


class Library:
    """The library, told to be quiet."""

    def __init__(self) -> None:
        self._silence = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._silence, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()

    @staticmethod
    def load(path: str) -> Any:
        """A model on the CPU. Raises RuntimeError."""
        options = llama_cpp.llama_model_default_params()
        options.n_gpu_layers = 0
        model = llama_cpp.llama_model_load_from_file(path.encode(), options)
        if not model:
            raise RuntimeError(f"llama.cpp does not load {path}")
        return model


class Context:
    """KV caches for a fixed number of sequences, and one batch of tokens on its way."""

    def __init__(self, model: Any, batch: int, length: int, threads: int, kv: str = "f16") -> None:
        options = llama_cpp.llama_context_default_params()
        options.n_seq_max, options.n_ctx = batch, batch * length
        options.n_batch = options.n_ubatch = UBATCH_TOKENS
        options.n_threads = options.n_threads_batch = threads
        options.type_k = options.type_v = _KV_TYPES[kv]
        # Its flash attention would round f32 keys and values to f16.
        options.flash_attn_type = (
            llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED if kv == "f32" else llama_cpp.LLAMA_FLASH_ATTN_TYPE_AUTO
        )
        self._context = llama_cpp.llama_init_from_model(model, options)
        if not self._context:
            raise RuntimeError("llama.cpp makes no context")
        self.pointer = self._context
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self._batch = llama_cpp.llama_batch_init(UBATCH_TOKENS, 0, 1)
        for name in ("token", "pos", "n_seq_id", "logits"):
            setattr(self, f"_{name}", np.ctypeslib.as_array(getattr(self._batch, name), (UBATCH_TOKENS,)))
        self._n_seq_id[:] = 1
        # seq_id is an array of pointers, one for each token; llama_batch_init places their targets.
        self._seq_id = [np.ctypeslib.as_array(self._batch.seq_id[i], (1,)) for i in range(UBATCH_TOKENS)]

    def clear(self) -> None:
        """Forget all sequences."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)

    def decode(self, ids: Any, first_sequence: int, position: int, wanted: str) -> list[int]:
        """Compute ids (B, T) from `position` on, at most UBATCH_TOKENS; logits are `wanted` for "none", "last" tokens
        or "all". Returns the batch's indices of the tokens that have logits. Raises RuntimeError."""
        num_seqs, num_tokens = ids.shape
        count = num_seqs * num_tokens
        rows = {
            "none": [],
            "last": list(range(num_tokens - 1, count, num_tokens)),
            "all": list(range(count)),
        }[wanted]
        positions = np.tile(np.arange(position, position + num_tokens), num_seqs)
        sequences = [first_sequence + i // num_tokens for i in range(count)]
        self.run(ids.reshape(-1), positions, sequences, rows)
        return rows

    def run(self, token_ids: Any, positions: Any, sequences: Sequence[int], rows: Sequence[int]) -> None:
        """Compute tokens, at most UBATCH_TOKENS, each at its position of its sequence; logits of those in `rows`.

        Raises RuntimeError.
        """
        count = len(sequences)
        self._batch.n_tokens = count
        self._token[:count] = token_ids
        self._pos[:count] = positions
        for i, sequence in enumerate(sequences):
            self._seq_id[i][0] = sequence
        self._logits[:count] = 0
        self._logits[rows] = 1
        status = llama_cpp.llama_decode(self._context, self._batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}")
        llama_cpp.llama_synchronize(self._context)

    def forget(self, sequence: int) -> None:
        """Remove a sequence's keys and values."""
        llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(self._context), sequence, -1, -1)

    def logits(self, rows: Sequence[int]) -> Logits:
        """(rows, V), a copy."""
        pointers = [llama_cpp.llama_get_logits_ith(self._context, row) for row in rows]
        return np.stack([np.ctypeslib.as_array(pointer, (self.vocab_size,)) for pointer in pointers])


class LlamaCpp(SteppingEngine):
    """llama.cpp as it comes: f16 keys and values, flash attention where it thinks best.

    Its GELU is a table of f16 values and its flash attention accumulates in f16, so its logits are not quite those of
    the weights. Options: `type` of the weights, and `kv`.
    """

    def __init__(self, setup: Setup) -> None:
        kind, kv = setup.options["type"], setup.options.get("kv", "f16")
        self._setup, self._kv = setup, kv
        self._library = Library()
        self._model = self._library.load(str(gguf_file(setup.directory, setup.scratch, kind)))
        self._contexts: dict[int, Context] = {}
        self._rows: list[int] = []
        self._length = 0
        flash = "off" if kv == "f32" else "auto"
        self.description = (
            f"llama-cpp-python {version('llama-cpp-python')}, {kind} weights, {kv} KV, flash attention {flash}"
        )

    def prefill(self, prompts: Sequence[list[int]]) -> None:
        ids = np.array(prompts, np.int32)
        batch, num_tokens = ids.shape
        if batch not in self._contexts:  # a cache for more sequences than there are would only cost
            setup = self._setup
            self._contexts[batch] = Context(self._model, batch, setup.context, setup.threads, self._kv)
        self._now = self._contexts[batch]
        self._now.clear()
        self._stacked: list[Logits] = []
        if ids.size <= UBATCH_TOKENS:
            self._rows = self._now.decode(ids, 0, 0, "last")
        else:
            for sequence in range(batch):
                for first in range(0, num_tokens, UBATCH_TOKENS):
                    part = ids[sequence : sequence + 1, first : first + UBATCH_TOKENS]
                    is_last = first + UBATCH_TOKENS >= num_tokens
                    self._rows = self._now.decode(part, sequence, first, "last" if is_last else "none")
                if batch > 1:
                    self._stacked.append(self._now.logits(self._rows))
        self._length = num_tokens

    def step(self, token_ids: list[int]) -> None:
        self._stacked = []
        self._rows = self._now.decode(np.array(token_ids, np.int32)[:, None], 0, self._length, "last")
        self._length += 1

    def logits(self) -> Logits:
        return np.concatenate(self._stacked) if self._stacked else self._now.logits(self._rows)

    def sample(self, work: Work) -> Outcome:
        """Through its sampler chain, one for each sequence."""
        chains = [_chain(work.kind, work.seed + i) for i in range(len(work.prompts))]
        self.prefill(work.prompts)
        # where logits of the earlier sequences are gone, begin with any token
        chosen = [int(row[0].argmax()) for row in self._stacked] if self._stacked else self._draw(chains)
        first = list(chosen)
        start = time.perf_counter()
        for _ in work.then:
            self.step(chosen)
            chosen = self._draw(chains)
        seconds = time.perf_counter() - start
        for chain in chains:
            llama_cpp.llama_sampler_free(chain)
        return Outcome(seconds, first_token_ids=first if work.kind == "greedy" else None)

    def _draw(self, chains: list[Any]) -> list[int]:
        pointer = self._now.pointer
        return [
            llama_cpp.llama_sampler_sample(chain, pointer, row) for chain, row in zip(chains, self._rows, strict=True)
        ]


def _chain(kind: str, seed: int) -> Any:
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    if kind == "greedy":
        llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_greedy())
    else:
        llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_top_p(TOP_P, 1))
        llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_dist(seed))
    return chain
