"""The conformance kit passes what is right and catches each way of being wrong, by the check that is about it."""

import itertools
import random
import threading
from dataclasses import dataclass, field

import numpy as np
import pytest

from nvg.errors import PluginError, UnknownNameError
from nvg.plugins import Registry
from nvg.testing import ConformanceError, SamplerConformance, check_sampler, sampler_results
from nvg.testing.draws import chi_square
from nvg.testing.results import run_checks
from nvg.testing.samplers import SAMPLER_CHECKS


@dataclass(frozen=True)
class Fine:
    """Keep what is at least a share of the most probable.

    share: above 0, at most 1
    """

    share: float = 0.1

    def __post_init__(self):
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share!r}; it must be above 0 and at most 1")

    def apply(self, logits, token_ids, state):
        logits[logits < logits.max() + np.float32(np.log(self.share))] = -np.inf


@dataclass(frozen=True)
class Remembering:
    """Bar the last token, and now and then all but the best."""

    def start(self, request):
        return self.Memory()

    class Memory:
        last = None

        def apply(self, logits, token_ids, state):
            if logits.size > 1:
                logits[token_ids == self.last] = -np.inf
            if state.uniform() < 0.3:
                logits[np.arange(logits.size) != logits.argmax()] = -np.inf

        def accept(self, token_id, logprob):
            self.last = token_id


def by_share(probabilities):
    return np.where(probabilities >= 0.1 * probabilities.max(), probabilities, 0)


def statuses(results):
    return {result.check: result.status for result in results}


@pytest.mark.parametrize("name", Registry("").samplers.names())
def test_every_built_in_passes(name):
    check_sampler(name)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("banned", {"ids": tuple(range(90, 257))}),
        ("banned", {"sequences": ((97, 98), (100,))}),
        ("dry", {"allowed_length": 1}),
        ("forcedprefix", {"text": "The"}),
        ("logitbias", {"ids": {97: 3.0}, "words": {" king": -5.0}}),
        ("minlength", {"n": 5}),
        ("norepeatngram", {"n": 1}),
        ("penalties", {"repetition": 1.3, "presence": 0.5, "frequency": 0.2, "last_n": -1}),
        ("xtc", {"probability": 1.0, "threshold": 0.01}),
    ],
)
def test_built_ins_that_do_nothing_by_default_pass_at_work(name, options):
    check_sampler(name, options)


def test_a_right_sampler_passes_every_check():
    results = check_sampler(Fine, formula=by_share)
    assert statuses(results) == dict.fromkeys(SAMPLER_CHECKS, "passed")
    assert check_sampler(Fine(0.5))[0].detail == "Fine(share=0.5)"
    results = check_sampler(Remembering)
    assert {name for name, status in statuses(results).items() if status == "skipped"} == {"formula", "compaction"}


class TestFine(SamplerConformance):
    sampler = Fine
    formula = by_share


def test_the_class_has_a_test_for_each_check():
    assert len([name for name in vars(SamplerConformance) if name.startswith("test_")]) == len(SAMPLER_CHECKS)


# --- wrong ones: the check that must fail, a part of its message, and the class


def best(logits):
    logits[np.arange(logits.size) != logits.argmax()] = -np.inf


class Mutable:
    """One option.

    a: any number
    """

    a: int = 1

    def apply(self, logits, token_ids, state):
        logits /= 2


Mutable = dataclass(unsafe_hash=True)(Mutable)


@dataclass(frozen=True)
class Unhashable:
    """One option.

    a: any numbers
    """

    a: list = field(default_factory=list)

    def apply(self, logits, token_ids, state):
        logits /= 2


@dataclass(frozen=True)
class Unpicklable:
    """Holds on to a function."""

    def __post_init__(self):
        object.__setattr__(self, "function", lambda: 1)

    def apply(self, logits, token_ids, state):
        logits /= 2


