"""The work that is timed: prefill and decode steps, with sampling or without."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np

from nvg.engine.engine import Engine
from nvg.engine.sequence import Request
from nvg.errors import EngineError
from nvg.model.contract import Batch, Int32
from nvg.params import SamplingParams
from nvg.sampling.chain import Stage


class Work(Protocol):
    """Runs prompts, int32 (sequences, tokens), and tells how long it took."""

    def prefill(self, prompts: Int32) -> float:
        """Seconds from prompts to the logits of each one's last token, and to its draw where tokens are sampled."""

    def decode(self, contexts: Int32, tokens: Int32) -> tuple[int, float]:
        """(tokens, seconds) of `len(tokens)` steps after the contexts, whose prefill is not timed.

        tokens: int32 (steps, sequences), what each step is fed where nothing is sampled.
        """


class BareSteps:
    """Steps of the model runner alone, fed with the tokens given: no scheduler, and nothing is sampled."""

    def __init__(self, engine: Engine) -> None:
        self._runner = engine.runner
        self._pool = engine.pool

    def prefill(self, prompts: Int32) -> float:
        """See Work."""
        with self._tables(len(prompts), prompts.shape[1]) as tables:
            batches = list(self._prefill_batches(prompts, tables))
            start = time.perf_counter()
            for batch in batches:
                self._runner.execute(batch)
            return time.perf_counter() - start

    def decode(self, contexts: Int32, tokens: Int32) -> tuple[int, float]:
        """See Work."""
        num_seqs, length = contexts.shape
        with self._tables(num_seqs, length + len(tokens)) as tables:
            for batch in self._prefill_batches(contexts, tables):
                self._runner.execute(batch)
            rows = np.arange(num_seqs + 1, dtype=np.int32)
            batches = [
                Batch(
                    token_ids=step_tokens.copy(),
                    positions=np.full(num_seqs, length + step, np.int32),
                    query_offsets=rows,
                    block_tables=tables,
                    context_lens=np.full(num_seqs, length + step + 1, np.int32),
                    logits_rows=rows[:-1].copy(),
                )
                for step, step_tokens in enumerate(tokens)
            ]
            start = time.perf_counter()
            for batch in batches:
                self._runner.execute(batch)
            return tokens.size, time.perf_counter() - start

    @contextmanager
    def _tables(self, num_seqs: int, length: int) -> Iterator[Int32]:
        """Block tables of sequences of that length, given back in the end."""
        blocks = self._pool.allocate(num_seqs * self._pool.blocks_for(length))
        assert blocks is not None
        try:
            yield np.array(blocks, np.int32).reshape(num_seqs, -1)
        finally:
            self._pool.release(blocks)

    def _prefill_batches(self, prompts: Int32, tables: Int32) -> Iterator[Batch]:
        """Prompts one after the other in steps that are as full as they can be."""
        length = prompts.shape[1]
        size = self._runner.max_batched_tokens
        flat = prompts.reshape(-1)
        for first in range(0, flat.size, size):
            end = min(first + size, flat.size)
            taking_part = range(first // length, -(-end // length))
            starts = [max(first - s * length, 0) for s in taking_part]
            ends = [min(end - s * length, length) for s in taking_part]
            offsets = np.cumsum([0, *(e - b for b, e in zip(starts, ends, strict=True))])
            yield Batch(
                token_ids=flat[first:end].astype(np.int32),
                positions=np.arange(first, end, dtype=np.int32) % np.int32(length),
                query_offsets=offsets.astype(np.int32),
                block_tables=np.ascontiguousarray(tables[taking_part.start : taking_part.stop]),
                context_lens=np.array(ends, np.int32),
                logits_rows=np.array([o - 1 for o, e in zip(offsets[1:], ends, strict=True) if e == length], np.int32),
            )


class SampledSteps:
    """Steps of the whole engine: schedule, run, sample through `stages`, append."""

    def __init__(self, engine: Engine, stages: tuple[Stage, ...]) -> None:
        self._engine = engine
        self._stages = stages

    def prefill(self, prompts: Int32) -> float:
        """See Work."""
        start = time.perf_counter()
        requests = self._add(prompts, 1)
        while self._engine.has_work:
            self._engine.step()
        seconds = time.perf_counter() - start
        _check(requests)
        return seconds

    def decode(self, contexts: Int32, tokens: Int32) -> tuple[int, float]:
        """See Work; the first of the sequences may come some steps further than the last."""
        requests = self._add(contexts, self._engine.max_model_len)
        try:
            while not all(request.sequences[0].output_token_ids.size for request in requests):
                self._engine.step()
                _check(requests)
            start = time.perf_counter()
            for _ in range(len(tokens)):
                self._engine.step()
            seconds = time.perf_counter() - start
            _check(requests)
        finally:
            for request in requests:
                self._engine.abort(request)
        return tokens.size, seconds

    def _add(self, prompts: Int32, max_tokens: int) -> list[Request]:
        params = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
        requests = []
        for seed, prompt in enumerate(prompts):
            request = Request(None, prompt.tolist(), params, seed, self._stages, lambda piece: None)
            self._engine.check(request)
            self._engine.add(request)
            requests.append(request)
        return requests


def _check(requests: Sequence[Request]) -> None:
    """Raise EngineError where a sampler failed: what was timed is not the work."""
    for request in requests:
        for sequence in request.sequences:
            if sequence.error is not None:
                raise EngineError(sequence.error)
