"""The engines that are compared, behind one small interface, and the process that each of them runs in.

An engine is made with (model directory, threads, context length, scratch directory). `reset()` empties its KV cache;
`feed(token_ids)` appends tokens to the one sequence and returns the last token's logits, float32 (V,), valid until the
next call. The clock is outside: it stops when the logits are there.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]
STEP_TOKENS = 512
"""Most tokens that an engine computes at once in prefill."""


class Engine(Protocol):
    """See the module's docstring."""

    tolerance: float
    """How far logits may be from nvg's before the models can't be the same, in standard deviations of the logits."""
    description: str
    """Version and what decides speed."""

    def __init__(self, directory: Path, threads: int, context: int, scratch: Path) -> None: ...

    def reset(self) -> None: ...

    def feed(self, token_ids: Sequence[int]) -> Logits: ...


class Nvg:
    """nvg's model runner, without the scheduler and the samplers: what the peers' functions cover."""

    tolerance = 0.0

    def __init__(self, directory: Path, threads: int, context: int, scratch: Path) -> None:
        from nvg.model.checkpoint import Checkpoint
        from nvg.model.contract import Batch
        from nvg.model.runner import GPT2Runner
        from nvg.params import EngineConfig

        options = EngineConfig(threads=threads, max_num_seqs=1, max_num_batched_tokens=STEP_TOKENS)
        with Checkpoint(directory) as checkpoint:
            self._runner = GPT2Runner.from_checkpoint(checkpoint.config, checkpoint, options)
        num_blocks = -(-context // options.block_size)
        self._runner.allocate_kv(num_blocks, options.block_size)
        self._table = np.arange(num_blocks, dtype=np.int32)[None, :]
        self._batch = Batch
        self._length = 0
        self.description = f"{version('nvg')}, float32 weights and KV"

    def reset(self) -> None:
        self._length = 0

    def feed(self, token_ids: Sequence[int]) -> Logits:
        for first in range(0, len(token_ids), STEP_TOKENS):
            ids = np.array(token_ids[first : first + STEP_TOKENS], np.int32)
            is_last = first + len(ids) == len(token_ids)
            end = self._length + len(ids)
            logits = self._runner.execute(
                self._batch(
                    token_ids=ids,
                    positions=np.arange(self._length, end, dtype=np.int32),
                    query_offsets=np.array([0, len(ids)], np.int32),
                    block_tables=self._table,
                    context_lens=np.array([end], np.int32),
                    logits_rows=np.array([len(ids) - 1] if is_last else [], np.int32),
                )
            )
            self._length = end
        last: Logits = logits[0]
        return last


class LlamaCpp:
    """llama.cpp as it comes (f16 keys and values, flash attention), through llama-cpp-python's low-level functions.

    Its GELU is a table of f16 values and its flash attention accumulates in f16, so its logits are not quite those of
    the f32 weights.
    """

    tolerance = 0.05
    kv, flash_attention = "f16", "auto"

    def __init__(self, directory: Path, threads: int, context: int, scratch: Path) -> None:
        import llama_cpp
        from to_gguf import write_gguf

        self._library = llama_cpp
        path = scratch / f"llama.cpp-{self.kv}.gguf"
        write_gguf(directory, path)
        self._silence = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._silence, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        model_options = llama_cpp.llama_model_default_params()
        model_options.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_options)
        if not self._model:
            raise RuntimeError(f"llama.cpp does not load {path.name}")
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = context
        options.n_batch = options.n_ubatch = STEP_TOKENS
        options.n_threads = options.n_threads_batch = threads
        options.type_k = options.type_v = {"f16": llama_cpp.GGML_TYPE_F16, "f32": llama_cpp.GGML_TYPE_F32}[self.kv]
        options.flash_attn_type = {
            "auto": llama_cpp.LLAMA_FLASH_ATTN_TYPE_AUTO,
            "off": llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED,
        }[self.flash_attention]
        self._context = llama_cpp.llama_init_from_model(self._model, options)
        if not self._context:
            raise RuntimeError("llama.cpp makes no context")
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self.description = (
            f"llama-cpp-python {version('llama-cpp-python')}, f32 weights, {self.kv} KV, "
            f"flash attention {self.flash_attention}"
        )

    def reset(self) -> None:
        self._library.llama_memory_clear(self._library.llama_get_memory(self._context), True)

    def feed(self, token_ids: Sequence[int]) -> Logits:
        for first in range(0, len(token_ids), STEP_TOKENS):
            part = token_ids[first : first + STEP_TOKENS]
            ids = (self._library.llama_token * len(part))(*part)
            status = self._library.llama_decode(self._context, self._library.llama_batch_get_one(ids, len(part)))
            if status:
                raise RuntimeError(f"llama_decode returned {status}")
        logits = self._library.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(logits, (self._vocab_size,))


