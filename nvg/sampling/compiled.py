"""A chain whose stages are all compiled passes, as one compiled function: the same token as `chain` draws, without the
interpreter."""

# mypy: disallow-untyped-decorators=False, disallow-untyped-calls=False, warn-return-any=False

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nvg.runtime.atomics import nanoseconds
from nvg.runtime.compile_cache import njit
from nvg.sampling import mass, select
from nvg.sampling.chain import Stage
from nvg.sampling.contract import Float64, Logits, TokenIds
from nvg.sampling.greedy import Greedy
from nvg.sampling.minp import MinP
from nvg.sampling.random import DRAW_STAGE, signed, uniform_of_words
from nvg.sampling.temperature import Temperature
from nvg.sampling.topk import TopK
from nvg.sampling.topp import TopP

Int64 = npt.NDArray[np.int64]

_FIRST, _DIVIDE, _LARGEST, _NUCLEUS, _RATIO, _NOTHING = range(6)
_DRAW_STAGE = signed(DRAW_STAGE)
_LOWEST = np.finfo(np.float32).min


class Pass(NamedTuple):
    """A stage's work on a row."""

    kind: int
    value: float
    title: str
    """The stage's (see `chain.Stage`)."""


_PASSES: dict[type, Callable[[Any], tuple[int, float]]] = {
    Greedy: lambda spec: (_FIRST, 0.0),
    Temperature: lambda spec: (_FIRST, 0.0) if spec.t == 0 else _unless(spec.t == 1, _DIVIDE, spec.t),
    TopK: lambda spec: _unless(spec.k == 0, _LARGEST, spec.k),
    TopP: lambda spec: _unless(spec.p >= 1, _NUCLEUS, spec.p),
    MinP: lambda spec: _unless(spec.p == 0, _RATIO, math.log(spec.p) if spec.p else 0),
}


def _unless(is_off: bool, kind: int, value: float) -> tuple[int, float]:
    return (_NOTHING, 0.0) if is_off else (kind, float(value))


def passes_of(stages: Sequence[Stage]) -> tuple[Pass, ...] | None:
    """What the stages do, one pass each; None if one of them is not among those that are known here."""
    passes = []
    for stage in stages:
        of_spec = _PASSES.get(type(stage.spec))
        if of_spec is None:
            return None
        passes.append(Pass(*of_spec(stage.spec), stage.title))
    return tuple(passes)


@njit
def draw_row(
    row: Logits,
    token_ids: TokenIds,
    kinds: Int64,
    values: Float64,
    spent: Int64,
    seed: int,
    choice: int,
    position: int,
    room: Logits,
    room_ids: TokenIds,
) -> int:
    """The token that a chain of these passes draws from a row of logits (n,), which is overwritten; -1, and the row is
    what it was, if it has NaN or +inf, or nothing to draw.

    token_ids: 0, 1, ... n - 1. spent: nanoseconds of each pass are added. seed, choice, position: as `random.uniform`
    has them, as int64. room, room_ids: float32 (2, padded(n)) and int32 (2, n), overwritten.
    """
    num_left = select.count_candidates(row)
    if num_left <= 0:
        return -1
    candidates, side = row, 0
    for index in range(-1, kinds.size):  # first what is removed already goes
        since = nanoseconds()
        kind, value = (kinds[index], values[index]) if index >= 0 else (_NOTHING, 0.0)
        threshold = _LOWEST  # of what stays, all that is not -inf
        if kind == _FIRST:
            best = select.argmax(candidates)
            spent[index] += nanoseconds() - since
            return token_ids[best]
        if kind == _DIVIDE:
            select.divide(candidates, value)
            num_left = select.count_candidates(candidates)
        elif kind == _LARGEST and value < candidates.size:
            num_left = np.int64(value)
            threshold = select.kth_largest(candidates, num_left)
        elif kind == _NUCLEUS:
            weights = room[side, : select.padded(candidates.size)]
            threshold, num_left = mass.nucleus_within(candidates, value, weights, room_ids[side])
        elif kind == _RATIO:
            threshold = select.ratio_bound(candidates, value)
            num_left = select.count_reaching(candidates, threshold)
        if num_left < candidates.size:
            left, left_ids = room[side, : candidates.size], room_ids[side, : candidates.size]
            select.compact_from(candidates, token_ids, threshold, num_left, left, left_ids)
            candidates, token_ids, side = left[:num_left], left_ids[:num_left], 1 - side
        if index >= 0:
            spent[index] += nanoseconds() - since
    if num_left == 1:
        return token_ids[0]
    return token_ids[select.pick(candidates, uniform_of_words(seed, choice, position, _DRAW_STAGE, 0))[0]]
