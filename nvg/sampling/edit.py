"""Compiled edits of the few candidates that a sampler names by token id, or that the text so far has.

Rows are as in `nvg.sampling.select`; `token_ids` are theirs, ascending. What is removed stays removed, and what is left
stays finite unless it is meant to be removed.
"""

# mypy: disallow-untyped-decorators=False, disallow-untyped-calls=False, warn-return-any=False

from __future__ import annotations

import numpy as np
from numba.core import types

from nvg.runtime.compile_cache import CompileStep, function_step, njit
from nvg.sampling import select
from nvg.sampling.contract import Float64, Logits, State, TokenIds

_LOWEST, _HIGHEST = np.finfo(np.float32).min, np.finfo(np.float32).max
_INF = np.float32(np.inf)


def last_tokens(state: State, size: int) -> TokenIds:
    """The last `size` tokens of prompt and output together, -1 for all: a fresh int32 array."""
    prompt, output = state.prompt_token_ids, state.output_token_ids
    if size >= 0:
        output = output[max(0, output.size - size) :]
        prompt = prompt[max(0, prompt.size - size + output.size) :]
    text: TokenIds = np.concatenate([prompt, output])
    return text


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


@njit(cached=True, nogil=False)
def add(row: Logits, token_ids: TokenIds, ids: TokenIds, amounts: Float64) -> None:
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
    row: Logits, token_ids: TokenIds, came: TokenIds, repetition: float, presence: float, frequency: float
) -> None:
    """Make the tokens `came`, in ascending order, less probable, in place: a logit above 0 is divided by `repetition`,
    any other multiplied; then presence + frequency * count is subtracted."""
    start = 0
    for i in range(came.size):
        if i + 1 < came.size and came[i + 1] == came[start]:
            continue
        place = _place(token_ids, came[start])
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
def remove_repeats(row: Logits, token_ids: TokenIds, text: TokenIds, n: int) -> None:
    """Remove, in place, the tokens that would repeat n tokens in a row of `text`; if these are all that is left,
    nothing is changed."""
    ids = np.empty(text.size, np.int32)
    size = 0
    for end in range(n - 1, text.size):
        same = True
        for back in range(1, n):
            if text[end - back] != text[text.size - back]:
                same = False
                break
        if same:
            ids[size] = text[end]
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
        function_step(penalise, (row, seen, ids, float64, float64, float64)),
        function_step(remove_repeats, (row, seen, ids, int64)),
    ]