@dataclass(frozen=True, eq=False)
class Unequal:
    """Compares by identity."""

    def apply(self, logits, token_ids, state):
        logits /= 2


@dataclass(frozen=True)
class Undocumented:
    """One option."""

    a: float = 1.0

    def apply(self, logits, token_ids, state):
        logits /= 2


@dataclass(frozen=True)
class Nameless:
    def apply(self, logits, token_ids, state):
        logits /= 2


@dataclass(frozen=True)
class TakesNaN(Fine):
    """Checks with comparisons that NaN passes.

    share: above 0, at most 1
    """

    def __post_init__(self):
        if self.share <= 0 or self.share > 1:
            raise ValueError(f"share is {self.share!r}; it must be above 0 and at most 1")


@dataclass(frozen=True)
class TakesAnything(Fine):
    """Checks nothing.

    share: above 0, at most 1
    """

    def __post_init__(self):
        if self.share != self.share:
            raise ValueError("share is nan")


@dataclass(frozen=True)
class Vague(Fine):
    """Refuses without saying what.

    share: above 0, at most 1
    """

    def __post_init__(self):
        if not 0 < self.share <= 1:
            raise ValueError("out of range")


@dataclass(frozen=True)
class Asserting(Fine):
    """Refuses with another exception.

    share: above 0, at most 1
    """

    def __post_init__(self):
        assert 0 < self.share <= 1, "share"


@dataclass(frozen=True)
class LeavesNaN:
    """Divides what may be nothing by it."""

    def apply(self, logits, token_ids, state):
        spread = logits - logits.min()
        with np.errstate(invalid="ignore"):
            logits[:] = spread / spread.max()


@dataclass(frozen=True)
class Overflows:
    """Forgets to take the largest away first."""

    def apply(self, logits, token_ids, state):
        with np.errstate(over="ignore", invalid="ignore"):
            logits[:] = np.exp(logits)


@dataclass(frozen=True)
class Returns:
    """Returns what it should edit."""

    def apply(self, logits, token_ids, state):
        return logits * 2


@dataclass(frozen=True)
class RemovesAll:
    """Bars more than there is."""

    def apply(self, logits, token_ids, state):
        logits[logits <= logits.max()] = -np.inf


@dataclass(frozen=True)
class BringsBack:
    """Replaces the row."""

    def apply(self, logits, token_ids, state):
        logits[:] = np.arange(logits.size)


@dataclass(frozen=True)
class IndexesByID:
    """Takes ids for positions."""

    def apply(self, logits, token_ids, state):
        logits[token_ids[-1]] += 1


@dataclass(frozen=True)
class BarsTheTwoBest:
    """Needs three candidates."""

    def apply(self, logits, token_ids, state):
        logits[np.argsort(logits)[-2:]] = -np.inf


@dataclass(frozen=True)
class CountsPositions:
    """Its outcome depends on where in the row a token stands."""

    def apply(self, logits, token_ids, state):
        logits -= np.linspace(0, 1, logits.size, dtype=np.float32)


