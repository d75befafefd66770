"""The engines that are compared, by name and precision, and the process that each of them runs in.

An engine is a class made with a Setup, with `description` (version, and what decides speed) and `run(work)`.
"""

from __future__ import annotations

import importlib
import multiprocessing
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from work import Outcome, Work

from nvg.errors import NvgError

PRECISIONS = ("float32", "bfloat16", "int8", "int4")
_SETTLE_S = 2.0


@dataclass(frozen=True)
class Setup:
    """What an engine is made for."""

    directory: Path
    """A Hugging Face GPT-2 directory."""
    scratch: Path
    """Where converted models are kept."""
    precision: str
    threads: int
    context: int
    """Most tokens of a sequence."""
    batch: int
    """Most sequences at once."""
    options: Mapping[str, Any] = field(default_factory=dict)


class Engine(Protocol):
    """See the module's docstring."""

    description: str

    def __init__(self, setup: Setup) -> None: ...

    def run(self, work: Work) -> Outcome: ...


@dataclass(frozen=True)
class Variant:
    """An engine as it is listed: a peer at a precision, in one of the ways that it has for it."""

    name: str
    peer: str
    """What `--engines` calls it."""
    precision: str
    where: str
    """`module:class` of this directory."""
    has_sampler: bool = True
    """Whether it does work of the kinds greedy and topp."""
    options: Mapping[str, Any] = field(default_factory=dict)


def _llama_cpp(name: str, precision: str, **options: Any) -> Variant:
    return Variant(name, "llama.cpp", precision, "engine_llama_cpp:LlamaCpp", options=options)


def _everywhere(
    peer: str, where: str, precisions: tuple[str, ...] = PRECISIONS, has_sampler: bool = True
) -> list[Variant]:
    return [Variant(peer, peer, precision, where, has_sampler) for precision in precisions]


VARIANTS: tuple[Variant, ...] = (
    *_everywhere("nvg", "engine_nvg:Nvg"),
    _llama_cpp("llama.cpp", "float32", type="f32"),
    _llama_cpp("llama.cpp-f32-kv", "float32", type="f32", kv="f32"),
    _llama_cpp("llama.cpp-f16", "bfloat16", type="f16"),
    _llama_cpp("llama.cpp-bf16", "bfloat16", type="bf16"),
    _llama_cpp("llama.cpp-q8_0", "int8", type="q8_0"),
    _llama_cpp("llama.cpp-q4_0", "int4", type="q4_0"),
    _llama_cpp("llama.cpp-q4_0-pure", "int4", type="q4_0-pure"),
    *_everywhere("openvino", "engine_openvino:OpenVino", has_sampler=False),
    *_everywhere("openvino-genai", "engine_openvino:OpenVinoGenAI"),
    *_everywhere("ctranslate2", "engine_ctranslate2:CTranslate2", ("float32", "bfloat16", "int8")),
    *_everywhere("transformers", "engine_transformers:Transformers", ("float32", "bfloat16")),
)
"""In the order of the tables; nvg first."""

PEERS = tuple(dict.fromkeys(variant.peer for variant in VARIANTS))

TOLERANCES = {"float32": 0.02, "bfloat16": 0.05, "int8": 0.15, "int4": 0.5}
"""How far a peer's logits may be from nvg's in float32 before it can't be the same model: root mean square of the
difference, in standard deviations of the logits. Two models that have nothing in common are 1.4 apart."""
TOKEN_TOLERANCE = 1.5
"""Of a peer that shows no logits: how far below the greatest of nvg's float32 logits the chosen token's may be, in
standard deviations. The greatest of 50,000 is about 4.3 above the mean."""


@dataclass(frozen=True)
class Done:
    """What a piece of work gave, and what it cost in CPU time."""

    outcome: Outcome
    wall_s: float
    """The whole of it, untimed parts too."""
    cpu_s: float
    """CPU time of all threads in wall_s."""
    waiting_cpu_s: float
    """CPU time that the process used since its last work: of threads that spin while others are measured."""


class EngineProcess:
    """An engine in a process of its own, so that thread pools and OpenMP runtimes can't meet; it works when told to.

    `problem` is None, or says why there is no such engine: "missing: ..." where it is not installed, "refused: ..."
    where it does not have this precision, "failed: ...".
    """

    def __init__(self, variant: Variant, setup: Setup) -> None:
        self.variant = variant
        self.description = ""
        self.load_s = 0.0
        self.problem: str | None = None
        spawn = multiprocessing.get_context("spawn")
        self._pipe, end = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(end, variant, setup))
        self._process.start()
        end.close()
        answer = self._receive()
        if answer is not None:
            self.description, self.load_s = answer

    def _receive(self) -> Any:
        """The process's answer; None where there is a problem now."""
        try:
            kind, answer = self._pipe.recv()
        except EOFError:
            self._process.join()
            kind, answer = "failed", f"the process ended with exit code {self._process.exitcode}"
        if kind == "done":
            return answer
        self.problem = f"{kind}: {answer}"
        return None

    def run(self, work: Work) -> Done | None:
        """Do it; None where that failed, which is then its problem."""
        if self.problem is not None:
            return None
        self._pipe.send(work)
        done: Done | None = self._receive()
        return done

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join()


def _serve(pipe: Connection, variant: Variant, setup: Setup) -> None:
    try:
        start = time.perf_counter()
        module, _, name = variant.where.partition(":")
        engine: Engine = getattr(importlib.import_module(module), name)(setup)
        _settle()
        pipe.send(("done", (engine.description, time.perf_counter() - start)))
        idle_since = time.process_time()
        while True:
            try:
                work: Work = pipe.recv()
            except EOFError:
                return
            waiting_cpu_s = time.process_time() - idle_since
            start, cpu_start = time.perf_counter(), time.process_time()
            outcome = engine.run(work)
            wall_s, cpu_s = time.perf_counter() - start, time.process_time() - cpu_start
            _settle()
            idle_since = time.process_time()
            pipe.send(("done", Done(outcome, wall_s, cpu_s, waiting_cpu_s)))
    except ImportError as error:
        pipe.send(("missing", str(error)))
    except NvgError as error:
        pipe.send(("refused", str(error)))
    except Exception as error:
        pipe.send(("failed", f"{type(error).__name__}: {error}"))


def _settle() -> None:
    """Wait until threads that spin for a while after their work have gone to sleep, so that the next engine has the
    machine for itself, whatever an OpenMP runtime thinks of waiting."""
    end = time.perf_counter() + _SETTLE_S
    while time.perf_counter() < end:
        before = time.process_time()
        time.sleep(0.02)
        if time.process_time() - before < 0.002:
            return
