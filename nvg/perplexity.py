"""How well a model predicts a text: perplexity over windows of its context."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from nvg.errors import EngineError, ParameterError
from nvg.llm import LLM
from nvg.model.contract import Float32
from nvg.runtime.cores import default_threads

_ROWS = 16  # of logits that a thread takes at a time

Progress = Callable[[int, int, float], None]
"""Gets (windows done, windows, nats a token so far)."""


@dataclass(frozen=True)
class Window:
    """Tokens begin .. end - 1 of a text are run; of these, first .. end - 1 are predicted."""

    begin: int
    first: int
    end: int


@dataclass(frozen=True)
class Perplexity:
    """What a model made of a text."""

    nats_per_token: float
    """Mean of -ln p of the tokens that were predicted."""
    bits_per_byte: float
    """-log2 p of these tokens, over the bytes that they stand for: compares models with different tokenizers."""
    tokens: int
    """How many were predicted."""
    bytes: int
    windows: int
    seconds: float

    @property
    def perplexity(self) -> float:
        """e to the nats a token; inf where that is too large."""
        try:
            return math.exp(self.nats_per_token)
        except OverflowError:
            return math.inf

    @property
    def tok_s(self) -> float:
        """Tokens a second that were predicted."""
        return self.tokens / self.seconds


def windows(num_tokens: int, context: int, stride: int) -> Iterator[Window]:
    """Windows of up to `context` tokens, `stride` apart; each token is predicted in the first that can.

    With stride = context they do not overlap, and the first token of each has nothing to be predicted from. With a
    smaller stride, tokens of later windows have at least context - stride tokens before them; the cost grows by
    context / stride. It is the strided perplexity of Hugging Face's documentation. 1 <= stride <= context.
    """
    done = 0
    for begin in range(0, num_tokens, stride):
        end = min(begin + context, num_tokens)
        first = max(done, begin + 1)
        if first < end:
            yield Window(begin, first, end)
        done = end
        if end == num_tokens:
            return


def measure(
    llm: LLM, token_ids: Sequence[int], *, context: int, stride: int | None = None, progress: Progress | None = None
) -> Perplexity:
    """The perplexity of `token_ids` in windows of `context` tokens, `stride` apart (None: the context's length).

    Log-softmax over the whole vocabulary in float64. Holds the logits of one window at a time. Raises ParameterError
    for a context that the model does not have or that is below 2, a stride outside 1 .. context, and fewer than 2
    tokens; EngineError for a model that gives NaN.
    """
    stride = context if stride is None else stride
    if not 2 <= context <= llm.max_model_len:
        raise ParameterError(f"context is {context}; it must be from 2 to {llm.max_model_len}, the model's positions")
    if not 1 <= stride <= context:
        raise ParameterError(f"stride is {stride}; it must be from 1 to the context, {context}")
    if len(token_ids) < 2:
        raise ParameterError(f"the text has {len(token_ids)} tokens; one is predicted from another: give it 2 or more")
    planned = list(windows(len(token_ids), context, stride))
    nats: list[float] = []
    num_bytes = 0
    start = time.perf_counter()
    with ThreadPoolExecutor(llm.config.threads or default_threads(), "nvg-softmax") as pool:
        for number, window in enumerate(planned, 1):
            logits = llm.logits(token_ids[window.begin : window.end])
            targets = token_ids[window.first : window.end]
            rows = logits[window.first - window.begin - 1 : window.end - window.begin - 1]
            parts = [slice(i, i + _ROWS) for i in range(0, len(targets), _ROWS)]
            for some in pool.map(_nats, [rows[part] for part in parts], [targets[part] for part in parts]):
                nats.extend(some)
            if any(map(math.isnan, nats[-len(targets) :])):
                raise EngineError(
                    f"the model left NaN among tokens {window.begin} to {window.end - 1}; its weights may be damaged"
                )
            num_bytes += sum(len(llm.tokenizer.token_bytes(token_id)) for token_id in targets)
            if progress is not None:
                progress(number, len(planned), math.fsum(nats) / len(nats))
    seconds = time.perf_counter() - start
    total = math.fsum(nats)
    return Perplexity(
        nats_per_token=total / len(nats),
        bits_per_byte=total / math.log(2) / num_bytes,
        tokens=len(nats),
        bytes=num_bytes,
        windows=len(planned),
        seconds=seconds,
    )


def _nats(rows: Float32, targets: Sequence[int]) -> list[float]:
    """-ln of the probability that each row of logits (T, V) gives to its target."""
    nats = []
    for row, target in zip(rows, targets, strict=True):
        values = row.astype(np.float64)
        values -= values.max()
        of_target = float(values[target])
        np.exp(values, out=values)  # NumPy's vector code takes a third of the time of nvg.sampling.math.log_sum_exp
        nats.append(math.log(float(values.sum())) - of_target)
    return nats
