"""The checks of a sampler, in the order in which they run."""

from __future__ import annotations

import pickle
import statistics
from collections.abc import Callable, Mapping
from dataclasses import FrozenInstanceError, dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from nvg.plugins import Entry, registry, sampler_entry
from nvg.sampling.contract import Logits
from nvg.sampling.options import make_spec, options_of
from nvg.testing.draws import check_draws, softmax
from nvg.testing.options import check_options
from nvg.testing.results import Check, Result, Skipped, ViolationError, run_checks
from nvg.testing.rows import (
    Row,
    SequenceRun,
    WideTokenizer,
    compacted,
    few_rows,
    random_row,
    removed_rows,
    whole_rows,
)
from nvg.tokenizers.bytes import BytesTokenizer

Formula = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]
"""Probabilities (n,) before the sampler -> after it, in any scale."""

_STEPS = 24
_TOLERANCE = 1e-4  # of logits and probabilities: sums of float32 in another order differ


@dataclass(frozen=True)
class Subject:
    """The sampler that is checked, and how."""

    entry: Entry
    options: Mapping[str, Any] = field(default_factory=dict)
    formula: Formula | None = None
    max_us: float | None = None

    @property
    def title(self) -> str:
        return self.entry.title

    def spec(self) -> Any:
        """A new spec with the options that are given."""
        return make_spec(self.entry.name, self.entry.origin, self.entry.load(), self.options)

    def run(self, *, wide: bool = False, seed: int = 0) -> SequenceRun:
        """A new sequence, with 257 token ids or with GPT-2's 50,257."""
        return SequenceRun(self.spec(), WideTokenizer() if wide else BytesTokenizer(), seed)

    @property
    def needs_vocab(self) -> bool:
        return bool(getattr(self.spec(), "needs_vocab", False) or getattr(self.run().sampler, "needs_vocab", False))

    @property
    def may_remove_all(self) -> bool:
        """Whether the sampler says that a row may hold nothing which it lets through."""
        return bool(getattr(self.entry.load(), "may_remove_all", False))

    def apply(self, row: Row, **how: Any) -> Logits:
        """What the sampler makes of one row, as the first of a sequence."""
        return self.run(**how).apply(row, may_remove_all=self.may_remove_all and row.logits.size < _SIZE)


_SIZE = BytesTokenizer.vocab_size


def subject_of(sampler: Any, **how: Any) -> Subject:
    """A subject from a spec class, a spec, a registered name, or "file.py:Name"."""
    if isinstance(sampler, str):
        return Subject(sampler_entry(sampler), **how)
    if not isinstance(sampler, type):  # a spec: its class and the values of its fields
        values = {one.name: getattr(sampler, one.name) for one in fields(sampler) if one.init}
        return subject_of(type(sampler), **{**how, "options": {**values, **how.get("options", {})}})
    return Subject(
        registry().samplers.entry_of(sampler) or Entry("sampler", sampler.__name__, sampler, sampler.__module__), **how
    )


def sampler_results(
    sampler: Any,
    options: Mapping[str, Any] | None = None,
    *,
    formula: Formula | None = None,
    max_us: float | None = None,
) -> list[Result]:
    """Run all checks. See `nvg.testing.check_sampler` for the arguments."""
    return list(run_checks(SAMPLER_CHECKS, subject_of(sampler, options=options or {}, formula=formula, max_us=max_us)))


def _spec(subject: Subject) -> str:
    options_of(subject.entry.load())
    spec, like = subject.spec(), subject.spec()
    for option in fields(spec):
        try:
            object.__getattribute__(spec, option.name)
            setattr(spec, option.name, None)
        except FrozenInstanceError:
            continue
        raise ViolationError(f"option {option.name} can be changed after construction; write @dataclass(frozen=True)")
    if spec != like:
        raise ViolationError("two specs with the same options are not equal; leave __eq__ to @dataclass(frozen=True)")
    try:
        same = hash(spec) == hash(like)
    except TypeError as error:
        raise ViolationError(
            f"the spec can't be hashed ({error}); use a tuple for a list, or field(hash=False)"
        ) from None
    if not same:
        raise ViolationError("equal specs have different hashes; leave __hash__ to @dataclass(frozen=True)")
    try:
        copy = pickle.loads(pickle.dumps(spec))
    except Exception as error:
        raise ViolationError(
            f"the spec can't be pickled ({error}); make what can't in start, not in __post_init__"
        ) from None
    if copy != spec:
        raise ViolationError("the spec comes back from pickle as another; keep all of it in the dataclass's fields")
    return repr(spec)


def _whole(subject: Subject) -> str:
    rows = whole_rows(_SIZE)
    for row in rows:
        subject.apply(row)
    for row in rows:
        subject.apply(row, seed=1)
    return f"{len(rows)} rows of {_SIZE} candidates"


def _removed(subject: Subject) -> str:
    rows = removed_rows(_SIZE)
    for row in rows:
        subject.run().apply(row, may_remove_all=subject.may_remove_all)
    return f"{len(rows)} rows in which some candidates are -inf"


def _few(subject: Subject) -> str:
    if subject.needs_vocab:
        raise Skipped("needs_vocab: it always gets the whole vocabulary")
    rows = few_rows(_SIZE)
    for row in rows:
        subject.apply(row)
    return "rows of " + ", ".join(str(row.logits.size) for row in rows) + " candidates"


