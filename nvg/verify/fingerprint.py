"""A few logits of fixed tokens, by which a model is known again: on another machine, in another precision."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nvg.errors import ParameterError
from nvg.llm import LLM
from nvg.params import DTYPES

VERSION = 1
_NUM_TOKENS, _NUM_POSITIONS, _NUM_COLUMNS = 48, 8, 64
_DIGITS = 7  # of a float32

# How far two runs of one model may be apart, in the measure of `distance`: measured on small models of random weights,
# which are worse than trained ones, and rounded up.
_OF_RUN = {"float32": 1e-3, "bfloat16": 0.03, "int8": 0.06, "int4": 0.5}
_OF_STORAGE = {"F32": 0.0, "F16": 3e-3, "BF16": 0.03}


@dataclass(frozen=True)
class Fingerprint:
    """Logits of some columns of the vocabulary at some positions of a text that vocab_size and n_positions decide."""

    version: int
    vocab_size: int
    n_positions: int
    stored_as: tuple[str, ...]
    """Dtypes of the checkpoint's tensors."""
    dtype: str
    """How the weights were held while this was computed."""
    logits: tuple[tuple[float, ...], ...]
    """(positions, columns), float32 rounded to 7 digits."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """How far a fingerprint is from another."""

    distance: float
    """Root mean square of the differences, in standard deviations of the logits at a position: 0 for the same model,
    about 1.4 for two that have nothing in common."""
    tolerance: float
    """What rounding alone may do, in the two precisions."""

    @property
    def is_same(self) -> bool:
        return self.distance <= self.tolerance


def take(llm: LLM, vocab_size: int, n_positions: int, stored_as: tuple[str, ...]) -> Fingerprint:
    """The fingerprint of a loaded model. Raises what LLM.logits raises."""
    token_ids, positions, columns = _places(vocab_size, n_positions)
    logits = llm.logits(token_ids)[np.ix_(positions, columns)]
    rows = tuple(tuple(float(f"{value:.{_DIGITS}g}") for value in row) for row in logits.tolist())
    return Fingerprint(VERSION, vocab_size, n_positions, stored_as, llm.config.dtype, rows)


def _places(vocab_size: int, n_positions: int) -> tuple[list[int], list[int], list[int]]:
    """Token ids, positions and columns; of version 1 for ever."""
    length = min(_NUM_TOKENS, n_positions)
    token_ids = [(i * 2654435761 + 40503) % 2**32 % vocab_size for i in range(length)]
    positions = sorted({i * (length - 1) // (_NUM_POSITIONS - 1) for i in range(_NUM_POSITIONS)})
    columns = sorted({i * vocab_size // _NUM_COLUMNS for i in range(_NUM_COLUMNS)})
    return token_ids, positions, columns


def compare(one: Fingerprint, other: Fingerprint) -> Comparison:
    """How far they are apart. Raises ParameterError where they are of models of other sizes."""
    for name in ("vocab_size", "n_positions"):
        if getattr(one, name) != getattr(other, name):
            raise ParameterError(
                f"{name} is {getattr(one, name)}, that of the saved fingerprint {getattr(other, name)}"
            )
    a, b = (np.array(each.logits, np.float64) for each in (one, other))
    spread = max(math.sqrt(((each - each.mean(1, keepdims=True)) ** 2).mean()) for each in (a, b))
    apart = math.sqrt(((a - b) ** 2).mean())
    tolerance = max(_OF_RUN[one.dtype], _OF_RUN[other.dtype])
    if set(one.stored_as) != set(other.stored_as):
        tolerance += max(_OF_STORAGE[dtype] for each in (one, other) for dtype in each.stored_as)
    return Comparison(apart / spread if spread else math.inf if apart else 0.0, tolerance)


def load(path: str) -> Fingerprint:
    """A saved fingerprint: what `nvg models verify --format json` printed, or that of its key "fingerprint".

    Raises ParameterError for a file that is none.
    """
    try:
        data = json.loads(Path(path).read_bytes().decode("utf-8"))
    except OSError as error:
        raise ParameterError(f"the fingerprint {path!r} can't be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ParameterError(f"the fingerprint {path!r} is not JSON: {error}") from error
    if isinstance(data, Mapping) and "fingerprint" in data:
        data = data["fingerprint"]
    match data:
        case {
            "version": int(version),
            "vocab_size": int(vocab_size),
            "n_positions": int(n_positions),
            "stored_as": [_, *_] as stored_as,
            "dtype": str(dtype),
            "logits": [*rows],
        } if (
            version == VERSION and dtype in DTYPES and vocab_size > 0 and n_positions > 0
            and all(name in _OF_STORAGE for name in map(str, stored_as))
            and _are_logits(rows, vocab_size, n_positions)
        ):  # fmt: skip
            logits = tuple(tuple(float(value) for value in row) for row in rows)
            return Fingerprint(version, vocab_size, n_positions, tuple(stored_as), dtype, logits)
    raise ParameterError(
        f"{path!r} is no fingerprint of version {VERSION}: save one with nvg models verify MODEL --format json"
    )


def _are_logits(rows: list[Any], vocab_size: int, n_positions: int) -> bool:
    _, positions, columns = _places(vocab_size, n_positions)
    return len(rows) == len(positions) and all(
        isinstance(row, list) and len(row) == len(columns) and all(_is_finite(value) for value in row) for row in rows
    )


def _is_finite(value: Any) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:
        return False
