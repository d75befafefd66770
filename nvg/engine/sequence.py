"""A request and its sequences, a group that runs together: one for each of the n choices, or two with guidance."""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Listed
from dataclasses import dataclass, field

import numpy as np

from nvg.engine.kv import KVEntries
from nvg.model.contract import Int32
from nvg.params import Choice, Explanation, FinishReason, Piece, RequestOutput, SamplingParams, TokenLogprobs
from nvg.sampling.chain import Chain, Stage
from nvg.sampling.compiled import Pass
from nvg.tokenizers.stream import TextStream

Sink = Callable[[Piece], None]
_MARGIN = 64


@dataclass(eq=False)
class Request:
    """What somebody asked for: a group of sequences that are admitted, stepped and preempted together.

    `sink` gets every piece, on the engine's thread and after the step that made it; then, where one is given, `notify`
    is called, once for all requests that have the same.
    """

    prompt: str | None
    prompt_token_ids: list[int]
    params: SamplingParams
    seed: int
    stages: tuple[Stage, ...]
    sink: Sink
    notify: Callable[[], None] | None = None
    negative_token_ids: list[int] | None = None
    """The negative prompt; None without guidance."""
    sequences: list[ChoiceSequence] = field(default_factory=list)
    """One for each choice."""
    live: list[Sequence] = field(default_factory=list)
    """The sequences that have not ended, those of guidance included: each behind the choice that it is paired with."""
    is_forked: bool = False
    """Whether the choices have gone their own ways. Until then the first one alone computes the prompt."""
    ending: frozenset[int] = frozenset()
    """Token ids that end a choice."""
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    """For the prompt's tokens so far, None for the first of all; None unless they are wanted."""
    num_cached_tokens: int = 0
    """Tokens of the prompt that the prefix cache had when the request was first admitted."""
    is_watched: bool = True
    """Whether somebody waits for each of its tokens, and not just for the last one."""
    added_s: float = field(default_factory=time.perf_counter)

    @property
    def computing(self) -> Listed[Sequence]:
        """The live sequences that bring tokens of their own into the cache."""
        return self.live if self.is_forked else self.live[0].pair

    @property
    def choices(self) -> list[ChoiceSequence]:
        """The choices that have not ended."""
        return [sequence for sequence in self.sequences if sequence.finish_reason is None]

    @property
    def decodes(self) -> bool:
        """Whether each of several sequences, or of those that drew before, has just its last token to bring into the
        cache."""
        several = self.is_forked or self.negative_token_ids is not None
        return several and all(sequence.num_new_tokens == 1 for sequence in self.computing)

    def prefills(self) -> list[tuple[Sequence, int]]:
        """The sequences that have tokens to bring into the cache before all can draw together, with how many.

        A sequence that is alone brings all of its tokens and draws; of several each keeps its last one for a step in
        which all draw.
        """
        computing = self.computing
        if len(computing) == 1:
            return [(computing[0], computing[0].num_new_tokens)]
        return [(sequence, sequence.num_new_tokens - 1) for sequence in computing if sequence.num_new_tokens > 1]

    def output(self) -> RequestOutput:
        """What the finished request gave."""
        return RequestOutput(
            prompt=self.prompt,
            prompt_token_ids=self.prompt_token_ids,
            seed=self.seed,
            outputs=[sequence.choice() for sequence in self.sequences],
            prompt_logprobs=self.prompt_logprobs,
            num_cached_tokens=self.num_cached_tokens,
        )


