"""Log-probabilities of tokens, before any sampler: log-softmax of a row of logits, and the mix of two for guidance."""

# mypy: disallow-untyped-decorators=False, disallow-untyped-calls=False, warn-return-any=False

from __future__ import annotations

import math

import numpy as np
from numba.core import types

from nvg.params import TokenLogprobs
from nvg.runtime.compile_cache import CompileStep, function_step, njit
from nvg.sampling import mass, select
from nvg.sampling.contract import Logits
from nvg.sampling.vector import LANES


@njit(cached=True, nogil=False)
def log_total(row: Logits) -> float:
    """ln(sum of e^row) in nats, for a row without NaN or +inf; weights are float32, their sum float64."""
    top = select.largest(row)
    _, total = mass.weigh(row, top, np.empty(LANES))
    return np.float64(top) + math.log(total)


@njit(cached=True, nogil=False)
def guide(row: Logits, negative: Logits, scale: float) -> None:
    """row = n + scale * (p - n), in place, where p and n are the log-softmax of `row` and `negative`, float32 (n,).

    Classifier-free guidance: Sanchez et al. 2023, arXiv:2306.17806, as in transformers'
    UnbatchedClassifierFreeGuidanceLogitsProcessor. Computed in float64. What is -inf in either row is -inf, and a NaN
    stays one.
    """
    total, negative_total = log_total(row), log_total(negative)
    for i in range(row.size):
        p, n = row[i] - total, negative[i] - negative_total
        removed = p == -np.inf or n == -np.inf
        row[i] = p + n if removed else n + scale * (p - n)


def token_logprobs(row: Logits, token_id: int, num_top: int) -> TokenLogprobs:
    """Those of one token and of the `num_top` most probable ones, the lowest ids first among equals.

    row: float32 (n,), the logits of ids 0 .. n - 1, without NaN or +inf; an id beyond them has probability 0.
    """
    total = log_total(row)
    logprob = float(row[token_id]) - total if token_id < row.size else -math.inf
    num_top = min(num_top, row.size)
    top: list[int] = []
    if num_top:
        candidates = np.flatnonzero(row >= np.float32(select.kth_largest(row, num_top)))
        top = candidates[np.argsort(-row[candidates], kind="stable")][:num_top].tolist()
    return TokenLogprobs(token_id, logprob, {i: float(row[i]) - total for i in top})


def compile_steps() -> list[CompileStep]:
    """All of this file that Python calls."""
    row = types.float32[::1]
    return [function_step(log_total, (row,)), function_step(guide, (row, row, types.float64))]
