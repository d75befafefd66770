"""What a token costs: `python -m nvg_grammar.benchmark [DIRECTORY]`, with the tokenizer of a model's directory.

Rows of random logits, in which what ends strings and texts is a little more likely, are masked, drawn from and accepted
as in a chain. Times are of `apply` and `accept` together, in microseconds a token.
"""

import statistics
import sys
import time

import numpy as np

from nvg.params import SamplingParams
from nvg.sampling.contract import SamplerRequest
from nvg.tokenizers.bpe import ByteLevelBPE
from nvg_grammar.sampler import Grammar

FORMS = {
    "an object": {
        "schema": '{"type": "object", "properties": {"name": {"type": "string", "maxLength": 40}, "age": {"type": '
        '"integer", "minimum": 0, "maximum": 150}, "alive": {"type": "boolean"}}, "required": ["name", "age"], '
        '"additionalProperties": false}'
    },
    "an array of objects": {
        "schema": '{"type": "array", "minItems": 2, "maxItems": 20, "items": {"type": "object", "properties": {"id": '
        '{"type": "integer"}, "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 5}}, "required": '
        '["id", "tags"], "additionalProperties": false}}'
    },
    "any JSON": {"schema": "true"},
    "a date": {"regex": r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])"},
    "words": {"regex": r"[A-Z][a-z]+( [a-z]+){3,40}\."},
    "a choice": {"choice": "yes,no,perhaps"},
    "arithmetic": {"lark": 'start: term (("+" | "-") term)*\nterm: NUMBER | "(" start ")"\nNUMBER: /[0-9]+/'},
}


def token_times(spec, tokenizer, vocab_size, num_tokens, seed=0):
    """Seconds of `apply` and `accept` for each of `num_tokens` tokens, over as many texts as it takes."""
    generator = np.random.Generator(np.random.PCG64(seed))
    ids = np.arange(vocab_size, dtype=np.int32)
    ending = [i for i in range(vocab_size) if tokenizer.token_bytes(i)[:1] in (b'"', b"]", b"}", b")", b".")]
    bias = np.zeros(vocab_size, np.float32)
    bias[[*ending, *tokenizer.eos_token_ids]] = 4
    request = SamplerRequest(tokenizer, vocab_size, tokenizer.eos_token_ids, ids[:1], SamplingParams())
    times = []
    while len(times) < num_tokens:
        guided = spec.start(request)
        for _ in range(200):
            logits = generator.standard_normal(vocab_size, np.float32) * 2 + bias
            start = time.perf_counter()
            guided.apply(logits, ids, State)
            applied = time.perf_counter()
            token_id = int(logits.argmax())
            accepting = time.perf_counter()
            guided.accept(token_id, 0.0)
            times.append(applied - start + time.perf_counter() - accepting)
            if token_id in tokenizer.eos_token_ids:
                break
    return times[:num_tokens]


class State:
    """What the sampler looks at."""

    step = 0


def main():
    from nvg import hub

    tokenizer = ByteLevelBPE.from_dir(sys.argv[1] if len(sys.argv) > 1 else hub.resolve_model("tales"))
    print(f"{tokenizer.vocab_size} token ids; microseconds a token")
    print(f"{'form':20} {'compile':>8} {'median':>8} {'mean':>8} {'99 %':>8} {'worst':>8}")
    for name, options in FORMS.items():
        start = time.perf_counter()
        spec = Grammar(**options)
        token_times(spec, tokenizer, tokenizer.vocab_size, 1)
        compile_s = time.perf_counter() - start
        times = sorted(1e6 * one for one in token_times(spec, tokenizer, tokenizer.vocab_size, 2000))
        shown = (statistics.median(times), statistics.fmean(times), times[int(len(times) * 0.99)], times[-1])
        print(f"{name:20} {compile_s * 1e3:6.0f}ms " + " ".join(f"{value:8.1f}" for value in shown))


if __name__ == "__main__":
    main()
