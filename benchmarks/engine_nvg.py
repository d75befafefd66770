"""nvg itself: its model runner for bare steps, and its LLM for sampled text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version

import numpy as np
from engines import Setup
from stepping import SteppingEngine
from work import TOP_P, Logits, Outcome, Work

from nvg.llm import LLM
from nvg.model.checkpoint import Checkpoint
from nvg.model.contract import Batch
from nvg.model.runner import GPT2Runner
from nvg.params import EngineConfig, SamplingParams

STEP_TOKENS = 512
"""Most tokens that are computed at once in prefill."""


class Nvg(SteppingEngine):
    """Steps go to the model runner, without the scheduler and the samplers, as the peers' own functions do. Weights are
    mapped from the cache, as they are from the second run on."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._options = EngineConfig(
            model=str(setup.directory),
            dtype=setup.precision,
            threads=setup.threads,
            max_num_seqs=setup.batch,
            max_num_batched_tokens=STEP_TOKENS,
            max_model_len=setup.context,
        )
        self._runner = self._load()
        if not self._runner.is_from_cache:
            self._runner.close()  # which writes the cache
            self._runner = self._load()
        block_size = self._options.block_size
        num_blocks = -(-setup.context // block_size)
        self._runner.allocate_kv(setup.batch * num_blocks, block_size)
        self._tables = np.arange(setup.batch * num_blocks, dtype=np.int32).reshape(setup.batch, num_blocks)
        self._length = 0
        self._logits: Logits
        self._llm: LLM | None = None
        self.description = f"{version('nvg')}, {self._runner.dtype} weights, {self._runner.kv_dtype} KV"

    def _load(self) -> GPT2Runner:
        with Checkpoint(self._setup.directory) as checkpoint:
            return GPT2Runner.from_checkpoint(checkpoint.config, checkpoint, self._options)

    def prefill(self, prompts: Sequence[list[int]]) -> None:
        self.reset()
        self.feed(prompts)

    def reset(self) -> None:
        """Forget everything."""
        self._length = 0

    def step(self, token_ids: list[int]) -> None:
        self._execute(0, np.array(token_ids, np.int32)[:, None], True)
        self._length += 1

    def feed(self, prompts: Sequence[list[int]]) -> None:
        """Append tokens, equally many to each sequence, in as many steps as it takes."""
        ids = np.array(prompts, np.int32)  # (B, T)
        batch, num_tokens = ids.shape
        if batch > 1 and ids.size > STEP_TOKENS:
            rows = [self._feed_one(sequence, ids[sequence : sequence + 1]).copy() for sequence in range(batch)]
            self._logits = np.concatenate(rows)
        elif batch > 1:
            self._execute(0, ids, True)
        else:
            self._feed_one(0, ids)
        self._length += num_tokens

    def _feed_one(self, sequence: int, ids: np.ndarray) -> Logits:
        start = self._length
        for first in range(0, ids.shape[1], STEP_TOKENS):
            end = min(first + STEP_TOKENS, ids.shape[1])
            self._execute(sequence, ids[:, first:end], end == ids.shape[1])
            self._length += end - first
        self._length = start
        return self._logits

    def _execute(self, sequence: int, ids: np.ndarray, wants_logits: bool) -> None:
        batch, num_tokens = ids.shape
        end = self._length + num_tokens
        offsets = np.arange(batch + 1, dtype=np.int32) * np.int32(num_tokens)
        self._logits = self._runner.execute(
            Batch(
                token_ids=np.ascontiguousarray(ids).reshape(-1),
                positions=np.tile(np.arange(self._length, end, dtype=np.int32), batch),
                query_offsets=offsets,
                block_tables=np.ascontiguousarray(self._tables[sequence : sequence + batch]),
                context_lens=np.full(batch, end, np.int32),
                logits_rows=offsets[1:] - np.int32(1) if wants_logits else offsets[:0],
            )
        )

    def logits(self) -> Logits:
        return self._logits.copy()

    def sample(self, work: Work) -> Outcome:
        """Through LLM.generate, timed by its own count of decode seconds, as OpenVINO GenAI's are."""
        llm = self._language_model()
        greedy = {"temperature": 0.0} if work.kind == "greedy" else {"temperature": 1.0, "top_p": TOP_P}
        params = SamplingParams(max_tokens=len(work.then) + 1, ignore_eos=True, **greedy)
        seconds, num_tokens = llm.stats.decode_s, llm.stats.decode_tokens
        outputs = llm.generate(work.prompts, [replace(params, seed=work.seed + i) for i in range(len(work.prompts))])
        seconds, num_tokens = llm.stats.decode_s - seconds, llm.stats.decode_tokens - num_tokens
        first = [output.outputs[0].token_ids[0] for output in outputs]
        return Outcome(
            seconds / num_tokens * len(work.prompts) * len(work.then),
            first_token_ids=first if work.kind == "greedy" else None,
        )

    def _language_model(self) -> LLM:
        """Loaded when it is first needed."""
        if self._llm is None:
            options = self._options
            self._llm = LLM(
                options.model,
                dtype=options.dtype,
                threads=options.threads,
                max_num_seqs=options.max_num_seqs,
                max_model_len=options.max_model_len,
                report=lambda line: None,
            )
        return self._llm
