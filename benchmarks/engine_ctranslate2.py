"""CTranslate2: a Generator on the model that its own converter writes."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import ctranslate2
import numpy as np
from converted import converted
from engines import Setup
from work import TOP_P, Outcome, Work


def write_ctranslate2(directory: Path, quantization: str, path: Path) -> None:
    """Convert `directory` to `path`. Raises ImportError without transformers and torch."""
    import transformers
    from ctranslate2.converters import TransformersConverter

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    TransformersConverter(str(directory)).convert(str(path), quantization=quantization)


class CTranslate2:
    """Timed by its callback, which is called for each token that is made."""

    def __init__(self, setup: Setup) -> None:
        path = setup.scratch / f"ctranslate2-{version('ctranslate2')}-{setup.precision}"
        converted(path, write_ctranslate2, setup.directory, setup.precision)
        self._generator = ctranslate2.Generator(
            str(path), device="cpu", compute_type=setup.precision, inter_threads=1, intra_threads=setup.threads
        )
        self._tokens: list[str] = json.loads((path / "vocabulary.json").read_text("utf-8"))
        self.description = f"{version('ctranslate2')}, compute type {self._generator.compute_type}"

    def run(self, work: Work) -> Outcome:
        """prefill: times to the first token. Otherwise: from the first step's tokens to the last step's."""
        if work.kind == "prefill":
            if work.warm:
                self._generate([work.warm], 1, work)
            seconds = sum(self._generate([prompt], 1, work)[0][0] for prompt in work.prompts)
            if not work.is_check:
                return Outcome(seconds)
            logits = self._generator.forward_batch([work.prompts[-1]])
            return Outcome(seconds, np.array(logits.to(ctranslate2.DataType.float32))[:, -1])
        times, first = self._generate(work.prompts, len(work.then) + 1, work)
        return Outcome(times[-1] - times[0], first_token_ids=first if work.kind != "topp" else None)

    def _generate(self, prompts: Sequence[list[int]], max_length: int, work: Work) -> tuple[list[float], list[int]]:
        """(seconds from the call to the end of each step, the first tokens)."""
        last_at = [0.0] * max_length
        first = [0] * len(prompts)
        start = time.perf_counter()

        def note(result: ctranslate2.GenerationStepResult) -> bool:
            last_at[result.step] = time.perf_counter() - start
            if result.step == 0:
                first[result.batch_id] = result.token_id
            return False

        self._generator.generate_batch(
            [[self._tokens[token_id] for token_id in prompt] for prompt in prompts],
            max_length=max_length,
            min_length=max_length,
            include_prompt_in_result=False,
            end_token=[],
            callback=note,
            sampling_topk=0 if work.kind == "topp" else 1,
            sampling_topp=TOP_P if work.kind == "topp" else 1,
        )
        if not all(last_at):
            raise RuntimeError(f"asked for {max_length} tokens a sequence, {last_at.count(0.0)} of them were not made")
        return last_at, first

    def continue_batch(self, prompts: Sequence[list[int]], lengths: Sequence[int], temperature: float) -> list[int]:
        """Continue each prompt by its length, all in one batch; how many tokens each got."""
        made = [0] * len(prompts)

        def note(result: ctranslate2.GenerationStepResult) -> bool:
            made[result.batch_id] += 1  # steps are counted from the end of the shortest prompt
            return made[result.batch_id] >= lengths[result.batch_id]

        self._generator.generate_batch(
            [[self._tokens[token_id] for token_id in prompt] for prompt in prompts],
            max_length=max(lengths),
            min_length=max(lengths),
            include_prompt_in_result=False,
            end_token=[],
            callback=note,
            sampling_topk=0,
            sampling_temperature=temperature,
        )
        return made