class Sequence:
    """Tokens as they grow, and where the keys and values of their window are.

    The window is what the model sees: all tokens, or the last ones where the context slides. With guidance there are
    two of a `pair`, a choice and its negative: the same output behind two prompts. The longer one's window decides for
    both when the context is full, so that they draw, slide and end together.
    """

    def __init__(self, request: Request, prompt: list[int], max_model_len: int) -> None:
        self.request = request
        self.pair: tuple[Sequence, ...] = (self,)
        """The choice, and its negative if it has one."""
        self.num_prompt_tokens = len(prompt)
        self._context = max_model_len
        longest = max(len(prompt), len(request.prompt_token_ids), len(request.negative_token_ids or ()))
        self._shorter_by = longest - len(prompt)
        params = request.params
        slides = params.on_full == "slide"
        self.max_len = len(prompt) + (params.max_tokens if slides else min(params.max_tokens, max_model_len - longest))
        self._tokens = np.empty(min(self.max_len, len(prompt) + _MARGIN), np.int32)
        self._tokens[: len(prompt)] = prompt
        self.num_tokens = len(prompt)
        self._start = 0  # of the window
        self.kv = KVEntries()

    @property
    def window(self) -> Int32:
        """The tokens that the model sees, at positions 0, 1, ..."""
        return self._tokens[self._start : self.num_tokens]

    @property
    def num_window_tokens(self) -> int:
        return self.num_tokens - self._start

    @property
    def num_new_tokens(self) -> int:
        """Tokens of the window that are not in the KV cache yet: the whole prompt at first, then one a step."""
        return self.num_tokens - self._start - self.kv.num_tokens

    @property
    def is_full(self) -> bool:
        """Whether max_tokens or the context allows no further token."""
        return self.num_tokens >= self.max_len

    @property
    def fills_context(self) -> bool:
        """Whether the window, or the longer one of the pair, has as many tokens as the model has positions."""
        return self.num_tokens - self._start + self._shorter_by >= self._context

    @property
    def most_window_tokens(self) -> int:
        """How long the window can get."""
        return min(self._context - self._shorter_by, self.max_len - self._start)

    @property
    def needs_prompt_logits(self) -> bool:
        """Whether logits of its prompt's positions are still to be computed."""
        return False

    @property
    def num_left(self) -> int:
        """How many more tokens it can get before it is full or fills the context."""
        return min(self.max_len - self.num_tokens, self._context - self.num_window_tokens - self._shorter_by)

    def append(self, token_id: int) -> None:
        """Add an output token."""
        if self.num_tokens == len(self._tokens):
            tokens = np.empty(min(self.max_len, 2 * self.num_tokens), np.int32)
            tokens[: self.num_tokens] = self._tokens
            self._tokens = tokens
        self._tokens[self.num_tokens] = token_id
        self.num_tokens += 1

    def slide(self) -> None:
        """Let the window begin anew with the last half of the context, or stay what it is if that is less; its keys and
        values must have been given up."""
        assert not self.kv.num_blocks
        half = self._context // 2
        self._start = max(self._start, self.num_tokens - half)
        self._shorter_by = half - self.num_window_tokens


class ChoiceSequence(Sequence):
    """One choice as it grows: what draws its tokens, and what its user gets."""

    def __init__(self, request: Request, index: int, max_model_len: int, text: TextStream) -> None:
        super().__init__(request, request.prompt_token_ids, max_model_len)
        self.index = index
        if request.negative_token_ids is not None:
            negative = Sequence(request, request.negative_token_ids, max_model_len)
            self.pair = negative.pair = (self, negative)
        self.chain: Chain | None = None
        self.passes: tuple[Pass, ...] | None = None
        """What the chain does as compiled passes, once it is there and if it can be said so."""
        self.text = text
        self.logprobs: list[TokenLogprobs] | None = None if request.params.logprobs is None else []
        self.explanations: list[Explanation] | None = [] if request.params.explain else None
        self.finish_reason: FinishReason | None = None
        self.error: str | None = None
        self._shown: list[str] = []

    def let_go(self) -> None:
        """Of its request and its pair, when it has ended: circles would stay in memory until the garbage collector
        finds them."""
        for one in self.pair:
            del one.request
            one.pair = ()

    @property
    def prompt_token_ids(self) -> Int32:
        return self._tokens[: self.num_prompt_tokens]

    @property
    def output_token_ids(self) -> Int32:
        return self._tokens[self.num_prompt_tokens : self.num_tokens]

    def append(self, token_id: int) -> None:
        for one in self.pair:
            Sequence.append(one, token_id)

    @property
    def can_draw_compiled(self) -> bool:
        """Whether its next token is what compiled passes alone decide."""
        return self.passes is not None and self.num_tokens - self.num_prompt_tokens >= self.request.params.min_tokens

    @property
    def needs_prompt_logits(self) -> bool:
        reported = self.request.prompt_logprobs
        return reported is not None and len(reported) < self.num_prompt_tokens

    def piece(self, text: str, num_token_ids: int) -> Piece:
        """What a step added: some text and the last `num_token_ids` tokens."""
        self._shown.append(text)
        token_ids = self._tokens[self.num_tokens - num_token_ids : self.num_tokens].tolist()
        logprobs = self.logprobs[-1:] if self.logprobs is not None and num_token_ids else None
        explanations = self.explanations[-1:] if self.explanations is not None and num_token_ids else None
        return Piece(text, token_ids, logprobs, self.finish_reason, self.index, self.error, explanations)

    def choice(self) -> Choice:
        """The finished sequence, for its user."""
        assert self.finish_reason
        token_ids = self.output_token_ids.tolist()
        text = "".join(self._shown)
        return Choice(self.index, text, token_ids, self.finish_reason, self.logprobs, self.error, self.explanations)
