"""Compiled passes over weights: the smallest set of most probable candidates that reaches a probability.

Rows are what `nvg.sampling.select` says; weights are those of its softmax, relative to the most probable candidate's.
"""

# mypy: disallow-untyped-decorators=False, disallow-untyped-calls=False, warn-return-any=False

from __future__ import annotations

import numpy as np
from numba.core import types

from nvg.runtime.compile_cache import CompileStep, function_step, njit
from nvg.sampling import vector
from nvg.sampling.contract import Float64, Logits, TokenIds
from nvg.sampling.select import (
    FEW,
    above,
    append_between,
    count_reaching,
    keep_from,
    key_of,
    largest,
    padded,
    taken,
    value_of,
)
from nvg.sampling.vector import LANES, NUM_BOUNDS

_INF = np.float32(np.inf)
_PASSES = 2
_ALMOST_ONE = 1 - 1e-9


@njit
def in_order(sums: Float64) -> float:
    """The sum of `LANES` sums, from the first to the last, float64."""
    total = 0.0
    for lane in range(LANES):
        total += sums[lane]
    return total


@njit
def mass_reaching(row: Logits, weights: Logits, bound: np.float32, sums: Float64) -> float:
    """The weight of the values that are at least `bound`; sums: float64 (LANES,), overwritten."""
    sums[:] = 0
    whole = row.size // LANES
    vector.add_reaching(row, weights, whole, bound, sums)
    for i in range(whole * LANES, row.size):
        if row[i] >= bound:
            sums[i - whole * LANES] += weights[i]
    return in_order(sums)


@njit
def weigh(row: Logits, top: np.float32, sums: Float64) -> tuple[Logits, float]:
    """(e^(row - top), float32, filled up with 0 to a multiple of `CHUNK`; their total). sums: float64 (LANES,),
    overwritten."""
    weights = np.empty(padded(row.size), np.float32)
    return weights, weigh_into(row, top, sums, weights)


@njit
def weigh_into(row: Logits, top: np.float32, sums: Float64, weights: Logits) -> float:
    """`weigh` into memory that is there, float32 (padded(n),); the total."""
    for i in range(row.size):
        weights[i] = row[i]
    for i in range(row.size, weights.size):
        weights[i] = -_INF
    sums[:] = 0
    vector.weigh(weights, weights.size // LANES, top, sums)
    return in_order(sums)


@njit(cached=True, nogil=False)
def nucleus(row: Logits, p: float) -> tuple[np.float32, int]:
    """The smallest logit of the nucleus, and how many of the most probable tokens it takes to reach probability p, from
    0 to 1. Weights are float32, sums float64.
    """
    return nucleus_within(row, p, np.empty(padded(row.size), np.float32), np.empty(row.size, np.int32))


@njit
def nucleus_within(row: Logits, p: float, weights: Logits, indices: TokenIds) -> tuple[np.float32, int]:
    """`nucleus` with memory that is there: float32 (padded(n),), int32 (n,), overwritten."""
    top = largest(row)
    sums = np.empty(LANES)
    total = weigh_into(row, top, sums, weights)
    low = -_INF
    if row.size > FEW and p < _ALMOST_ONE:
        # What is less probable than (1 - p) / n weighs less than 1 - p in all, and is not in the nucleus.
        low = value_of(key_of(np.float32(top + np.log((1 - p) * total / row.size) - 0.01)) - 1)
    return smallest_set(row, weights, p * total, low, sums, indices)


@njit
def _bounds(
    row: Logits, weights: Logits, target: float, low: np.float32, high: np.float32
) -> tuple[np.float32, np.float32]:
    """(low, high): closer bounds of the value at which the weights of what reaches it reach `target`."""
    bounds, masses = np.empty(NUM_BOUNDS, np.float32), np.empty(NUM_BOUNDS * LANES, np.float32)
    whole = row.size // LANES
    doubt = (whole + 2) * 2.0**-23  # twice what the rounding of float32 sums can make
    for _ in range(_PASSES):
        width = (np.float64(high) - np.float64(low)) / (NUM_BOUNDS + 1)
        previous, last = low, high
        for i in range(NUM_BOUNDS):
            bounds[i] = np.float32(np.float64(low) + width * (i + 1))
            if not previous < bounds[i] < last:
                return low, high
            previous = bounds[i]
        vector.masses_reaching(row, weights, whole, bounds, masses)
        for i in range(NUM_BOUNDS):
            mass = in_order(masses[i * LANES : (i + 1) * LANES])
            for j in range(whole * LANES, row.size):
                if row[j] >= bounds[i]:
                    mass += weights[j]
            if mass * (1 - doubt) >= target:
                low = bounds[i]
            elif mass * (1 + doubt) < target:
                high = bounds[i]
                break
    return low, high


@njit
def smallest_set(
    row: Logits, weights: Logits, target: float, low: np.float32, sums: Float64, indices: TokenIds
) -> tuple[np.float32, int]:
    """(smallest value, size) of the smallest set of largest values, of equal ones the first, whose weights reach
    `target`. The smallest value is known to be at least `low`. weights: filled up as `weigh` does it; sums: float64
    (LANES,), and indices: int32 (n,), overwritten."""
    # The smallest value is at least `low` and below `high`; `mass` is what weighs at least `high`.
    high, mass = above(largest(row)), 0.0
    values, outside = row, 0.0
    if row.size > FEW:
        low, high = _bounds(row, weights, target, low, high)
        mass = mass_reaching(row, weights, high, sums)
        between = indices[: append_between(row, 0, row.size, low, high, indices, 0)]
        values, weights = taken(row, between, -_INF), taken(weights, between, np.float32(0))
        outside = mass
    reached, missed = key_of(low), key_of(high)
    while missed - reached > 1:
        middle = (reached + missed) >> 1
        middle_mass = outside + mass_reaching(values, weights, value_of(middle), sums)
        if middle_mass >= target:
            reached = middle
        else:
            missed, mass = middle, middle_mass
    low, high = value_of(reached), value_of(missed)

    size = count_reaching(row, high)
    threshold = _INF
    for i in range(values.size):
        if low <= values[i] < threshold:
            threshold = values[i]
    for i in range(values.size):
        if values[i] == threshold and mass < target:  # of equals only as many as it takes
            mass += np.float64(weights[i])
            size += 1
    return threshold, size


@njit(cached=True, nogil=False)
def keep_nucleus(row: Logits, p: float) -> None:
    """Remove all but the nucleus, in place; p: from 0 to 1."""
    threshold, size = nucleus(row, p)
    keep_from(row, threshold, size)


def compile_steps() -> list[CompileStep]:
    """All of this file that Python calls."""
    row, float64 = types.float32[::1], types.float64
    return [function_step(nucleus, (row, float64)), function_step(keep_nucleus, (row, float64))]
