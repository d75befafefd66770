"""Mirostat, version 1."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from nvg import ranges
from nvg.sampling import select
from nvg.sampling.contract import Logits, PerSequence, Sampler, SamplerRequest, State, TokenIds


@dataclass(frozen=True)
class Mirostat(PerSequence):
    """Keep the surprise of the text near tau: of a Zipf distribution fitted to the m most probable tokens, it finds the
    k whose surprise does that, and keeps k tokens (Basu, Ramachandran, Keskar and Varshney 2020, arXiv:2007.14966,
    algorithm 1). Put it last.

    As in llama.cpp, the surprise of a drawn token is that among the k; the paper's is that among all. Both are learned
    from by the same rule, mu - eta (surprise - tau), from 2 tau on.

    tau: the surprise aimed at, in bits, above 0
    eta: how fast to learn, at least 0
    m: how many tokens to fit, at least 2

        keep the k most probable,  k = ((s - 1) 2^mu / (1 - N^(1 - s)))^(1 / s),  N = the vocabulary's size,
        s = sum over i < m of a(i) ln(P(i) / P(i + 1)) / sum over i < m of a(i)^2,  a(i) = ln((i + 1) / i)

    Use it for long texts of even quality, neither dull nor wild, instead of topk, topp and temperature.
    """

    tau: float = 5.0
    eta: float = 0.1
    m: int = 100

    def __post_init__(self) -> None:
        check_target(self.tau, self.eta)
        ranges.integer("m", self.m, 2)

    def start(self, request: SamplerRequest) -> Sampler:
        return _Sequence(self, request.vocab_size)


def check_target(tau: float, eta: float) -> None:
    """Raise ParameterError unless these are a surprise to aim at and a rate of learning."""
    ranges.number("tau", tau, "above 0", 0, math.inf, open_low=True)
    ranges.number("eta", eta, ">= 0", 0, math.inf)


class Surprise:
    """What both versions remember of a sequence: `mu`, the surprise in bits that a token may have."""

    def __init__(self, tau: float, eta: float) -> None:
        self._tau = tau
        self._eta = eta
        self.mu = 2 * tau

    def accept(self, token_id: int, logprob: float) -> None:
        self.mu -= self._eta * (-logprob / math.log(2) - self._tau)


class _Sequence(Surprise):
    def __init__(self, spec: Mirostat, vocab_size: int) -> None:
        super().__init__(spec.tau, spec.eta)
        self._m = spec.m
        self._vocab_size = vocab_size

    def apply(self, logits: Logits, token_ids: TokenIds, state: State) -> None:
        m = min(self._m, select.count_candidates(logits))
        if m > 1:
            head = logits[logits >= np.float32(select.kth_largest(logits, m))]
            head = np.sort(head)[::-1][:m].astype(np.float64)
            select.keep_largest(logits, num_to_keep(head, self.mu, self._vocab_size, logits.size))


def num_to_keep(head: np.ndarray, mu: float, vocab_size: int, most: int) -> int:
    """k of the paper's algorithm 1, from 1 to `most`.

    head: float64 (m,), m > 1, the largest logits in descending order. mu: in bits.
    """
    ranks = np.log(np.arange(2, head.size + 1) / np.arange(1, head.size))
    s = float(ranks @ (head[:-1] - head[1:])) / float(ranks @ ranks)
    epsilon = s - 1
    # (1 - N^-epsilon) / epsilon, whose limit at 0 is ln N.
    scale = -math.expm1(-epsilon * math.log(vocab_size)) / epsilon if epsilon else math.log(vocab_size)
    log_power = mu * math.log(2) - math.log(scale)
    if not log_power < s * math.log(most):  # also where s is 0, and the power of 1 / s would be infinite
        return most
    return max(1, int(math.exp(max(0.0, log_power / s)))) if s else 1
