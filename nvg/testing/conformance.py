"""The kit as a test: one call, or a class with a test for each check."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from nvg.testing.results import Result, require, run_check
from nvg.testing.samplers import SAMPLER_CHECKS, Formula, sampler_results, subject_of
from nvg.testing.tokenizers import TOKENIZER_CHECKS, TokenizerSubject, tokenizer_results


def check_sampler(
    sampler: Any,
    options: Mapping[str, Any] | None = None,
    *,
    formula: Formula | None = None,
    max_us: float | None = None,
) -> list[Result]:
    """Check that a sampler keeps its contract (`nvg.sampling.contract.Sampler`), and return what was seen.

    sampler: a spec class, a spec, a registered name, or "path/to/file.py:Name". options: values for its options, where
    the defaults are not what should be checked, or don't exist. formula: probabilities, float64 (n,), before the
    sampler -> after it, in any scale, as the paper has it: the sampler's own, and those of tokens drawn through a
    chain, are compared with it. max_us: most microseconds for 50,257 candidates; by default time is only reported.

    A class with `may_remove_all = True` may remove all candidates of a row that holds nothing it lets through (a
    grammar, a list of banned words), though never of a whole vocabulary.

    Raises ConformanceError (an AssertionError) with a line for each check that failed: the check, the value, the way
    out. Raises UnknownNameError, ParameterError or PluginError where there is no such sampler.
    """
    subject = subject_of(sampler, options=options or {}, formula=formula, max_us=max_us)
    results = sampler_results(sampler, options, formula=formula, max_us=max_us)
    require(subject.title, results)
    return results


def check_tokenizer(
    tokenizer: Any, directory: str | os.PathLike[str] | None = None, *, lossless: bool = True
) -> list[Result]:
    """Check that a tokenizer keeps its contract (`nvg.tokenizers.contract.Tokenizer`), and return what was seen.

    tokenizer: one, or a class or registered name with `from_dir`, which gets `directory` (by default that of the
    embedded model). lossless: whether `decode(encode(text))` must be `text`; False for one that changes text, for
    example to lower case.

    Raises ConformanceError (an AssertionError) with a line for each check that failed.
    """
    results = tokenizer_results(tokenizer, directory, lossless=lossless)
    require(TokenizerSubject(tokenizer).title, results)
    return results


class SamplerConformance:
    """Derive a class whose name begins with Test, and give it the sampler: it has a test for each check."""

    sampler: ClassVar[Any]
    """As in `check_sampler`, as are the others."""
    options: ClassVar[Mapping[str, Any]] = {}
    formula: ClassVar[Formula | None] = None
    max_us: ClassVar[float | None] = None


class TokenizerConformance:
    """Derive a class whose name begins with Test, and give it the tokenizer: it has a test for each check."""

    tokenizer: ClassVar[Any]
    """As in `check_tokenizer`, as are the others."""
    directory: ClassVar[str | Path | None] = None
    lossless: ClassVar[bool] = True


def _sampler_test(name: str) -> Callable[[SamplerConformance], None]:
    def test(self: SamplerConformance) -> None:
        kind = type(self)
        formula = vars(kind).get("formula")  # from the class, where a function is no method
        formula = formula.__func__ if isinstance(formula, staticmethod) else formula
        subject = subject_of(kind.sampler, options=kind.options, formula=formula, max_us=kind.max_us)
        require(subject.title, [run_check(name, SAMPLER_CHECKS[name], subject)])

    return test


def _tokenizer_test(name: str) -> Callable[[TokenizerConformance], None]:
    def test(self: TokenizerConformance) -> None:
        kind = type(self)
        subject = TokenizerSubject(kind.tokenizer, kind.directory, kind.lossless)
        require(subject.title, [run_check(name, TOKENIZER_CHECKS[name], subject)])

    return test


for _name in SAMPLER_CHECKS:
    setattr(SamplerConformance, f"test_{_name.replace(' ', '_')}", _sampler_test(_name))
for _name in TOKENIZER_CHECKS:
    setattr(TokenizerConformance, f"test_{_name.replace(' ', '_')}", _tokenizer_test(_name))
