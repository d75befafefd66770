"""A chain at work: the stages of one choice of one request edit the candidates, then the engine's draw takes one.

Knows specs, not names: those become stages in `nvg.sampling.compose`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import current_thread, main_thread
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

import numpy as np

from nvg.errors import EngineError, SamplerError, fault
from nvg.runtime.compile_cache import CompileStep
from nvg.sampling import edit, logprobs, mass, random, select, spread
from nvg.sampling.contract import Logits, SamplerRequest, TokenIds
from nvg.sampling.draw import draw
from nvg.sampling.random import DRAW_STAGE, uniform
from nvg.sampling.recorder import Recorder

_Array = TypeVar("_Array", Logits, TokenIds)

_FEW = 1024
"""Of a whole row, so many candidates are found while they are counted."""


def compile_steps() -> list[CompileStep]:
    """All that must be compiled before nvg's own samplers and the draw can run."""
    files = random, select, mass, logprobs, spread, edit
    return [step.found_in(__name__) for file in files for step in file.compile_steps()]


@dataclass(frozen=True)
class Stage:
    """One sampler of a chain, and what to call it in messages."""

    name: str
    spec: Any
    """A `nvg.sampling.contract.Sampler`."""
    origin: str
    """The distribution with its version, or the file, that it comes from."""

    @property
    def title(self) -> str:
        return f"sampler {self.name!r} of {self.origin}"


class StageTime:
    """How long a sampler has taken: its `start`, `apply` and `accept` in all chains together. Used in a `with`."""

    __slots__ = ("last_s", "seconds", "since")

    def __init__(self) -> None:
        self.seconds = 0.0
        self.last_s = 0.0
        """Of the last call."""
        self.since = 0.0
        """When it was called, on time.perf_counter's clock; 0 once it has returned."""

    def __repr__(self) -> str:
        return f"StageTime(seconds={self.seconds:.6f}, last_s={self.last_s:.6f})"

    def __enter__(self) -> None:
        self.since = perf_counter()

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.last_s = seconds = perf_counter() - self.since
        self.seconds += seconds
        self.since = 0.0


class _State:
    """What a sampler may look at: a `nvg.sampling.contract.State`."""

    __slots__ = ("_choice", "_num_drawn", "_output", "_prompt", "_seed", "_stage", "step")

    def __init__(self, prompt: TokenIds, output: TokenIds, seed: int, choice: int, stage: int) -> None:
        self._prompt = prompt
        self._output = output
        self.step = output.size
        self._seed = seed
        self._choice = choice
        self._stage = stage
        self._num_drawn = 0

    @property
    def prompt_token_ids(self) -> TokenIds:
        """The prompt, read-only."""
        return _read_only(self._prompt)

    @property
    def output_token_ids(self) -> TokenIds:
        """The output so far, read-only."""
        return _read_only(self._output)

    def uniform(self) -> float:
        """The next uniform number in [0, 1) of this stage at this output position."""
        number = uniform(self._seed, self._choice, self.step, self._stage, self._num_drawn)
        self._num_drawn += 1
        return number


