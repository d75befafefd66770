"""What a check says."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from nvg.errors import NvgError, fault
from nvg.foreign import FOREIGN_FAULTS

_Subject = TypeVar("_Subject")
Check = Callable[[_Subject], str]
"""Looks at a subject; returns what it saw, in a few words. Raises ViolationError, or Skipped."""


class ConformanceError(AssertionError):
    """Something breaks its contract: a line for each failed check."""


class ViolationError(Exception):
    """A rule that is broken: the value, and what to do about it."""


class Skipped(Exception):  # noqa: N818 (not an error)
    """A check that does not apply, and why."""


@dataclass(frozen=True)
class Result:
    """One check of one subject."""

    check: str
    status: Literal["passed", "failed", "skipped"]
    detail: str
    """What was seen, what is wrong with it and the way out, or why it was not checked: one line."""


def run_check(name: str, check: Check[_Subject], subject: _Subject) -> Result:
    """Run one check; whatever the subject's code raises is a failure of it."""
    try:
        return Result(name, "passed", check(subject))
    except Skipped as reason:
        return Result(name, "skipped", str(reason))
    except (ViolationError, NvgError) as error:
        if error.__cause__ is not None:
            fault(error.__cause__)  # for its traceback
        return Result(name, "failed", " ".join(str(error).split()))
    except FOREIGN_FAULTS as error:
        return Result(name, "failed", f"it raised {fault(error)}")


def run_checks(
    checks: Mapping[str, Check[_Subject]], subject: _Subject, limit_s: float | None = None
) -> Iterator[Result]:
    """Run all checks in order; the others are skipped where the first, that there is something to check, fails.

    limit_s: a check that takes longer fails; it is left behind in its thread, and the others are skipped.
    """
    why_not = ""
    for number, (name, check) in enumerate(checks.items()):
        if why_not:
            yield Result(name, "skipped", why_not)
            continue
        result = run_check(name, check, subject) if limit_s is None else _run_limited(name, check, subject, limit_s)
        if result is None:
            result = Result(name, "failed", f"it has not returned for {limit_s:g} s; look for a loop without an end")
            why_not = f"{name} has not returned"
        elif number == 0 and result.status == "failed":
            why_not = f"{name} failed"
        yield result


def _run_limited(name: str, check: Check[_Subject], subject: _Subject, limit_s: float) -> Result | None:
    """As `run_check`; None if it takes longer."""
    results: list[Result] = []
    thread = threading.Thread(target=lambda: results.append(run_check(name, check, subject)), daemon=True)
    thread.start()
    thread.join(limit_s)
    return results[0] if results else None


def require(title: str, results: list[Result]) -> None:
    """Raise ConformanceError, with a line for each failed check."""
    failed = [f"{title}: {result.check}: {result.detail}" for result in results if result.status == "failed"]
    if failed:
        raise ConformanceError("\n".join(failed))
