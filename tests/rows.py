"""Rows of logits, and what a sampler is given besides, for tests that compare samplers with formulas."""

import numpy as np

from nvg.params import SamplingParams
from nvg.sampling.contract import SamplerRequest


def random_rows(count, seed=0, most=80):
    """Rows of 1 to `most` logits, one in ten of 5,000: steep and flat ones, ties, all-equal ones, holes of -inf."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        size = 5000 if number % 10 == 9 else int(rng.integers(1, most + 1))
        row = rng.standard_normal(size) * rng.choice([0.01, 0.5, 2, 6]) + rng.choice([-30, 0, 100])
        kind = number % 5
        if kind == 1:
            row = np.round(row)
        elif kind == 2:
            row[rng.random(size) < 0.3] = -np.inf
            row[rng.integers(size)] = 1.5
        elif kind == 3 and number % 2:
            row[:] = 2.5
        yield row.astype(np.float32)


def log_softmax(logits):
    """In float64, nats."""
    logits = np.asarray(logits, np.float64)
    top = logits.max()
    return logits - top - np.log(np.exp(logits - top).sum())


def entropy(log_probabilities):
    left = log_probabilities[np.isfinite(log_probabilities)]
    return -(np.exp(left) * left).sum()


def read_only(ids):
    array = np.array(ids, np.int32)
    array.flags.writeable = False
    return array.view()


class State:
    """What a sampler may look at, from lists."""

    def __init__(self, prompt=(), output=(), numbers=()):
        self.prompt_token_ids = read_only(prompt)
        self.output_token_ids = read_only(output)
        self.step = len(output)
        self._numbers = iter(numbers)

    def uniform(self):
        return next(self._numbers)


class WordTokenizer:
    """Tokens are the words of a list, one id each; it splits a text greedily."""

    def __init__(self, words, eos_token_ids=()):
        self._words = [word.encode() if isinstance(word, str) else word for word in words]
        self.vocab_size = len(words)
        self.eos_token_ids = eos_token_ids

    def token_bytes(self, token_id):
        return self._words[token_id]

    def encode(self, text, *, allow_special=False):
        data, ids = text.encode(), []
        while data:
            token_id = max((i for i, word in enumerate(self._words) if data.startswith(word)), key=self._length)
            ids.append(token_id)
            data = data[self._length(token_id) :]
        return ids

    def _length(self, token_id):
        return len(self._words[token_id])


def request(vocab_size, prompt=(), tokenizer=None, eos_token_ids=()):
    tokenizer = tokenizer or WordTokenizer([f"<{i}>" for i in range(vocab_size)], eos_token_ids)
    return SamplerRequest(tokenizer, vocab_size, tuple(eos_token_ids), read_only(prompt), SamplingParams())


def left(spec, logits, state=None, token_ids=None):
    """The logits after `spec`."""
    edited = np.array(logits, np.float32)
    ids = read_only(np.arange(edited.size) if token_ids is None else token_ids)
    assert spec.apply(edited, ids, state or State()) is None
    return edited
