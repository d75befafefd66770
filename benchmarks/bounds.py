"""What nvg's work needs of the machine for each token, and what the machine could do in the same minutes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from report import Spread
from work import Task

from nvg.bench.ceilings import Ceilings
from nvg.bench.serving import Job
from nvg.kernels.kv import kv_bytes_per_entry
from nvg.kernels.roofline import instruction_for
from nvg.model.config import ModelConfig
from nvg.model.costs import (
    decode_kv_bytes,
    decode_operations,
    prefill_operations,
    row_operations,
    streamed_weight_bytes,
)
from nvg.model.runner import default_kv_dtype


@dataclass
class Machine:
    """What the machine could do beside each of nvg's measurements, and what nvg's work needs of it."""

    bounds: Bounds
    read_bytes_s: dict[str, list[float]] = field(default_factory=dict)
    """By task."""
    operations_s: dict[str, list[float]] = field(default_factory=dict)

    def measure(self, ceilings: Ceilings, task: Task) -> None:
        """Once more, right after the task: what neighbours leave of a machine changes within seconds."""
        instruction = instruction_for(self.bounds.precision)
        self.read_bytes_s.setdefault(task.name, []).append(ceilings.read_bytes_s())
        self.operations_s.setdefault(task.name, []).append(ceilings.operations_s(instruction))

    def of_ceiling(self, task: Task, tok_s: list[float]) -> tuple[str, Spread]:
        """What bounds the task, reading or computing, and which fraction of that bound the rates are."""
        num_bytes, operations = self.bounds.of(task)
        limits = {
            "reading": [read / num_bytes if num_bytes else math.inf for read in self.read_bytes_s[task.name]],
            "computing": [rate / operations for rate in self.operations_s[task.name]],
        }
        bound = min(limits, key=lambda name: statistics.median(limits[name]))
        return bound, Spread.of_ratios(tok_s, limits[bound])


@dataclass(frozen=True)
class Bounds:
    """What nvg must read and compute for a token at a precision."""

    config: ModelConfig
    precision: str
    weight_bytes: int

    def of(self, task: Task) -> tuple[float, float]:
        """(bytes, operations) for each token: of prefill nothing is counted as read."""
        config = self.config
        if task.kind == "prefill":
            return 0, prefill_operations(config, task.context) / task.context
        entry = kv_bytes_per_entry(
            default_kv_dtype(self.precision), config.n_layer, config.n_head, config.n_embd // config.n_head
        )
        num_bytes = streamed_weight_bytes(config, self.weight_bytes) / task.batch
        num_bytes += decode_kv_bytes(entry, 1, task.context, task.steps)
        return num_bytes, decode_operations(config, task.context, task.steps)


def least_seconds(
    config: ModelConfig, jobs: Sequence[Job], kv_dtype: str, operations_s: float, read_bytes_s: float
) -> float:
    """Seconds that the jobs take at least where a step is one batch: in each layer its matmuls compute, and then its
    decoding rows read their keys and values. Weights, which many rows share, cost nothing here, nor does all else.
    """
    entry = kv_bytes_per_entry(kv_dtype, config.n_layer, config.n_head, config.n_embd // config.n_head)
    operations, num_bytes = 0.0, 0.0
    for job in jobs:
        num_steps = job.max_tokens - 1  # the first token is prefill's
        operations += prefill_operations(config, len(job.prompt)) + num_steps * row_operations(config)
        num_bytes += num_steps * decode_kv_bytes(entry, 1, len(job.prompt), num_steps)
    return operations / operations_s + num_bytes / read_bytes_s
