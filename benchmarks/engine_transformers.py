"""Hugging Face transformers with torch."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from engines import Setup
from stepping import SteppingEngine
from work import TOP_P, Logits, Outcome, Work

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class _Clock(transformers.generation.streamers.BaseStreamer):
    """Notes when `generate` has made each step's tokens; the prompt comes first."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.values: list[Any] = []

    def put(self, value: Any) -> None:
        self.times.append(time.perf_counter())
        self.values.append(value)

    def end(self) -> None:
        pass


class Transformers(SteppingEngine):
    """The model's forward with its dynamic cache for bare steps, and `generate` for sampled text."""

    def __init__(self, setup: Setup) -> None:
        warnings.simplefilter("ignore")  # one way to pass the cache for all of the versions that the extra allows
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        torch.set_num_threads(setup.threads)
        torch.set_grad_enabled(False)
        dtype = _DTYPES[setup.precision]
        self._model = transformers.GPT2LMHeadModel.from_pretrained(setup.directory, dtype=dtype).eval()
        self.description = (
            f"{transformers.__version__}, torch {torch.__version__}, {setup.precision} weights and KV, attention "
            f"{self._model.config._attn_implementation}"
        )

    def prefill(self, prompts: Sequence[list[int]]) -> None:
        self._cache = transformers.DynamicCache()
        self._forward(torch.tensor(prompts))

    def step(self, token_ids: list[int]) -> None:
        self._forward(torch.tensor(token_ids)[:, None])

    def _forward(self, ids: Any) -> None:
        self._output = self._model(ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1).logits

    def logits(self) -> Logits:
        logits: Logits = self._output[:, -1].float().numpy()
        return logits

    def sample(self, work: Work) -> Outcome:
        """Through `generate`, from the first step's tokens to the last step's."""
        torch.manual_seed(work.seed)
        ids = torch.tensor(work.prompts)
        clock = _Clock()
        count = len(work.then) + 1
        how = {"do_sample": False} if work.kind == "greedy" else {"do_sample": True, "top_p": TOP_P, "top_k": 0}
        self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            min_new_tokens=count,
            pad_token_id=0,
            streamer=clock,
            **how,
        )
        first = clock.values[1].reshape(-1).tolist()
        return Outcome(clock.times[-1] - clock.times[1], first_token_ids=first if work.kind == "greedy" else None)
