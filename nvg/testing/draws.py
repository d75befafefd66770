"""Whether tokens drawn through a real chain have the probabilities that they should."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nvg.plugins import Entry
from nvg.sampling.chain import Chain, Stage
from nvg.testing.results import ViolationError
from nvg.testing.rows import PROMPT, Row, SequenceRun, random_row, request_for
from nvg.tokenizers.bytes import BytesTokenizer

_NUM_DRAWS = 2000
_NUM_DRAWS_OF_STARTED = 400  # a sampler may have much to do in start
_LEAST_DRAWS, _MOST_S = 50, 20.0  # and in apply: after so many seconds so few are enough
_FEWEST_EXPECTED = 5  # of a cell, for the chi-square distribution to hold
_SIGMAS = 5.0  # the seeds are fixed: what passes once passes always; three in ten million right samplers fail

Float64 = npt.NDArray[np.float64]


def softmax(logits: npt.NDArray[Any]) -> Float64:
    """Probabilities, float64 (n,), of logits (n,), -inf giving 0."""
    weights: Float64 = np.exp(logits.astype(np.float64) - float(logits.max()))
    weights /= weights.sum()
    return weights


class Draws(NamedTuple):
    """What was seen of them, and whether the sampler changed any row."""

    detail: str
    changed: bool


def check_draws(entry: Entry, spec: Any, formula: Callable[[Float64], Float64] | None) -> Draws:
    """Pearson's chi-square test of first tokens, drawn with as many seeds, against the formula's probabilities, or
    against what the sampler itself leaves for these seeds."""
    tokenizer = BytesTokenizer()
    size = tokenizer.vocab_size
    row = Row("usual logits", random_row(size, 5, spread=2), np.arange(size, dtype=np.int32))
    stage, request = Stage(entry.name, spec, entry.origin), request_for(tokenizer)
    most_draws = _NUM_DRAWS_OF_STARTED if hasattr(spec, "start") else _NUM_DRAWS
    counts, expected = np.zeros(size), np.zeros(size)
    drawing, changed = True, False
    own: Float64 = np.zeros(size)
    num_draws, end = 0, time.monotonic() + _MOST_S
    while num_draws < most_draws and (num_draws < _LEAST_DRAWS or time.monotonic() < end):
        seed, num_draws = num_draws, num_draws + 1
        chain = Chain([stage], request, seed)
        logits = row.logits.copy()
        token_id, _ = chain.sample(logits, request.prompt_token_ids, np.empty(0, np.int32))
        counts[token_id] += 1
        changed = changed or not np.array_equal(logits, row.logits)
        if drawing and formula is None:
            run = SequenceRun(spec, tokenizer, seed)
            own = softmax(run.apply(row))
            drawing = run.num_drawn > 0  # the next seed's row can't be another, without random numbers
        expected += own
    if formula is not None:
        wanted = np.asarray(formula(softmax(row.logits)), np.float64)
        expected = num_draws * wanted / wanted.sum()
    impossible = (counts > 0) & (expected == 0)
    if impossible.any():
        raise ViolationError(
            f"token {impossible.argmax()} was drawn, whose probability is 0 by {_source(formula, len(PROMPT))}"
        )
    statistic, bound = chi_square(counts, expected)
    if statistic > bound:
        raise ViolationError(
            f"{num_draws} draws have a chi-square of {statistic:.0f} against {_source(formula, len(PROMPT))}; at most "
            f"{bound:.0f} is expected, once in three million"
        )
    return Draws(f"{num_draws} draws, chi-square {statistic:.0f} (bound {bound:.0f})", changed)


def chi_square(counts: Float64, expected: Float64) -> tuple[float, float]:
    """Pearson's statistic of counts (n,) against expected counts (n,) with the same sum, and the bound that it stays
    below but once in three million (Wilson and Hilferty 1931, doi:10.1073/pnas.17.12.684). Cells of which few are
    expected are one."""
    large = expected >= _FEWEST_EXPECTED
    cells = [(counts[large], expected[large])]
    if expected[~large].sum() >= _FEWEST_EXPECTED:
        cells.append((counts[~large].sum(keepdims=True), expected[~large].sum(keepdims=True)))
    seen, wanted = (np.concatenate(parts) for parts in zip(*cells, strict=True))
    freedom = max(1, seen.size - 1)
    spread = 2 / (9 * freedom)
    statistic = float(((seen - wanted) ** 2 / wanted).sum())
    return statistic, freedom * (1 - spread + _SIGMAS * spread**0.5) ** 3


def _source(formula: Any, num_prompt: int) -> str:
    return "the formula" if formula is not None else f"what the sampler leaves after a prompt of {num_prompt} tokens"
