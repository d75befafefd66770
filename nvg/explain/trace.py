"""A trace: what every stage of a chain did, as JSON lines that are whole up to the last one, whatever ends the run.

Version 1. Each line is an object with a "type"; entropies are in nats, probabilities from 0 to 1, texts UTF-8 with what
is not as \\xNN. What is drawn, and what the numbers mean, is said at `nvg.params.Explanation`.

    header    the first: nvg_trace (1), nvg, python, numpy, numba (versions), model, dtype, kv_dtype, prompt (null where
              token ids were given), prompt_token_ids, prompt_texts, seed, n, chain [{name, origin, options}]
    token     choice and index (from 0), token_id, text, model {candidates, entropy, rank, prob}, and for each stage
              of the chain stages [{name, removed, candidates, entropy, rank_before, rank, prob_before, prob, seconds}];
              candidates [[token_id, text, [probability after the model and each stage, null once removed]]]
    end       of a choice: choice, finish_reason, error (null)
    branch    what might have come instead of a token: choice, index, token_id, text, continuation
              [[token_id, text, the model's probability]]: the most probable tokens after it, one after the other
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import platform
from collections import Counter
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from nvg._version import __version__
from nvg.errors import TraceError
from nvg.params import Distribution, Explanation, Piece, RequestOutput, SamplingParams

if TYPE_CHECKING:
    from nvg.explain.branches import Branch
    from nvg.llm import LLM

VERSION = 1
_BEGIN = '{"type": "header", "nvg_trace": '


class TraceWriter:
    """Writes one request's trace; each line is handed to the system before the next is made. What the file had stays
    until `begin`.

    Raises TraceError for a file that holds something else than a trace, OSError for one that can't be written.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = _open(path)
        self._num_tokens: Counter[int] = Counter()

    def begin(
        self, llm: LLM, params: SamplingParams, prompt: str | None, prompt_token_ids: list[int], seed: int
    ) -> None:
        """Write the header. params: what the request was made with."""
        import numba
        import numpy

        from nvg.sampling.compose import resolve

        if os.path.isfile(self.path):  # and no pipe or device
            self._file.truncate(0)
        self._llm = llm
        stages = [
            {"name": stage.name, "origin": stage.origin, "options": _options(stage.spec)} for stage in resolve(params)
        ]
        self._write(
            type="header",
            nvg_trace=VERSION,
            nvg=__version__,
            python=platform.python_version(),
            numpy=numpy.__version__,
            numba=numba.__version__,
            model=llm.config.model,
            dtype=llm.config.dtype,
            kv_dtype=llm.config.kv_dtype,
            prompt=prompt,
            prompt_token_ids=prompt_token_ids,
            prompt_texts=[self._text(i) for i in prompt_token_ids],
            seed=seed,
            n=params.n,
            chain=stages,
        )

    def add(self, piece: Piece) -> None:
        """Write the tokens of a piece, which must have explanations, and its choice's end."""
        for explanation in piece.explanations or ():
            self._token(piece.index, explanation)
        if piece.finish_reason is not None:
            self._write(type="end", choice=piece.index, finish_reason=piece.finish_reason, error=piece.error)

    def branch(self, branch: Branch) -> None:
        """Write a branch."""
        self._write(
            type="branch",
            choice=branch.choice,
            index=branch.index,
            token_id=branch.token_id,
            text=self._text(branch.token_id),
            continuation=[[one.token_id, self._text(one.token_id), math.exp(one.logprob)] for one in branch.tokens],
        )

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _token(self, choice: int, explanation: Explanation) -> None:
        self._write(
            type="token",
            choice=choice,
            index=self._num_tokens[choice],
            token_id=explanation.token_id,
            text=self._text(explanation.token_id),
            model=_numbers(explanation.model),
            stages=[
                {
                    "name": stage.name,
                    "removed": stage.removed,
                    **_numbers(stage.after),
                    "rank_before": stage.before.rank,
                    "prob_before": stage.before.prob,
                    "seconds": stage.seconds,
                }
                for stage in explanation.stages
            ],
            candidates=[[i, self._text(i), probs] for i, probs in explanation.candidates.items()],
        )
        self._num_tokens[choice] += 1

    def _text(self, token_id: int) -> str:
        return self._llm.tokenizer.token_bytes(token_id).decode("utf-8", "backslashreplace")

    def _write(self, **record: Any) -> None:
        try:
            self._file.write(json.dumps(record, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            with contextlib.suppress(OSError):  # what could not be written is tried once more
                self._file.close()
            raise OSError(error.errno, error.strerror, self.path) from error


def write_trace(path: str, llm: LLM, params: SamplingParams, output: RequestOutput) -> None:
    """Write the trace of what `llm.generate` gave for a prompt with `params`, whose `explain` was True."""
    with TraceWriter(path) as trace:
        trace.begin(llm, params, output.prompt, output.prompt_token_ids, output.seed)
        for choice in output.outputs:
            ids, reason = choice.token_ids, choice.finish_reason
            trace.add(Piece(choice.text, ids, None, reason, choice.index, choice.error, choice.explanations))


def _open(path: str) -> IO[str]:
    """The file to write, unless there is something in it that is no trace."""
    if os.path.isfile(path):
        with open(path, encoding="utf-8", errors="replace") as file:
            if not _BEGIN.startswith(file.read(len(_BEGIN))):
                raise TraceError(f"{path!r} exists and is no trace: remove it, or give another name")
    return open(path, "a", encoding="utf-8", newline="\n")


def _numbers(distribution: Distribution) -> dict[str, Any]:
    return {
        "candidates": distribution.num_candidates,
        "entropy": distribution.entropy,
        "rank": distribution.rank,
        "prob": distribution.prob,
    }


def _options(spec: Any) -> dict[str, Any]:
    """The options of a spec; as JSON has them, or as Python writes them."""
    options = {}
    for field in dataclasses.fields(spec) if dataclasses.is_dataclass(spec) else ():
        value = getattr(spec, field.name)
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            value = repr(value)
        options[field.name] = value
    return options
