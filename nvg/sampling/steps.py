"""Steps of a model whose tokens are drawn by the threads that have just computed the logits: a job of their team."""

# mypy: disallow-untyped-calls=False

from __future__ import annotations

import numba
import numpy as np
from numba import carray

from nvg.kernels.simd import address_of, float32_at, float64_at, int32_at, int64_at
from nvg.runtime.atomics import call_job, nanoseconds
from nvg.runtime.compile_cache import Job
from nvg.runtime.team import MEETING_WORDS, barrier
from nvg.sampling.compiled import draw_row
from nvg.sampling.select import padded

BY_CHAIN = -1
"""Instead of a token: a chain draws it, or says what is wrong with the logits."""

_FIELDS = (
    # the model's step, which leaves rows of logits, and where its threads meet
    "step", "step_context", "meeting", "logits", "ld_logits",
    # how many: ids that can be drawn, rows of logits, passes of all chains, steps at most
    "num_ids", "num_rows", "num_passes", "most_steps",
    # what comes of it: steps made, whether that is all, nanoseconds that drawing took
    "num_steps", "ends", "drawing_ns",
    # set by whoever waits for the end of the step that runs
    "hurry",
    # addresses: int32
    "token_ids", "positions", "drawn", "offsets", "ending_offsets", "ending", "ids", "room_ids",
    # addresses: int64
    "kinds", "keys", "spent",
    # addresses: float64, float32
    "values", "room",
)  # fmt: skip
DRAW_CONTEXT = np.dtype([(name, np.int64) for name in _FIELDS], align=True)
_context_at = address_of(numba.from_dtype(DRAW_CONTEXT))


def _draw_steps(context: int, thread: int, num_threads: int) -> None:
    """Job: a model runner's step, the draw of its rows, and so on as `context` (the address of a DRAW_CONTEXT record)
    says, until a sequence ends or somebody hurries."""
    c = carray(_context_at(context), 1)[0]
    meeting = carray(int64_at(c.meeting), MEETING_WORDS)
    num_rows, num_ids, num_passes = c.num_rows, c.num_ids, c.num_passes
    width = c.ld_logits // 4
    logits = carray(float32_at(c.logits), num_rows * width)
    token_ids = carray(int32_at(c.token_ids), num_rows)
    positions = carray(int32_at(c.positions), num_rows)
    drawn = carray(int32_at(c.drawn), c.most_steps * num_rows)
    offsets = carray(int32_at(c.offsets), 2 * num_rows)
    kinds, values = carray(int64_at(c.kinds), num_passes), carray(float64_at(c.values), num_passes)
    keys = carray(int64_at(c.keys), 3 * num_rows)
    ending_offsets = carray(int32_at(c.ending_offsets), num_rows + 1)
    ending = carray(int32_at(c.ending), ending_offsets[num_rows])
    ids = carray(int32_at(c.ids), num_ids)
    # this thread's own
    room = carray(float32_at(c.room + thread * 8 * padded(num_ids)), (2, padded(num_ids)))
    room_ids = carray(int32_at(c.room_ids + thread * 8 * num_ids), (2, num_ids))
    spent = carray(int64_at(c.spent + thread * 8 * num_passes), num_passes)
    first, end = num_rows * thread // num_threads, num_rows * (thread + 1) // num_threads

    for step in range(c.most_steps):
        call_job(c.step, c.step_context, thread, num_threads)
        if barrier(meeting, num_threads):
            return
        since = nanoseconds()
        for row in range(first, end):
            token_id = np.int64(BY_CHAIN)
            if offsets[2 * row] >= 0:
                low, high = offsets[2 * row], offsets[2 * row + 1]
                token_id = np.int64(
                    draw_row(
                        logits[row * width : row * width + num_ids], ids, kinds[low:high], values[low:high],
                        spent[low:high], keys[3 * row], keys[3 * row + 1], keys[3 * row + 2], room, room_ids,
                    )
                )  # fmt: skip
                keys[3 * row + 2] += 1
            drawn[step * num_rows + row] = token_id
        if barrier(meeting, num_threads):
            return
        if thread == 0:
            c.drawing_ns += nanoseconds() - since
            c.num_steps = step + 1
            c.ends = c.hurry
            if step + 1 < c.most_steps:
                for row in range(num_rows):
                    token_id = np.int64(drawn[step * num_rows + row])
                    c.ends |= token_id == BY_CHAIN
                    for i in range(ending_offsets[row], ending_offsets[row + 1]):
                        c.ends |= token_id == ending[i]
                    token_ids[row] = token_id
                    positions[row] += 1
        if barrier(meeting, num_threads) or c.ends:
            return


DRAW_STEPS = Job(_draw_steps)
