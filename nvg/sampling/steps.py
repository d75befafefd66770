"""Steps of a model whose tokens are drawn by the threads that have just computed the logits: a job of their team."""

from __future__ import annotations

import numpy as np
from numba import carray

from nvg.kernels.simd import float32_at, float64_at, int32_at, int64_at
from nvg.runtime.atomics import atomic_load, call_job, nanoseconds
from nvg.runtime.compile_cache import Job
from nvg.runtime.team import MEETING_WORDS, barrier
from nvg.sampling.compiled import draw_row

BY_CHAIN = -1
"""Instead of a token: a chain draws it, or says what is wrong with the logits."""

# Words of the job's record.
(
    STEP, STEP_CONTEXT, MEETING, LOGITS, LD_LOGITS, NUM_IDS, NUM_ROWS, NUM_PASSES, MOST, DONE, ENDS, TOKEN_IDS,
    POSITIONS, DRAWN, OFFSETS, KINDS, VALUES, KEYS, ENDING_OFFSETS, ENDING, IDS, ROOM, ROOM_IDS, SPENT, DRAWING_NS,
    HURRY, NUM_WORDS,
) = range(27)  # fmt: skip


def _draw_steps(record: int, thread: int, num_threads: int) -> None:
    """Job: a model runner's step, the draw of its rows, and so on up to MOST times, until a sequence ends or somebody
    hurries."""
    words = carray(int64_at(record), NUM_WORDS)
    meeting = carray(int64_at(words[MEETING]), MEETING_WORDS)
    num_rows, num_ids, num_passes = words[NUM_ROWS], words[NUM_IDS], words[NUM_PASSES]
    width = words[LD_LOGITS] // 4
    logits = carray(float32_at(words[LOGITS]), num_rows * width)
    token_ids = carray(int32_at(words[TOKEN_IDS]), num_rows)
    positions = carray(int32_at(words[POSITIONS]), num_rows)
    drawn = carray(int32_at(words[DRAWN]), words[MOST] * num_rows)
    offsets = carray(int32_at(words[OFFSETS]), 2 * num_rows)
    kinds, values = carray(int64_at(words[KINDS]), num_passes), carray(float64_at(words[VALUES]), num_passes)
    keys = carray(int64_at(words[KEYS]), 3 * num_rows)
    ending_offsets = carray(int32_at(words[ENDING_OFFSETS]), num_rows + 1)
    ending = carray(int32_at(words[ENDING]), ending_offsets[num_rows])
    ids = carray(int32_at(words[IDS]), num_ids)
    # this thread's own
    room = carray(float32_at(words[ROOM] + thread * 8 * num_ids), (2, num_ids))
    room_ids = carray(int32_at(words[ROOM_IDS] + thread * 8 * num_ids), (2, num_ids))
    spent = carray(int64_at(words[SPENT] + thread * 8 * num_passes), num_passes)
    first, end = num_rows * thread // num_threads, num_rows * (thread + 1) // num_threads

    for step in range(words[MOST]):
        call_job(words[STEP], words[STEP_CONTEXT], thread, num_threads)
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
            words[DRAWING_NS] += nanoseconds() - since
            words[DONE] = step + 1
            words[ENDS] = atomic_load(words, HURRY)
            if step + 1 < words[MOST]:
                for row in range(num_rows):
                    token_id = np.int64(drawn[step * num_rows + row])
                    words[ENDS] |= token_id == BY_CHAIN
                    for i in range(ending_offsets[row], ending_offsets[row + 1]):
                        words[ENDS] |= token_id == ending[i]
                    token_ids[row] = token_id
                    positions[row] += 1
        if barrier(meeting, num_threads) or words[ENDS]:
            return


DRAW_STEPS = Job(_draw_steps)
