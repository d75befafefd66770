"""What a check says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from nvg.errors import NvgError, cause
from nvg.plugins import FOREIGN_FAULTS

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
        return Result(name, "failed", " ".join(str(error).split()))
    except FOREIGN_FAULTS as error:
        return Result(name, "failed", f"it raised {cause(error)}")


def run_checks(checks: Mapping[str, Check[_Subject]], subject: _Subject) -> list[Result]:
    """Run all checks in order; the others are skipped where the first, that there is something to check, fails."""
    results: list[Result] = []
    for name, check in checks.items():
        if results and results[0].status == "failed":
            results.append(Result(name, "skipped", f"{results[0].check} failed"))
        else:
            results.append(run_check(name, check, subject))
    return results


def require(title: str, results: list[Result]) -> None:
    """Raise ConformanceError, with a line for each failed check."""
    failed = [f"{title}: {result.check}: {result.detail}" for result in results if result.status == "failed"]
    if failed:
        raise ConformanceError("\n".join(failed))