@dataclass(frozen=True)
class CountsRemoved:
    """Keeps a share of the row, removed candidates counting too."""

    def apply(self, logits, token_ids, state):
        keep = max(1, logits.size // 4)
        logits[np.argsort(-logits, kind="stable")[keep:]] = -np.inf


@dataclass(frozen=True)
class WritesIDs:
    """Sorts what isn't its own."""

    def apply(self, logits, token_ids, state):
        token_ids.sort()


@dataclass(frozen=True)
class OwnDice:
    """Draws from a generator of its own."""

    def apply(self, logits, token_ids, state):
        logits += np.float32(random.SystemRandom().random())


@dataclass(frozen=True)
class SharedMemory:
    """Remembers on the class."""

    seen = itertools.count()

    def apply(self, logits, token_ids, state):
        logits[0] += next(self.seen) * 0.25


@dataclass(frozen=True)
class StartsItself:
    """Its memory is one for all sequences of the spec."""

    def __post_init__(self):
        object.__setattr__(self, "memory", {})

    def start(self, request):
        return self

    def apply(self, logits, token_ids, state):
        for token_id, count in self.memory.items():
            logits[token_ids == token_id] -= count

    def accept(self, token_id, logprob):
        self.memory[token_id] = self.memory.get(token_id, 0) + 1

    def __reduce__(self):
        return StartsItself, ()


@dataclass(frozen=True)
class StartsNothing:
    """Forgets to return."""

    def start(self, request):
        pass

    def apply(self, logits, token_ids, state):
        pass


@dataclass(frozen=True)
class Raises:
    """Has a bug in the branch for rows of one candidate."""

    def apply(self, logits, token_ids, state):
        if logits.size == 1:
            raise IndexError("no second")


@dataclass(frozen=True)
class RaisesLate:
    """Has a bug that shows when ten tokens are there."""

    def apply(self, logits, token_ids, state):
        if state.step == 10:
            raise IndexError("no eleventh")


@dataclass(frozen=True)
class Exits:
    """Ends the process."""

    def apply(self, logits, token_ids, state):
        raise SystemExit("enough")


@dataclass(frozen=True)
class WrongFormula(Fine):
    """Also takes away half a nat from all but the best.

    share: above 0, at most 1
    """

    def apply(self, logits, token_ids, state):
        super().apply(logits, token_ids, state)
        logits[logits < logits.max()] -= 0.5


@dataclass(frozen=True)
class FailsToAccept:
    """Breaks on the first token."""

    def start(self, request):
        return self

    def apply(self, logits, token_ids, state):
        best(logits)

    def accept(self, token_id, logprob):
        raise RuntimeError("can't")


WRONG = [
    (Mutable, "spec", "option a can be changed after construction; write @dataclass(frozen=True)"),
    (Unhashable, "spec", "use a tuple for a list"),
    (Unpicklable, "spec", "the spec can't be pickled"),
    (Unequal, "spec", "two specs with the same options are not equal"),
    (int, "spec", "has no method apply"),
    (Undocumented, "options", "option a is not explained; write a line in the class docstring"),
    (Nameless, "options", "Nameless has no docstring"),
    (TakesNaN, "options", "share=nan is taken; raise ValueError"),
    (TakesAnything, "options", "with share=-1.0, "),
    (Vague, "options", "is refused with 'out of range'; say in one line the option's name"),
    (Asserting, "options", "share=nan raises AssertionError: share"),
    (LeavesNaN, "whole vocabulary", "apply left NaN for 257 candidates (all logits equal, n=257, output token 0)"),
    (Overflows, "whole vocabulary", "apply left +inf for"),
    (Returns, "whole vocabulary", "apply returned a ndarray"),
    (RemovesAll, "whole vocabulary", "apply removed every candidate (usual logits, n=257, output token 0); keep"),
    (Exits, "whole vocabulary", "it raised SystemExit: enough"),
    (StartsNothing, "whole vocabulary", "start returned a NoneType without apply"),
    (WritesIDs, "whole vocabulary", "it raised ValueError"),
    (BringsBack, "removed candidates", "apply brought back 128 removed candidates"),
    (IndexesByID, "few candidates", "it raised IndexError"),
    (BarsTheTwoBest, "few candidates", "apply removed every candidate (a single candidate, n=1, output token 0)"),
    (Raises, "few candidates", "it raised IndexError: no second"),
    (CountsPositions, "compaction", "index by position and look ids up in token_ids"),
    (CountsRemoved, "compaction", "let removed candidates (-inf) not count"),
    (OwnDice, "determinism", "two runs of one request differ at output token 0; take random numbers from state"),
    (SharedMemory, "determinism", "begin what is remembered in start(request)"),
    (StartsItself, "independence", "a sequence gets other logits beside another one than alone, from output token 1"),
    (RaisesLate, "determinism", "it raised IndexError: no eleventh"),
    (FailsToAccept, "determinism", "it raised RuntimeError: can't"),
]


@pytest.mark.parametrize(("wrong", "check", "message"), WRONG, ids=[case[0].__name__ for case in WRONG])
def test_each_way_of_being_wrong_is_caught(wrong, check, message):
    with pytest.raises((ConformanceError, PluginError)) as caught:
        check_sampler(wrong)
    lines = str(caught.value).splitlines()
    about = [line for line in lines if f": {check}: " in line]
    assert about, lines
    assert message in about[0]


@dataclass(frozen=True)
class Idle:
    """Do nothing.

    share: of what
    """

    share: float = 0.5

    def apply(self, logits, token_ids, state):
        pass


def test_a_sampler_that_states_no_range_may_take_nan_and_one_that_does_nothing_is_told():
    details = {result.check: result.detail for result in check_sampler(Idle)}
    assert "changed no row: give it options" in details["draws"]
    assert not any("changed no row" in result.detail for result in check_sampler(Fine))


def test_a_check_without_an_end_fails_and_the_rest_are_skipped():
    release = threading.Event()
    checks = {"first": lambda subject: "seen", "second": lambda subject: release.wait(60), "third": lambda subject: ""}
    results = list(run_checks(checks, None, limit_s=0.05))
    release.set()
    assert [result.status for result in results] == ["passed", "failed", "skipped"]
    assert "it has not returned for 0.05 s" in results[1].detail


def test_a_slow_sampler_is_drawn_from_less_often(monkeypatch):
    monkeypatch.setattr("nvg.testing.draws._MOST_S", 0.0)
    results = {result.check: result for result in check_sampler(Fine, formula=by_share)}
    assert results["draws"].detail.startswith("50 draws, chi-square ")


def test_a_formula_that_does_not_hold():
    results = {result.check: result for result in sampler_results(WrongFormula, formula=by_share)}
    assert results["formula"].status == "failed"
    assert "by the formula" in results["formula"].detail
    assert results["draws"].status == "failed"
    assert "chi-square" in results["draws"].detail


def test_the_bound_on_time_is_an_option():
    with pytest.raises(ConformanceError, match=r"speed: .* more than the 0 that are asked for"):
        check_sampler(Fine, max_us=0)
    check_sampler(Fine, max_us=1e9)


def test_a_sampler_may_say_that_it_lets_nothing_through():
    @dataclass(frozen=True)
    class Picky:
        """Only even bytes."""

        may_remove_all = True

        def apply(self, logits, token_ids, state):
            logits[token_ids % 2 == 1] = -np.inf

    with pytest.raises(ConformanceError, match="pickle"):
        check_sampler(Picky)  # it is local to a function
    failed = [result.check for result in sampler_results(Picky) if result.status == "failed"]
    assert failed == ["spec"]


def test_what_is_no_sampler():
    with pytest.raises(UnknownNameError, match="no sampler is called 'topq'"):
        check_sampler("topq")
    assert [result.status for result in sampler_results(int)] == ["failed"] + ["skipped"] * (len(SAMPLER_CHECKS) - 1)


def test_chi_square_against_a_table():
    # the 1 - 2.87e-7 quantile (five sigmas) of 10 degrees of freedom is 50.8
    expected = np.full(11, 100.0)
    assert chi_square(expected, expected)[0] == 0
    assert chi_square(expected, expected)[1] == pytest.approx(50.8, rel=0.01)
    counts = expected + np.array([30, -30] + [0] * 9)
    assert chi_square(counts, expected)[0] == pytest.approx(18)
    # cells of which few are expected are one
    assert chi_square(np.array([4.0, 6.0, 90.0]), np.array([3.0, 3.0, 94.0]))[0] == pytest.approx(16 / 6 + 16 / 94)
