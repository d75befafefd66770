"""Compiled passes of the samplers that look at a row's whole distribution: its entropy, its deviation, its largest
probability. Rows are as in `nvg.sampling.select`; -inf stays -inf, and probabilities are those of what is left.
"""

# mypy: disallow-untyped-decorators=False, disallow-untyped-calls=False, warn-return-any=False

from __future__ import annotations

import math

import numpy as np
from numba.core import types

from nvg.runtime.compile_cache import CompileStep, function_step, njit
from nvg.sampling import mass, select, vector
from nvg.sampling.contract import Float64, Logits
from nvg.sampling.vector import LANES

_LOWEST, _HIGHEST = np.finfo(np.float32).min, np.finfo(np.float32).max
_INF = np.float32(np.inf)


@njit
def _products(row: Logits, weights: Logits, origin: np.float32, sums: Float64) -> float:
    """The sum of weight * (value - origin) over the candidates; sums: float64 (LANES,), overwritten."""
    sums[:] = 0
    whole = row.size // LANES
    vector.add_products(row, weights, whole, origin, sums)
    for i in range(whole * LANES, row.size):
        if row[i] >= _LOWEST:
            sums[i - whole * LANES] += np.float64(weights[i]) * (np.float64(row[i]) - np.float64(origin))
    return mass.in_order(sums)


@njit
def _entropy(row: Logits, weights: Logits, top: np.float32, total: float, sums: Float64) -> float:
    """In nats; weights and total: as `mass.weigh` gives them."""
    return max(0.0, math.log(total) - _products(row, weights, top, sums) / total)


@njit
def _keep_reaching(row: Logits, bound: float) -> None:
    """Remove what is below `bound`, a logit, but never the largest."""
    limit = min(np.float32(bound), select.largest(row))
    for i in range(row.size):
        row[i] = row[i] if row[i] >= limit else -_INF


@njit(cached=True, nogil=False)
def entropy(row: Logits) -> tuple[float, int]:
    """(the entropy in nats, how many candidates are left)."""
    top, sums = select.largest(row), np.empty(LANES)
    weights, total = mass.weigh(row, top, sums)
    return _entropy(row, weights, top, total, sums), select.count_candidates(row)


@njit(cached=True, nogil=False)
def keep_probable(row: Logits, log_factor: float, power: float) -> bool:
    """Remove, in place, what is less probable than e^log_factor * (the largest probability)^power; the most probable
    and its equals stay. Returns whether these reach the bound themselves."""
    top, sums = select.largest(row), np.empty(LANES)
    _, total = mass.weigh(row, top, sums)
    distance = log_factor + (1 - power) * math.log(total)  # ln p = logit - top - ln total
    _keep_reaching(row, np.float64(top) + distance)
    return distance <= 0


@njit(cached=True, nogil=False)
def keep_eta(row: Logits, epsilon: float) -> None:
    """Remove, in place, what is less probable than min(epsilon, sqrt(epsilon) e^-entropy), but never the most
    probable."""
    top, sums = select.largest(row), np.empty(LANES)
    weights, total = mass.weigh(row, top, sums)
    log_epsilon = math.log(epsilon)
    log_eta = min(log_epsilon, log_epsilon / 2 - _entropy(row, weights, top, total, sums))
    _keep_reaching(row, np.float64(top) + log_eta + math.log(total))


@njit(cached=True, nogil=False)
def keep_typical(row: Logits, p: float) -> None:
    """Remove, in place, all but the smallest set of tokens of probability p, from 0 to 1, whose surprise is nearest the
    entropy; of equally near ones the first stay."""
    top, sums = select.largest(row), np.empty(LANES)
    weights, total = mass.weigh(row, top, sums)
    # Surprise - entropy, where surprise is ln total - (logit - top).
    origin = np.float64(top) + math.log(total) - _entropy(row, weights, top, total, sums)
    nearness = np.empty(row.size, np.float32)
    least = np.float32(0)
    for i in range(row.size):
        nearness[i] = -abs(origin - np.float64(row[i]))
        least = min(least, nearness[i] if row[i] >= _LOWEST else least)
    threshold, size = mass.smallest_set(
        nearness, weights, p * total, max(least, _LOWEST), sums, np.empty(row.size, np.int32)
    )
    select.keep_from(nearness, threshold, size)
    for i in range(row.size):
        row[i] = row[i] if nearness[i] >= _LOWEST else -_INF


@njit(cached=True, nogil=False)
def keep_deviations(row: Logits, n: float) -> None:
    """Remove, in place, what is more than n standard deviations of the logits below the largest."""
    top, sums = select.largest(row), np.empty(LANES)
    shifted = np.empty(row.size, np.float32)
    count = 0
    for i in range(row.size):
        is_left = row[i] >= _LOWEST
        count += is_left
        shifted[i] = max(row[i] - top, _LOWEST) if is_left else np.float32(0)
    mean = mass.mass_reaching(shifted, shifted, -_INF, sums) / count
    for i in range(row.size):
        shifted[i] = shifted[i] - mean if row[i] >= _LOWEST else np.float32(0)
    deviation = math.sqrt(_products(shifted, shifted, np.float32(0), sums) / count)
    _keep_reaching(row, np.float64(top) - n * deviation)


@njit(cached=True, nogil=False)
def remove_all_but_last_reaching(row: Logits, probability: float) -> None:
    """Of the tokens at least so probable, remove all but the least probable one, in place; of equal ones the last
    stays."""
    top, sums = select.largest(row), np.empty(LANES)
    _, total = mass.weigh(row, top, sums)
    bound = np.float32(np.float64(top) + math.log(probability) + math.log(total))
    last = -1
    for i in range(row.size):
        if row[i] >= bound and (last < 0 or row[i] <= row[last]):
            last = i
    for i in range(row.size):
        if row[i] >= bound and i != last:
            row[i] = -_INF


def compile_steps() -> list[CompileStep]:
    """All of this file that Python calls."""
    row, float64 = types.float32[::1], types.float64
    return [
        function_step(entropy, (row,)),
        function_step(keep_probable, (row, float64, float64)),
        function_step(keep_eta, (row, float64)),
        function_step(keep_typical, (row, float64)),
        function_step(keep_deviations, (row, float64)),
        function_step(remove_all_but_last_reaching, (row, float64)),
    ]
