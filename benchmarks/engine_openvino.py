"""OpenVINO: its runtime on a stateful model, step by step, and OpenVINO GenAI's pipeline on the same model.

float32 and bfloat16 are inference precisions of the same weights; int8 and int4 weights run as OpenVINO chooses to.
Everything else is as it comes: u8 keys and values, activations quantised on the way in groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from converted import converted
from engines import Setup
from openvino import opset13 as op
from stepping import SteppingEngine
from work import TOP_P, Logits, Outcome, Work

_PRECISION_HINTS = {"float32": "f32", "bfloat16": "bf16"}
_SHOWN = ("INFERENCE_PRECISION_HINT", "KV_CACHE_PRECISION", "DYNAMIC_QUANTIZATION_GROUP_SIZE")


def model_directory(setup: Setup) -> Path:
    """Of the converted model. Raises ImportError without the converter's packages."""
    from to_openvino import write_openvino

    weights = setup.precision if setup.precision in ("int8", "int4") else "float32"
    path = setup.scratch / f"openvino-{version('openvino')}-{weights}"
    return converted(path, write_openvino, setup.directory, weights)


def properties(setup: Setup) -> dict[str, Any]:
    properties: dict[str, Any] = {"INFERENCE_NUM_THREADS": setup.threads}
    if setup.precision in _PRECISION_HINTS:
        properties["INFERENCE_PRECISION_HINT"] = _PRECISION_HINTS[setup.precision]
    return properties


class OpenVino(SteppingEngine):
    """The runtime's infer requests, with logits of the last token only, as GenAI has it, too. It has no sampler."""

    def __init__(self, setup: Setup) -> None:
        from to_openvino import MODEL_FILE

        core = ov.Core()
        model = core.read_model(model_directory(setup) / MODEL_FILE)
        _keep_last_token(model)
        compiled = core.compile_model(model, "CPU", properties(setup))
        self._request = compiled.create_infer_request()
        self._length = 0
        shown = ", ".join(f"{name.lower()} {_text(compiled.get_property(name))}" for name in _SHOWN)
        self.description = f"openvino {version('openvino')}, {shown}"

    def prefill(self, prompts: Sequence[list[int]]) -> None:
        self._request.reset_state()
        self._length = 0
        self._infer(np.array(prompts, np.int64))

    def step(self, token_ids: list[int]) -> None:
        self._infer(np.array(token_ids, np.int64)[:, None])

    def _infer(self, ids: Any) -> None:
        batch, num_tokens = ids.shape
        end = self._length + num_tokens
        inputs = {
            "input_ids": ids,
            "attention_mask": np.ones((batch, end), np.int64),
            "position_ids": np.tile(np.arange(self._length, end), (batch, 1)),
            "beam_idx": np.arange(batch, dtype=np.int32),
        }
        self._request.infer(inputs, share_inputs=True, share_outputs=True)
        self._length = end

    def logits(self) -> Logits:
        logits: Logits = self._request.get_output_tensor(0).data[:, -1].astype(np.float32)
        return logits


def _text(value: Any) -> str:
    return str(value.to_string() if isinstance(value, ov.Type) else value).rpartition(".")[2]


def _keep_last_token(model: ov.Model) -> None:
    """Cut the hidden states before the head to the last token's."""
    head = model.outputs[0].node.input_value(0).node
    hidden = head.input_value(0)
    last = op.gather(hidden, op.constant(np.array([-1], np.int64)), op.constant(1))
    head.input(0).replace_source_output(last.output(0))
    model.validate_nodes_and_infer_types()


class OpenVinoGenAI:
    """LLMPipeline.generate with its defaults (paged attention), timed by its own metrics."""

    def __init__(self, setup: Setup) -> None:
        import openvino_genai

        self._library = openvino_genai
        directory = model_directory(setup)
        self._pipeline = openvino_genai.LLMPipeline(directory, "CPU", properties(setup))
        hint = _PRECISION_HINTS.get(setup.precision, "as it comes")
        self.description = (
            f"openvino-genai {version('openvino-genai')}, LLMPipeline, inference precision {hint}, KV and "
            "dynamic quantisation as they come"
        )

    def run(self, work: Work) -> Outcome:
        """prefill: times to the first token. Otherwise: from the first token's time to the last one's."""
        if work.kind == "prefill":
            if work.warm:
                self._generate([work.warm], 1, "greedy", 0)
            results = [self._generate([prompt], 1, "greedy", 0) for prompt in work.prompts]
            seconds = sum(result.perf_metrics.get_ttft().mean for result in results) / 1e3
            return Outcome(seconds, first_token_ids=[results[-1].tokens[0][0]])
        result = self._generate(work.prompts, len(work.then) + 1, work.kind, work.seed)
        times = result.perf_metrics.raw_metrics.m_new_token_times
        made = [len(tokens) for tokens in result.tokens]
        if set(made) != {len(work.then) + 1} or len(times) != len(work.then) + 1:
            raise RuntimeError(f"asked for {len(work.then) + 1} tokens a sequence, got {made} in {len(times)} steps")
        seconds = (times[-1] - times[0]) / 1e3
        return Outcome(seconds, first_token_ids=None if work.kind == "topp" else [row[0] for row in result.tokens])

    def _generate(self, prompts: Sequence[list[int]], max_new_tokens: int, kind: str, seed: int) -> Any:
        ids = np.array(prompts, np.int64)
        config = self._library.GenerationConfig()
        config.max_new_tokens = max_new_tokens
        config.ignore_eos = True
        config.do_sample = kind == "topp"
        if config.do_sample:
            config.top_p, config.temperature, config.rng_seed = TOP_P, 1.0, seed
        inputs = self._library.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
        return self._pipeline.generate(inputs, config)
