"""What might have come instead: other candidates of a token, continued with what is most probable after them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nvg.llm import LLM
from nvg.params import Explanation, SamplingParams, TokenLogprobs
from nvg.sampling.compose import compose

_AT_ONCE = 64


@dataclass(frozen=True)
class Branch:
    """A token that might have come at `index` of a choice's output, and what would have followed."""

    choice: int
    index: int
    token_id: int
    tokens: list[TokenLogprobs]
    """The continuation: at each place the most probable token of all (greedy, without the chain), end-of-text being
    the last."""


def alternatives(explanation: Explanation, num: int) -> list[int]:
    """The most probable candidates but the drawn one: first those that the chain left, then those that it removed
    last."""
    return [i for i in explanation.candidates if i != explanation.token_id][:num]


def grow(
    llm: LLM,
    params: SamplingParams,
    prompt_token_ids: Sequence[int],
    explanations: Sequence[Explanation],
    *,
    choice: int = 0,
    num: int = 3,
    num_tokens: int = 8,
) -> Iterator[list[Branch]]:
    """Up to `num` branches for each token of a choice, some positions at a time.

    params: what the choice was made with. A branch has up to num_tokens tokens after its first, fewer at the end of the
    context; where the context slid past its beginning there are none. Ctrl-C raises KeyboardInterrupt.
    """
    tokens = [*prompt_token_ids, *(one.token_id for one in explanations)]
    eos_token_ids = () if params.ignore_eos else llm.tokenizer.eos_token_ids
    ending = {*params.stop_token_ids, *eos_token_ids}
    greedy = dataclasses.replace(
        compose(params), sampler="greedy", n=1, min_tokens=0, stop=(), seed=0, logprobs=0, prompt_logprobs=None,
        explain=False, on_full="stop",
    )  # fmt: skip
    places = [
        (index, token_id)
        for index, explanation in enumerate(explanations)
        if len(prompt_token_ids) + index < llm.max_model_len
        for token_id in alternatives(explanation, num)
    ]
    for first in range(0, len(places), _AT_ONCE):
        some = places[first : first + _AT_ONCE]
        prompts = [[*tokens[: len(prompt_token_ids) + index], token_id] for index, token_id in some]
        lengths = [0 if token_id in ending else num_tokens for _, token_id in some]
        outputs = llm.generate(prompts, [dataclasses.replace(greedy, max_tokens=length) for length in lengths])
        if any(output.finish_reason == "aborted" for output in outputs):
            raise KeyboardInterrupt
        yield [
            Branch(choice, index, token_id, output.logprobs or [])
            for (index, token_id), output in zip(some, outputs, strict=True)
        ]
