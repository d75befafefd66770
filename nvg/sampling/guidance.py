"""Classifier-free guidance: the logits after a prompt, steered away from those after a negative prompt."""

# mypy: disallow-untyped-decorators=False, disallow-untyped-calls=False

from __future__ import annotations

import numpy as np
from numba.core import types

from nvg.runtime.compile_cache import CompileStep, function_step, njit
from nvg.sampling.contract import Logits
from nvg.sampling.logprobs import log_total


@njit(cached=True, nogil=False)
def guide(row: Logits, negative: Logits, scale: float) -> None:
    """row = n + scale * (p - n), in place, where p and n are the log-softmax of `row` and `negative`, float32 (n,).

    Sanchez et al. 2023, arXiv:2306.17806, equation 7; transformers' UnbatchedClassifierFreeGuidanceLogitsProcessor.
    Computed in float64. A candidate that is -inf in either row is -inf, and a NaN stays one.
    """
    total, negative_total = log_total(row), log_total(negative)
    for i in range(row.size):
        p, n = row[i] - total, negative[i] - negative_total
        removed = p == -np.inf or n == -np.inf
        row[i] = p + n if removed else n + scale * (p - n)


def compile_steps() -> list[CompileStep]:
    """All of this file that Python calls."""
    row = types.float32[::1]
    return [function_step(guide, (row, row, types.float64))]
