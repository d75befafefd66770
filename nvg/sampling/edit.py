"""Compiled edits of the few candidates that a sampler names by token id, or that the text so far names.

Rows are as in `nvg.sampling.select`; `token_ids` are theirs, ascending. What is removed stays removed, and what is left
stays finite unless it is meant to be removed.
"""

# mypy: disallow-untyped-decorators=False, disallow-untyped-calls=False, warn-return-any=False

from __future__ import annotations

import numpy as np
from numba.core import types

from nvg.runtime.compile_cache import CompileStep, function_step, njit
from nvg.sampling import select
from nvg.sampling.contract import Logits, TokenIds

_LOWEST, _HIGHEST = np.finfo(np.float32).min, np.finfo(np.float32).max
_INF = np.float32(np.inf)


@njit
def _place(token_ids: TokenIds, token_id: int) -> int:
    """Index of a token id; -1 where it is no candidate."""
    first, end = 0, token_ids.size
    if 0 <= token_id < end and token_ids[token_id] == token_id:  # nothing was compacted before it
        return token_id
    while first < end:
        middle = (first + end) >> 1
        if token_ids[middle] < token_id:
            first = middle + 1
        else:
            end = middle
    return first if first < token_ids.size and token_ids[first] == token_id else -1


@njit
def _finite(logit: float) -> np.float32:
    return np.float32(min(max(logit, np.float64(_LOWEST)), np.float64(_HIGHEST)))


@njit
def _before(prompt: TokenIds, output: TokenIds, index: int) -> int:
    """The token at `index` of prompt and output together."""
    return prompt[index] if index < prompt.size else output[index - prompt.size]


@njit(cached=True, nogil=False)
def add(row: Logits, token_ids: TokenIds, ids: TokenIds, amounts: select.Float64) -> None:
    """Add to the logits of the tokens `ids`, in place, as far as they are candidates; -inf removes one."""
    for i in range(ids.size):
        place = _place(token_ids, ids[i])
        if place >= 0 and row[place] >= _LOWEST:
            removes = amounts[i] == -np.inf
            row[place] = -_INF if removes else _finite(np.float64(row[place]) + amounts[i])


@njit(cached=True, nogil=False)
def keep_only(row: Logits, token_ids: TokenIds, token_id: int) -> bool:
    """Remove, in place, every candidate but one; False, and nothing is changed, where that is no candidate."""
    place = _place(token_ids, token_id)
    if place < 0 or not row[place] >= _LOWEST:
        return False
    logit = row[place]
    for i in range(row.size):
        row[i] = -_INF
    row[place] = logit
    return True


@njit(cached=True, nogil=False)
def penalise(
    row: Logits,
    token_ids: TokenIds,
    prompt: TokenIds,
    output: TokenIds,
    last_n: int,
    repetition: float,
    presence: float,
    frequency: float,
) -> None:
    """Make the tokens among the last `last_n` of prompt and output (-1: all) less probable, in place: a logit above 0
    is divided by `repetition`, any other multiplied; then presence + frequency * count is subtracted."""
    length = prompt.size + output.size
    size = min(last_n, length) if last_n >= 0 else length
    window = np.empty(size, np.int32)
    for i in range(size):
        window[i] = _before(prompt, output, length - size + i)
    window.sort()
    start = 0
    for i in range(size):
        if i + 1 < size and window[i + 1] == window[start]:
            continue
        place = _place(token_ids, window[start])
        if place >= 0 and row[place] >= _LOWEST:
            logit = np.float64(row[place])
            logit = logit / repetition if logit > 0 else logit * repetition
            row[place] = _finite(logit - presence - frequency * (i + 1 - start))
        start = i + 1


@njit(cached=True, nogil=False)
def remove(row: Logits, token_ids: TokenIds, ids: TokenIds) -> None:
    """Remove the tokens `ids`, in place; if these are all that is left, nothing is changed."""
    num_left = select.count_candidates(row)
    places, logits = np.empty(ids.size, np.int32), np.empty(ids.size, np.float32)
    size = 0
    for i in range(ids.size):
        place = _place(token_ids, ids[i])
        if place >= 0 and row[place] >= _LOWEST:
            places[size], logits[size] = place, row[place]
            row[place] = -_INF
            size += 1
    if size == num_left:
        for i in range(size):
            row[places[i]] = logits[i]


@njit(cached=True, nogil=False)
def remove_repeats(row: Logits, token_ids: TokenIds, prompt: TokenIds, output: TokenIds, n: int) -> None:
    """Remove, in place, the tokens that would repeat n tokens in a row of prompt and output; if these are all that is
    left, nothing is changed."""
    length = prompt.size + output.size
    ids = np.empty(length, np.int32)
    size = 0
    for end in range(n - 1, length):
        same = True
        for back in range(1, n):
            if _before(prompt, output, end - back) != _before(prompt, output, length - back):
                same = False
                break
        if same:
            ids[size] = _before(prompt, output, end)
            size += 1
    remove(row, token_ids, ids[:size])


def compile_steps() -> list[CompileStep]:
    """All of this file that Python calls."""
    row, ids, wide = types.float32[::1], types.int32[::1], types.float64[::1]
    seen = types.Array(types.int32, 1, "C", readonly=True)  # what a chain shows of its ids
    int64, float64 = types.int64, types.float64
    return [
        function_step(add, (row, seen, ids, wide)),
        function_step(remove, (row, seen, ids)),
        function_step(keep_only, (row, seen, int64)),
        function_step(penalise, (row, seen, seen, seen, int64, float64, float64, float64)),
        function_step(remove_repeats, (row, seen, seen, seen, int64)),
    ]
