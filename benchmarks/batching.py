"""Engines that serve many requests at once, each in the way that it has for it. See throughput.py."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from engines import Setup

from nvg.bench.serving import Job
from nvg.bench.workloads import TEMPERATURE


@dataclass(frozen=True)
class Requests:
    """What is to be done at once: each job's prompt is continued by exactly max_tokens."""

    jobs: list[Job]
    seed: int

    @property
    def num_output_tokens(self) -> int:
        """Tokens to generate."""
        return sum(job.max_tokens for job in self.jobs)


@dataclass(frozen=True)
class Served:
    """Seconds, and how many tokens each job got."""

    seconds: float
    lengths: list[int]


class NvgBatching:
    """LLM.generate. Options: `kv`, the dtype of keys and values. Weights are mapped from the cache, as they are from
    the second run on."""

    def __init__(self, setup: Setup) -> None:
        self._llm = self._load(setup)
        if not self._llm._engine.runner.is_from_cache:
            self._llm.close()  # which writes the cache
            self._llm = self._load(setup)
        runner = self._llm._engine.runner
        self.description = f"{version('nvg')}, {runner.dtype} weights, {runner.kv_dtype} KV"

    @staticmethod
    def _load(setup: Setup) -> Any:
        from nvg.llm import LLM

        return LLM(
            str(setup.directory),
            dtype=setup.precision,
            kv_dtype=setup.options.get("kv"),
            threads=setup.threads,
            max_num_seqs=setup.batch,
            max_model_len=setup.context,
            report=lambda line: None,
        )

    def run(self, work: Requests) -> Served:
        """All of them, sampled at the temperature."""
        from nvg.params import SamplingParams

        params = [
            SamplingParams(temperature=TEMPERATURE, ignore_eos=True, max_tokens=job.max_tokens, seed=work.seed + i)
            for i, job in enumerate(work.jobs)
        ]
        start = time.perf_counter()
        outputs = self._llm.generate([job.prompt for job in work.jobs], params)
        return Served(time.perf_counter() - start, [len(output.token_ids) for output in outputs])


class OpenVinoBatching:
    """OpenVINO GenAI's ContinuousBatchingPipeline. Options: `kv`, its KV_CACHE_PRECISION; u8 as it comes."""

    def __init__(self, setup: Setup) -> None:
        import openvino as ov
        import openvino_genai
        from engine_openvino import model_directory, properties

        self._library, self._tensor = openvino_genai, ov.Tensor
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_seqs = setup.batch
        scheduler.max_num_batched_tokens = 512
        scheduler.cache_size = 6
        options = properties(setup)
        if "kv" in setup.options:
            options["KV_CACHE_PRECISION"] = setup.options["kv"]
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(model_directory(setup), scheduler, "CPU", options)
        self.description = (
            f"openvino-genai {version('openvino-genai')}, ContinuousBatchingPipeline, up to 512 tokens a step, "
            f"KV {setup.options.get('kv', 'u8')}"
        )

    def run(self, work: Requests) -> Served:
        """All of them, sampled at the temperature."""
        configs = []
        for i, job in enumerate(work.jobs):
            config = self._library.GenerationConfig()
            config.max_new_tokens, config.ignore_eos = job.max_tokens, True
            config.do_sample, config.temperature, config.rng_seed = True, TEMPERATURE, work.seed + i
            configs.append(config)
        inputs = [self._tensor(np.array([job.prompt], np.int64)) for job in work.jobs]
        start = time.perf_counter()
        results = self._pipeline.generate(inputs, configs)
        return Served(time.perf_counter() - start, [len(result.m_generation_ids[0]) for result in results])