class Chain:
    """The stages of one choice of one request, with what they remember of it.

    request: what each spec's `start` is told; `request.vocab_size` is the number of logits in a row. Ids from the
    tokenizer's `vocab_size` on are never candidates. choice: index among the request's n choices. times: by the stages'
    titles; new ones are added. recorder: sees what each stage leaves.

    Raises SamplerError if a sampler's `start` fails.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        request: SamplerRequest,
        seed: int,
        choice: int = 0,
        *,
        times: dict[str, StageTime] | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self._seed = seed
        self._choice = choice
        self.recorder = recorder
        times = {} if times is None else times
        clocks = [times.setdefault(stage.title, StageTime()) for stage in stages]
        started = [_started(stage, request, clock) for stage, clock in zip(stages, clocks, strict=True)]
        self._working = [(stage, one.sampler, clock) for stage, one, clock in zip(stages, started, clocks, strict=True)]
        self._accepting = [work for work, one in zip(self._working, started, strict=True) if one.accepts]
        wide = [index for index, one in enumerate(started) if one.needs_vocab]
        self._last_wide = wide[-1] if wide else -1  # up to this stage candidates are never compacted
        self._num_ids = min(request.vocab_size, request.tokenizer.vocab_size)
        width = request.vocab_size if wide else self._num_ids
        self._token_ids = np.arange(width, dtype=np.int32)
        self._token_ids.flags.writeable = False
        self._few, self._few_ids = np.empty(_FEW, np.float32), np.empty(_FEW, np.int32)

    def sample(
        self,
        logits: Logits,
        prompt_token_ids: TokenIds,
        output_token_ids: TokenIds,
        banned: Sequence[int] | TokenIds = (),
    ) -> tuple[int, float]:
        """Draw the next token.

        logits: float32 (vocab_size,), contiguous; overwritten. prompt_token_ids, output_token_ids: int32, the output
        so far. banned: ids that can't be drawn this time.

        Returns (token_id, log-probability in nats under the distribution that was drawn from). Raises SamplerError,
        which ends this request only, if a sampler fails or breaks its contract.
        """
        step = output_token_ids.size
        candidates, token_ids, num_left = self._candidates(logits, banned, step)
        recorder = self.recorder
        if recorder is not None:
            recorder.begin(candidates, token_ids)
        for index, (stage, sampler, clock) in enumerate(self._working):
            if index > self._last_wide and num_left < candidates.size:
                candidates, token_ids = self._compact(candidates, token_ids, num_left)
            removed = candidates == -np.inf if num_left < candidates.size else None
            state = _State(prompt_token_ids, output_token_ids, self._seed, self._choice, index)
            try:
                shown, shown_ids = _lent(candidates), _lent(token_ids)
                with np.errstate(), clock:  # how NumPy handles errors is everybody's on this thread
                    returned = sampler.apply(shown, shown_ids, state)
            except _faults() as error:
                raise SamplerError(_at(stage, f"raised {fault(error)}", step)) from error
            if returned is not None:
                wrong = f"returned a {type(returned).__name__}; apply edits logits in place and returns None"
                raise SamplerError(_at(stage, wrong, step))
            if removed is not None:
                np.copyto(candidates, -np.inf, where=removed)  # what one stage removed, no later one brings back
            num_left = self._count(candidates, token_ids)
            if num_left <= 0:
                raise SamplerError(_at(stage, _fault(candidates), step))
            if recorder is not None:
                recorder.stage(stage.name, clock.last_s, candidates, token_ids)
        if num_left < candidates.size:
            candidates, token_ids = self._compact(candidates, token_ids, num_left)
        if num_left == 1:
            token_id, logprob = int(token_ids[0]), 0.0
        else:
            number = uniform(self._seed, self._choice, step, DRAW_STAGE, 0)
            token_id, logprob = draw(candidates, token_ids, number)
        self._accept(token_id, logprob, step)
        return token_id, logprob

    def _candidates(self, logits: Logits, banned: Sequence[int] | TokenIds, step: int) -> tuple[Logits, TokenIds, int]:
        """The row that the first stage sees, its ids, and how many of them are not removed: the tokenizer's ids but the
        banned ones."""
        candidates = logits[: self._num_ids]
        num_left = self._count(candidates, self._token_ids)
        if num_left <= 0:
            raise EngineError(f"the model {_fault(candidates)} at output token {step}; its weights may be damaged")
        width = self._token_ids.size
        if width > self._num_ids:
            candidates = logits[:width]
            candidates[self._num_ids :] = -np.inf
        if len(banned):
            ids = np.asarray(banned)
            candidates[ids[ids < width]] = -np.inf
            num_left = self._count(candidates, self._token_ids)
            if num_left == 0:
                raise EngineError(f"no token is left to draw at output token {step}: all are banned")
        return candidates, self._token_ids, num_left

    def _count(self, logits: Logits, token_ids: TokenIds) -> int:
        """How many candidates are left; -1 if the row is unfit to draw from. `_compact` relies on it."""
        whole = token_ids is self._token_ids
        num_left: int = select.survey(logits, self._few, self._few_ids) if whole else select.count_candidates(logits)
        return num_left

    def _compact(self, logits: Logits, token_ids: TokenIds, num_left: int) -> tuple[Logits, TokenIds]:
        """The candidates that are left, in the same order, after `_count` found num_left.

        Ids own their memory and are read-only, so that no view that a sampler gets can be made writable.
        """
        if token_ids is self._token_ids and num_left <= _FEW:
            left, left_ids = self._few[:num_left].copy(), self._few_ids[:num_left].copy()
        else:
            left, left_ids = np.empty(num_left, np.float32), np.empty(num_left, np.int32)
            token_ids.flags.writeable = True  # kernels are compiled for writable arrays
            select.compact(logits, token_ids, left, left_ids)
            token_ids.flags.writeable = False
        left_ids.flags.writeable = False
        return left, left_ids

    def _accept(self, token_id: int, logprob: float, step: int) -> None:
        for stage, sampler, clock in self._accepting:
            try:
                with clock:
                    sampler.accept(token_id, logprob)
            except _faults() as error:
                raise SamplerError(_at(stage, f"raised in accept {fault(error)}", step)) from error


class _Started(NamedTuple):
    sampler: Any
    """What works for one sequence: what `start` gives, or the spec itself."""
    accepts: bool
    needs_vocab: bool


def _started(stage: Stage, request: SamplerRequest, clock: StageTime) -> _Started:
    """A stage's sampler at its begin. Attributes may be properties, whose faults are the sampler's, too."""
    spec = stage.spec
    try:
        start = getattr(spec, "start", None)
        with clock:
            sampler = spec if start is None else start(request)
        works = callable(getattr(sampler, "apply", None))
        accepts = getattr(sampler, "accept", None) is not None
        needs_vocab = bool(getattr(spec, "needs_vocab", False) or getattr(sampler, "needs_vocab", False))
    except _faults() as error:
        raise SamplerError(f"{stage.title} raised in start {fault(error)}") from error
    if not works:
        raise SamplerError(f"{stage.title} returned a {type(sampler).__name__} from start, which has no method apply")
    return _Started(sampler, accepts, needs_vocab)


def _faults() -> type[BaseException] | tuple[type[BaseException], ...]:
    """What a sampler may raise and end its own request alone: all, lest sys.exit() ends the thread that everybody's
    steps run on. Only in the main thread a KeyboardInterrupt may be Ctrl-C, which is no sampler's."""
    return (Exception, SystemExit, GeneratorExit) if current_thread() is main_thread() else BaseException


def _fault(logits: Logits) -> str:
    """What makes a row unfit to draw from."""
    if num_nans := np.count_nonzero(np.isnan(logits)):
        return f"left NaN for {num_nans} of {logits.size} candidates"
    if num_infinite := np.count_nonzero(logits == np.inf):
        return f"left +inf for {num_infinite} of {logits.size} candidates"
    return "removed every candidate"


def _read_only(token_ids: TokenIds) -> TokenIds:
    view: TokenIds = token_ids.view()
    view.flags.writeable = False
    return view


def _lent(array: _Array) -> _Array:
    """An array of its own on the same memory: a sampler may change its shape, dtype and flags, and has no way to what
    lies around it (the base of a view would be all rows of the step)."""
    return np.frombuffer(array.data, array.dtype)


def _at(stage: Stage, wrong: str, step: int) -> str:
    return f"{stage.title} {wrong}, at output token {step}"