class LlamaCppF32(LlamaCpp):
    """llama.cpp with f32 keys, values and attention, as nvg has them (its flash attention would round them to f16)."""

    tolerance = 0.02
    kv, flash_attention = "f32", "off"


class Transformers:
    """Hugging Face transformers with torch, in float32."""

    tolerance = 5e-4

    def __init__(self, directory: Path, threads: int, context: int, scratch: Path) -> None:
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self._torch = torch
        self._new_cache = transformers.DynamicCache
        self._model = transformers.GPT2LMHeadModel.from_pretrained(directory, dtype=torch.float32).eval()
        self.description = f"{transformers.__version__}, torch {torch.__version__}, float32 weights and KV"
        self.reset()

    def reset(self) -> None:
        self._cache = self._new_cache()

    def feed(self, token_ids: Sequence[int]) -> Logits:
        ids = self._torch.tensor([token_ids])
        output = self._model(ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        logits: Logits = output.logits[0, -1].numpy()
        return logits


ENGINES: dict[str, type[Engine]] = {
    "nvg": Nvg,
    "llama.cpp": LlamaCpp,
    "llama.cpp-f32": LlamaCppF32,
    "transformers": Transformers,
}
"""By the names that `side_by_side.py --engines` takes."""


@dataclass(frozen=True)
class Work:
    """Feed `prompt` (one call), then each of `then` in a call of its own; the clock runs over one of the two."""

    prompt: list[int]
    then: list[int] = field(default_factory=list)

    def run(self, engine: Engine) -> tuple[float, float, Logits]:
        """(seconds of the calls for `then`, or of the prompt's if there are none; CPU seconds of all threads in that
        time; the last logits)."""
        engine.reset()
        start, cpu_start = time.perf_counter(), time.process_time()
        logits = engine.feed(self.prompt)
        if self.then:
            start, cpu_start = time.perf_counter(), time.process_time()
            for token_id in self.then:
                logits = engine.feed([token_id])
        return time.perf_counter() - start, time.process_time() - cpu_start, logits.copy()


@dataclass(frozen=True)
class Done:
    """What a piece of work gave."""

    seconds: float
    cpu_s: float
    """CPU time of all threads in these seconds."""
    logits: Logits
    waiting_cpu_s: float
    """CPU time that the process used since its last work ended: of threads that spin while others are measured."""


class EngineProcess:
    """An engine in a process of its own, so that thread pools and OpenMP runtimes can't meet; it works when told to.

    `problem` is None, or says why there is no such engine: "missing: ..." where it is not installed.
    """

    def __init__(self, name: str, directory: Path, threads: int, context: int, scratch: Path) -> None:
        self.name = name
        self.description = ""
        self.load_s = 0.0
        spawn = multiprocessing.get_context("spawn")
        self._pipe, end = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(end, name, directory, threads, context, scratch))
        self._process.start()
        end.close()
        self.problem: str | None = None
        answer = self._receive()
        if answer is not None:
            kind, text, self.load_s = answer
            if kind == "ready":
                self.description = text
            else:
                self.problem = f"{kind}: {text}"

    def _receive(self) -> Any:
        """The process's answer; None where it died."""
        try:
            return self._pipe.recv()
        except EOFError:
            self._process.join()
            self.problem = f"failed: the process ended with exit code {self._process.exitcode}"
            return None

    def run(self, work: Work) -> Done | None:
        """Do it; None where the process died of it."""
        self._pipe.send(work)
        done: Done | None = self._receive()
        return done

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join()


def _serve(pipe: Connection, name: str, directory: Path, threads: int, context: int, scratch: Path) -> None:
    start = time.perf_counter()
    try:
        engine: Engine = ENGINES[name](directory, threads, context, scratch)
    except ImportError as error:
        pipe.send(("missing", str(error), 0.0))
        return
    except Exception as error:
        pipe.send(("failed", f"{type(error).__name__}: {error}", 0.0))
        return
    pipe.send(("ready", engine.description, time.perf_counter() - start))
    idle_since = time.process_time()
    while True:
        try:
            work: Work = pipe.recv()
        except EOFError:
            return
        waiting_cpu_s = time.process_time() - idle_since
        seconds, cpu_s, logits = work.run(engine)
        idle_since = time.process_time()
        pipe.send(Done(seconds, cpu_s, logits, waiting_cpu_s))
