"""Steps whose tokens are drawn in compiled code, by the threads that have just computed the logits; and several steps
in one go, where nobody could tell the difference.

That is for sequences whose chains are compiled passes (`nvg.sampling.compiled`); the engine draws the others' tokens.
Both draw the same.
"""

from __future__ import annotations

from collections.abc import Sequence as Listed
from typing import Any

import numpy as np
import numpy.typing as npt

from nvg.engine.scheduler import Share
from nvg.engine.sequence import ChoiceSequence
from nvg.engine.stats import EngineStats
from nvg.errors import AbortedError
from nvg.model.contract import Batch, Float32, Int32, TeamRunner
from nvg.runtime.compile_cache import CompileStep
from nvg.sampling import chain
from nvg.sampling.compiled import Pass
from nvg.sampling.random import signed
from nvg.sampling.select import padded
from nvg.sampling.steps import BY_CHAIN, DRAW_CONTEXT, DRAW_STEPS

MOST_STEPS = 16
"""In one go: the interpreter's share of a token's time is small then, and outputs come often enough to show."""

_POSITION = 2  # the column of the output positions in what decides a draw


def compile_steps() -> list[CompileStep]:
    """All that must be compiled before tokens can be drawn, here or by a chain."""
    return [DRAW_STEPS.step().found_in(__name__), *chain.compile_steps()]


class Drawing:
    """Runs steps and draws, for an engine with a runner that has a team."""

    def __init__(self, runner: TeamRunner, num_ids: int, max_rows: int, stats: EngineStats) -> None:
        """num_ids: the tokenizer's ids, which alone can be drawn. max_rows: most rows of logits in a step."""
        self._runner = runner
        self._stats = stats
        self._context = np.zeros(1, DRAW_CONTEXT)
        self._drawn = np.zeros(MOST_STEPS * max_rows, np.int32)
        self._offsets = np.zeros((max_rows, 2), np.int32)
        self._keys = np.zeros((max_rows, 3), np.int64)
        self._ending_offsets = np.zeros(max_rows + 1, np.int32)
        self._buffers: dict[str, npt.NDArray[Any]] = {
            "drawn": self._drawn,
            "offsets": self._offsets,
            "keys": self._keys,
            "ending_offsets": self._ending_offsets,
            "ids": np.arange(num_ids, dtype=np.int32),
            "room": np.empty((runner.num_threads, 2, padded(num_ids)), np.float32),
            "room_ids": np.empty((runner.num_threads, 2, num_ids), np.int32),
        }
        job, context = runner.step_job, self._context[0]
        context["step"], context["step_context"], context["meeting"] = job.address, job.context, job.meeting
        context["logits"], context["ld_logits"], context["num_ids"] = job.logits, job.ld_logits, num_ids
        for name, buffer in self._buffers.items():
            context[name] = buffer.ctypes.data
        self._rows: list[ChoiceSequence | None] = []
        self._passes: list[Pass] = []
        self._tables: dict[str, npt.NDArray[Any]] = {}
        self._spent = np.zeros((runner.num_threads, 0), np.int64)

    def hurry(self, hurry: bool) -> None:
        """Whether somebody waits for the end of the step that runs; from any thread."""
        self._context[0]["hurry"] = hurry

    def rows_of(self, shares: Listed[Share]) -> list[ChoiceSequence | None]:
        """Whose tokens are drawn here, a sequence or None for each row of logits."""
        rows: list[ChoiceSequence | None] = []
        for share in shares:
            if share.num_rows:
                sequence = share.sequence
                draws = isinstance(sequence, ChoiceSequence) and share.num_rows == 1 and sequence.can_draw_compiled
                rows += [sequence] if draws else [None] * share.num_rows  # type: ignore[list-item]
        return rows

    def run(self, batch: Batch, rows: list[ChoiceSequence | None], most_steps: int) -> tuple[Float32, Int32]:
        """Run a step, or up to `most_steps` of them for a batch of one token for each row, all of whose sequences can
        be drawn here.

        Returns (logits (R, V) of the last step, token ids int32 (steps, R)); BY_CHAIN stands for a token that the chain
        must draw from the logits. Raises AbortedError if the runner was aborted in the first step.
        """
        context = self._context[0]
        positions = [-1 if one is None else one.num_tokens - one.num_prompt_tokens for one in rows]
        # those that are written down go on with each draw, also with one that the engine never came to see
        if rows != self._rows or positions != self._keys[: len(rows), _POSITION].tolist():
            self._describe(rows, positions)
        context["token_ids"], context["positions"] = batch.token_ids.ctypes.data, batch.positions.ctypes.data
        context["most_steps"], context["num_steps"], context["drawing_ns"] = most_steps, 0, 0
        logits, is_aborted = np.empty((0, 0), np.float32), False
        try:
            logits = self._runner.execute_through(batch, DRAW_STEPS.address, self._context.ctypes.data)
        except AbortedError:
            is_aborted = True
        self._count()
        num_steps = int(context["num_steps"])
        drawn = self._drawn[: num_steps * len(rows)].reshape(num_steps, len(rows))
        if is_aborted:
            drawn = drawn[(drawn != BY_CHAIN).all(1)]  # for the others there are no logits
            if not len(drawn):
                raise AbortedError("the step was aborted")
        return logits, drawn

    @property
    def drawing_s(self) -> float:
        """Seconds that drawing took in the last run."""
        return float(self._context[0]["drawing_ns"]) * 1e-9

    def _describe(self, rows: list[ChoiceSequence | None], positions: list[int]) -> None:
        """Write down what is drawn for whom. Rows whose chains are the same share what says so."""
        begins: dict[tuple[Pass, ...], int] = {}
        ending: list[int] = []
        self._passes = []
        for row, sequence in enumerate(rows):
            self._offsets[row], self._keys[row] = -1, -1
            if sequence is not None:
                passes, request = sequence.passes, sequence.request
                assert passes is not None
                if passes not in begins:
                    begins[passes] = len(self._passes)
                    self._passes += passes
                self._offsets[row] = begins[passes], begins[passes] + len(passes)
                self._keys[row] = signed(request.seed), sequence.index, positions[row]
                ending += request.ending
            self._ending_offsets[row + 1] = len(ending)
        self._spent = np.zeros((self._runner.num_threads, len(self._passes)), np.int64)
        self._tables = {
            "kinds": np.array([one.kind for one in self._passes], np.int64),
            "values": np.array([one.value for one in self._passes], np.float64),
            "ending": np.array(ending, np.int32),
            "spent": self._spent,
        }
        context = self._context[0]
        for name, table in self._tables.items():
            context[name] = table.ctypes.data
        context["num_passes"], context["num_rows"] = len(self._passes), len(rows)
        self._rows = rows

    def _count(self) -> None:
        """Add what each stage took to its time."""
        for one, spent in zip(self._passes, self._spent.sum(0).tolist(), strict=True):
            time = self._stats.stages[one.title]
            time.last_s = spent * 1e-9
            time.seconds += time.last_s
        self._spent[:] = 0