class CTranslate2Batching:
    """CTranslate2's batches, which nobody joins: of requests with outputs of about one length, each of which leaves it
    when it has its tokens."""

    def __init__(self, setup: Setup) -> None:
        from engine_ctranslate2 import CTranslate2

        self._engine = CTranslate2(setup)
        self._batch = setup.batch
        self.description = f"{self._engine.description}, batches of {setup.batch} sorted by length"

    def run(self, work: Requests) -> Served:
        """All of them, sampled at the temperature."""
        lengths = [0] * len(work.jobs)
        order = sorted(range(len(work.jobs)), key=lambda i: work.jobs[i].max_tokens)
        start = time.perf_counter()
        for first in range(0, len(order), self._batch):
            members = order[first : first + self._batch]
            made = self._engine.continue_batch(
                [work.jobs[i].prompt for i in members], [work.jobs[i].max_tokens for i in members], TEMPERATURE
            )
            for i, length in zip(members, made, strict=True):
                lengths[i] = length
        return Served(time.perf_counter() - start, lengths)


@dataclass
class _Slot:
    """A sequence of llama.cpp's cache, and the request that it serves."""

    number: int
    job: int
    prompt: Sequence[int]
    max_tokens: int
    chain: Any
    num_cached: int = 0
    last: int = 0
    num_made: int = 0

    @property
    def decodes(self) -> bool:
        return self.num_cached >= len(self.prompt)


class LlamaCppBatching:
    """llama.cpp's batches, filled as its server does: the sequences that decode, then what fits of waiting prompts."""

    def __init__(self, setup: Setup) -> None:
        import llama_cpp
        from engine_llama_cpp import Context, Library
        from to_gguf import gguf_file

        kind = setup.options["type"]
        self._lib = llama_cpp
        self._library = Library()
        model = self._library.load(str(gguf_file(setup.directory, setup.scratch, kind)))
        self._context = Context(model, setup.batch, setup.context, setup.threads)
        self._num_slots = setup.batch
        self.description = (
            f"llama-cpp-python {version('llama-cpp-python')}, {kind} weights, f16 KV, own loop over llama_decode"
        )

    def run(self, work: Requests) -> Served:
        """All of them, sampled at the temperature."""
        lengths = [0] * len(work.jobs)
        waiting = deque(range(len(work.jobs)))
        slots: list[_Slot] = []
        free = list(range(self._num_slots))
        self._context.clear()
        start = time.perf_counter()
        while waiting or slots:
            while waiting and free:
                i = waiting.popleft()
                job = work.jobs[i]
                slots.append(_Slot(free.pop(), i, job.prompt, job.max_tokens, self._sampler(work.seed + i)))
            for slot, row in self._step(slots):
                slot.last = self._lib.llama_sampler_sample(slot.chain, self._context.pointer, row)
                slot.num_made += 1
                if slot.num_made == slot.max_tokens:
                    lengths[slot.job] = slot.num_made
                    self._context.forget(slot.number)
                    self._lib.llama_sampler_free(slot.chain)
                    free.append(slot.number)
                    slots.remove(slot)
        return Served(time.perf_counter() - start, lengths)

    def _step(self, slots: list[_Slot]) -> list[tuple[_Slot, int]]:
        """Run a batch; the slots that can draw, each with its row."""
        from engine_llama_cpp import UBATCH_TOKENS

        tokens: list[int] = []
        positions: list[int] = []
        numbers: list[int] = []
        rows: list[tuple[_Slot, int]] = []
        for slot in sorted(slots, key=lambda slot: not slot.decodes):
            new = [slot.last] if slot.decodes else slot.prompt[slot.num_cached :]
            new = new[: UBATCH_TOKENS - len(tokens)]
            tokens += new
            positions += range(slot.num_cached, slot.num_cached + len(new))
            numbers += [slot.number] * len(new)
            slot.num_cached += len(new)
            if new and slot.decodes:
                rows.append((slot, len(tokens) - 1))
        self._context.run(tokens, positions, numbers, [row for _, row in rows])
        return rows

    def _sampler(self, seed: int) -> Any:
        lib = self._lib
        chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_temp(TEMPERATURE))
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_dist(seed))
        return chain