def _compaction(subject: Subject) -> str:
    if subject.needs_vocab:
        raise Skipped("needs_vocab: it always gets the whole vocabulary")
    for row in removed_rows(_SIZE):
        loose = subject.may_remove_all
        run, few = subject.run(), compacted(row)
        whole = run.apply(row, may_remove_all=loose)[row.logits > -np.inf]
        if run.num_drawn:
            raise Skipped("it draws random numbers, of which it may use one for each candidate")
        alone = subject.run().apply(few, may_remove_all=loose)
        if _differ(whole, alone):
            at = int(_differences(whole, alone).argmax())
            raise ViolationError(
                f"token {few.token_ids[at]} gets the logit {whole[at]:g} among {row.logits.size} candidates of which "
                f"{row.num_left} are left, and {alone[at]:g} when only these are given ({row.label}); index by "
                "position and look ids up in token_ids, and let removed candidates (-inf) not count; or set "
                "needs_vocab = True"
            )
    return "the same with removed candidates as without them"


def _determinism(subject: Subject) -> str:
    first, again = (_outcomes(subject.run(), 0) for _ in range(2))
    for step, (one, other) in enumerate(zip(first, again, strict=True)):
        if not np.array_equal(one, other):
            raise ViolationError(
                f"two runs of one request differ at output token {step}; take random numbers from state.uniform() "
                "only, and begin what is remembered in start(request)"
            )
    return f"{_STEPS} tokens, twice the same"


def _independence(subject: Subject) -> str:
    spec = subject.spec()
    alone = [_outcomes(SequenceRun(subject.spec(), BytesTokenizer(), seed), seed) for seed in (3, 4)]
    runs = [SequenceRun(spec, BytesTokenizer(), seed) for seed in (3, 4)]
    together: list[list[Logits]] = [[], []]
    for step in range(_STEPS):
        for number, run in enumerate(runs):
            together[number].append(_step(run, number + 3, step))
    for one, other in zip(alone, together, strict=True):
        for step, (before, after) in enumerate(zip(one, other, strict=True)):
            if not np.array_equal(before, after):
                raise ViolationError(
                    f"a sequence gets other logits beside another one than alone, from output token {step} on; what is "
                    "remembered belongs to a fresh object that start(request) returns, not to the spec, its class or "
                    "its module"
                )
    if spec != subject.spec():
        raise ViolationError("the spec changed while it worked; keep what changes in the object that start returns")
    return "two sequences, each the same beside the other as alone"


def _formula(subject: Subject) -> str:
    if subject.formula is None:
        raise Skipped("no formula given")
    for row in [*whole_rows(_SIZE)[:1], *removed_rows(_SIZE)[:2], *few_rows(_SIZE)[2:3]]:
        wanted = np.asarray(subject.formula(softmax(row.logits)), np.float64)
        wanted = wanted / wanted.sum()
        got = softmax(subject.apply(row))
        if _differ(got, wanted):
            at = int(_differences(got, wanted).argmax())
            raise ViolationError(
                f"token {row.token_ids[at]} gets probability {got[at]:.6g}, and {wanted[at]:.6g} by the formula "
                f"({row.label})"
            )
    return "the probabilities are the formula's"


def _draws(subject: Subject) -> str:
    seen = check_draws(subject.entry, subject.spec(), subject.formula)
    if seen.changed or any(not np.array_equal(subject.apply(row), row.logits) for row in whole_rows(_SIZE)):
        return seen.detail
    return f"{seen.detail}; but it changed no row: give it options (-o) with which it does something"


def _speed(subject: Subject) -> str:
    size = WideTokenizer.vocab_size
    whole = Row("usual logits", random_row(size), np.arange(size, dtype=np.int32))
    parts = [f"{_microseconds(subject, whole):.1f} us for {size} candidates"]
    if not subject.needs_vocab and not subject.may_remove_all:
        parts.append(f"{_microseconds(subject, few_rows(size)[2]):.1f} us for 40")
    if subject.max_us is not None and float(parts[0].split()[0]) > subject.max_us:
        raise ViolationError(f"{parts[0]}, more than the {subject.max_us:g} that are asked for; see nvg.sampling.math")
    return ", ".join(parts)


def _microseconds(subject: Subject, row: Row) -> float:
    """The median time of `apply` on a row when it is warm."""
    run = subject.run(wide=True)
    return statistics.median([run.time_apply(row) for _ in range(12)][2:]) * 1e6


def _outcomes(run: SequenceRun, seed: int) -> list[Logits]:
    """What a sequence of usual rows becomes."""
    return [_step(run, seed, step) for step in range(_STEPS)]


def _step(run: SequenceRun, seed: int, step: int) -> Logits:
    """One step of it, of which the most probable token is accepted."""
    row = Row("usual logits", random_row(_SIZE, 100 * seed + step), np.arange(_SIZE, dtype=np.int32))
    logits = run.apply(row)
    run.accept(int(logits.argmax()))
    return logits


def _differences(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """How far apart two rows are, element by element; infinite where only one of them is removed."""
    with np.errstate(invalid="ignore"):
        apart: npt.NDArray[np.float64] = np.abs(one.astype(np.float64) - other)
    apart[(one == -np.inf) & (other == -np.inf)] = 0
    return apart


def _differ(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    scale = np.where(np.isfinite(other), np.maximum(1, np.abs(other)), 1)
    return bool((_differences(one, other) > _TOLERANCE * scale).any())


SAMPLER_CHECKS: Mapping[str, Check[Subject]] = {
    "spec": _spec,
    "options": lambda subject: check_options(subject.entry, subject.options),
    "whole vocabulary": _whole,
    "removed candidates": _removed,
    "few candidates": _few,
    "compaction": _compaction,
    "determinism": _determinism,
    "independence": _independence,
    "formula": _formula,
    "draws": _draws,
    "speed": _speed,
}
