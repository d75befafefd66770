"""What goes into a request and what comes out: frozen, plain data; imports neither numpy nor numba."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from nvg.errors import ParameterError
from nvg.ranges import integer as _integer
from nvg.ranges import number as _number

FinishReason = Literal["stop", "length", "aborted", "error"]
DTYPES = ("float32", "bfloat16", "int8", "int4")
KV_DTYPES = ("float32", "bfloat16", "int8")
ON_FULL = ("stop", "error", "slide")
MAX_SEED = 2**64 - 1
MIN_BLOCK_SIZE = 32
MAX_BATCHED_TOKENS = MAX_BLOCK_SIZE = 2**16  # buffers have room for as many


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How one request is sampled and when it ends.

    The shortcuts, which come first, are unset (None) by default: with neither shortcut nor `sampler` the model's own
    distribution is drawn from, unchanged (temperature 1). Each sets an option of a stage of the chain, and without a
    `sampler` it adds the stage, in the order penalties, dry, topnsigma, topk, typical, topp, minp, xtc, temperature.

    temperature: divides the logits; 0 or more, and 0 means greedy
    top_k: keep the k most probable tokens; 0 or more, and 0 means all
    top_p: keep the smallest set of most probable tokens whose probability reaches p; above 0, up to 1, which means all
    min_p: keep tokens at least min_p times as probable as the most probable; 0 to 1, and 0 means all
    typical_p: keep the tokens whose surprise is nearest the entropy and that reach probability p; above 0, up to 1,
        which means all
    top_n_sigma: keep tokens whose logits are within n standard deviations of the largest; 0 or more, and 0 means all
    xtc_probability: how often to exclude the top choices but the least probable of them; 0 to 1, and 0 means never
    xtc_threshold: how probable a top choice is at least; 0 to 1, and above 0.5 nothing is excluded
    repetition_penalty: divides the logits above 0 of tokens among the last 64, and multiplies those below; above 0, and
        1 means off
    presence_penalty: subtracted from the logits of tokens among the last 64; any number, and 0 means off
    frequency_penalty: the same, once for each time that they came; any number, and 0 means off
    dry_multiplier: scales the penalty on tokens that would prolong a repetition; 0 or more, and 0 means off

    sampler: a chain: a name, `(name, {option: value})`, `{"name": ..., "options": {...}}`, a sampler object, or a
        sequence of these, applied in order; default None
    max_tokens: most tokens to generate; 0 or more, and 0 means prefill only; default 64
    min_tokens: end-of-text and stop ids can't be drawn before this many tokens; 0 or more; default 0
    stop: a text, or a sequence of texts, that ends the request where the earliest of them begins; they are not part of
        its text; default ()
    stop_token_ids: token ids that end the request; counted in token_ids, not shown in text; default ()
    ignore_eos: treat the end-of-text token as any other; default False
    seed: 0 to 2**64 - 1; default None, which draws one and reports it in the output
    n: how many choices to generate from the one prompt; 1 or more; default 1
    negative_prompt: with `guidance_scale`: what to steer away from, a text or token ids; default None, which is the
        prompt's last token alone, so that the text is steered towards the prompt
    guidance_scale: classifier-free guidance (Sanchez et al. 2023, arXiv:2306.17806, as in transformers): before the
        chain the logits become `n + guidance_scale * (p - n)`, p and n being the log-softmax of those that follow the
        prompt and the negative prompt, each with the same output behind it; 0, which follows the negative prompt, to
        1000; 1 means off; default None, off
    logprobs: report, for each token, its log-probability (nats) before the chain and the k most probable tokens'; 0 or
        more, and 0 reports its own alone; default None, which reports nothing
    prompt_logprobs: the same for the prompt's tokens but the first; such a prompt does not read the prefix cache;
        default None
    explain: report, for each token, what every stage of the chain did to the candidates; the tokens stay the same;
        default False
    on_full: when prompt and output fill the context: "stop" ends with "length"; "error" refuses a request that might
        come to it; "slide" goes on with the last half of the context, computed anew, because learned positions can't
        shift; default 'stop'

    Raises ParameterError (a ValueError) for a value outside its range.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    top_n_sigma: float | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    dry_multiplier: float | None = None
    sampler: Any = None
    max_tokens: int = 64
    min_tokens: int = 0
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    seed: int | None = None
    n: int = 1
    negative_prompt: str | Sequence[int] | None = None
    guidance_scale: float | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    explain: bool = False
    on_full: str = "stop"

    def __post_init__(self) -> None:
        if self.temperature is not None:
            _number("temperature", self.temperature, ">= 0 (0 means greedy)", 0, math.inf)
        if self.top_k is not None:
            _integer("top_k", self.top_k, 0)
        if self.top_p is not None:
            _number("top_p", self.top_p, "above 0 and at most 1 (1 means off)", 0, 1, open_low=True)
        if self.min_p is not None:
            _number("min_p", self.min_p, "from 0 to 1 (0 means off)", 0, 1)
        if self.typical_p is not None:
            _number("typical_p", self.typical_p, "above 0 and at most 1 (1 means off)", 0, 1, open_low=True)
        if self.top_n_sigma is not None:
            _number("top_n_sigma", self.top_n_sigma, ">= 0 (0 means off)", 0, math.inf)
        if self.xtc_probability is not None:
            _number("xtc_probability", self.xtc_probability, "from 0 to 1 (0 means off)", 0, 1)
        if self.xtc_threshold is not None:
            _number("xtc_threshold", self.xtc_threshold, "from 0 to 1 (above 0.5 means off)", 0, 1)
        if self.repetition_penalty is not None:
            _number("repetition_penalty", self.repetition_penalty, "above 0 (1 means off)", 0, math.inf, open_low=True)
        for name in ("presence_penalty", "frequency_penalty"):
            if getattr(self, name) is not None:
                _number(name, getattr(self, name), "(0 means off)", -math.inf, math.inf)
        if self.dry_multiplier is not None:
            _number("dry_multiplier", self.dry_multiplier, ">= 0 (0 means off)", 0, math.inf)
        _integer("max_tokens", self.max_tokens, 0)
        _integer("min_tokens", self.min_tokens, 0)
        _integer("n", self.n, 1)
        if self.seed is not None:
            _integer("seed", self.seed, 0, MAX_SEED)
        self._check_guidance()
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                _integer(name, getattr(self, name), 0)
        for name in ("explain", "ignore_eos"):
            if not isinstance(value := getattr(self, name), bool):
                raise ParameterError(f"{name} is {value!r}; it must be True or False")
        if self.on_full not in ON_FULL:
            raise ParameterError(f"on_full is {self.on_full!r}; it must be one of {', '.join(ON_FULL)}")
        for name in ("stop", "stop_token_ids"):
            if isinstance(value := getattr(self, name), bytes) or not isinstance(value, Sequence):
                allowed = "a text or a list of texts" if name == "stop" else "a list of token ids"
                raise ParameterError(f"{name} is {value!r}; it must be {allowed}")
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        for text in self.stop:
            if not isinstance(text, str) or not text:
                raise ParameterError(f"stop has {text!r}; each stop must be a string that is not empty")
            try:
                text.encode("utf-16", "surrogatepass").decode("utf-16")
            except UnicodeDecodeError:
                raise ParameterError(f"stop has {text!r}, with a lone surrogate; each stop must be Unicode") from None
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        for token_id in self.stop_token_ids:
            _integer("a stop token id", token_id, 0)

    def _check_guidance(self) -> None:
        scale, negative = self.guidance_scale, self.negative_prompt
        if scale is not None:
            _number("guidance_scale", scale, "from 0 to 1000 (1 means off)", 0, 1000)
        if negative is None or isinstance(negative, str):
            pass
        elif isinstance(negative, Sequence) and not isinstance(negative, bytes):
            object.__setattr__(self, "negative_prompt", tuple(negative))
            for token_id in negative:
                _integer("negative_prompt token id", token_id, 0)
        else:
            raise ParameterError(f"negative_prompt is {negative!r}; it must be a text or a sequence of token ids")
        if negative is not None and scale is None:
            raise ParameterError("negative_prompt needs guidance_scale as well, 1.5 for example (1 means off)")

    @property
    def is_guided(self) -> bool:
        """Whether each choice has a second sequence beside it, which continues the negative prompt."""
        return self.guidance_scale not in (None, 1)

    @property
    def num_seqs(self) -> int:
        """How many sequences run at once for it, of the engine's max_num_seqs."""
        return 2 * self.n if self.is_guided else self.n


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How a model is loaded and how much may run at once.

    model: a built-in model's name or the path of a Hugging Face GPT-2 directory; default 'tales'
    dtype: how matmul weights are stored: float32, bfloat16, int8 or int4; default 'float32'
    kv_dtype: how keys and values are stored: float32, bfloat16 or int8; default None, which means float32 with float32
        weights, else bfloat16
    tokenizer: name of a tokenizer plugin; default None, which takes the checkpoint's own
    threads: compute threads, 1 to 256; default None, which means the physical cores that this process may use
    max_num_seqs: most sequences in one step, 1 or more, but never more than max_num_batched_tokens; default 64
    max_num_batched_tokens: most tokens in one step, 1 to 65536; longer prompts are prefilled in pieces; default 512
    max_prefill_tokens: most tokens of prompts in a step in which others decode, or twice as many as decode if that is
        more: how long these wait for somebody else's prompt; 1 or more; where all that decode are `generate`'s, which
        waits for whole outputs, max_num_batched_tokens alone is the limit; default 16
    max_model_len: most tokens of prompt and output together, 1 or more; default None, which means, like what is more
        than that, all positions that the model has
    block_size: KV entries per block of the paged cache; a multiple of 32, up to 65536; default 32
    kv_memory: bytes for the KV cache, 1 or more; default None, which means what max_num_seqs can use, at most half of
        the free memory

    Raises ParameterError (a ValueError) for a value outside its range.
    """

    model: str = "tales"
    dtype: str = "float32"
    kv_dtype: str | None = None
    tokenizer: str | None = None
    threads: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    max_prefill_tokens: int = 16
    max_model_len: int | None = None
    block_size: int = 32
    kv_memory: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model:
            raise ParameterError(f"model is {self.model!r}; it must be a model's name or the path of its directory")
        if self.dtype not in DTYPES:
            raise ParameterError(f"dtype is {self.dtype!r}; it must be one of {', '.join(DTYPES)}")
        if self.kv_dtype not in (None, *KV_DTYPES):
            raise ParameterError(f"kv_dtype is {self.kv_dtype!r}; it must be one of {', '.join(KV_DTYPES)}")
        if self.tokenizer is not None and (not isinstance(self.tokenizer, str) or not self.tokenizer):
            raise ParameterError(f"tokenizer is {self.tokenizer!r}; it must be a tokenizer's name, or None")
        if self.threads is not None:
            _integer("threads", self.threads, 1, 256)
        _integer("max_num_seqs", self.max_num_seqs, 1)
        _integer("max_num_batched_tokens", self.max_num_batched_tokens, 1, MAX_BATCHED_TOKENS)
        _integer("max_prefill_tokens", self.max_prefill_tokens, 1)
        if self.max_model_len is not None:
            _integer("max_model_len", self.max_model_len, 1)
        _integer("block_size", self.block_size, MIN_BLOCK_SIZE, MAX_BLOCK_SIZE, f"a multiple of {MIN_BLOCK_SIZE}")
        if self.block_size % MIN_BLOCK_SIZE:
            raise ParameterError(f"block_size is {self.block_size}; it must be a multiple of {MIN_BLOCK_SIZE}")
        if self.kv_memory is not None:
            _integer("kv_memory", self.kv_memory, 1)


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probabilities (nats, log-softmax before the chain) at one output position."""

    token_id: int
    logprob: float
    top: Mapping[int, float] = field(default_factory=dict)
    """The most probable ids with their log-probabilities, most probable first."""


@dataclass(frozen=True)
class Distribution:
    """The candidates before or after a stage, and where the token that was drawn in the end stands among them."""

    num_candidates: int
    """How many can be drawn."""
    entropy: float
    """In nats; e^entropy equally probable candidates would have the same."""
    rank: int
    """The drawn token's; 1 is the most probable, and of equal ones the lowest id comes first."""
    prob: float
    """The drawn token's probability."""


@dataclass(frozen=True)
class StageRecord:
    """What one stage of the chain did to the candidates of one token."""

    name: str
    removed: float
    """The probability, before the stage, of the candidates that it removed."""
    before: Distribution
    after: Distribution
    seconds: float
    """How long the stage's `apply` took."""


@dataclass(frozen=True)
class Explanation:
    """How one token was drawn.

    Probabilities and entropies are computed in float64 from the stages' float32 logits.
    """

    token_id: int
    model: Distribution
    """The model's own, before the first stage, of the tokens that may be drawn (`min_tokens` can ban some)."""
    stages: tuple[StageRecord, ...]
    candidates: Mapping[int, tuple[float | None, ...]]
    """Probabilities of single tokens, by id: the model's, then after each stage; None from where it is removed. They
    are the ten most probable of the model and of each stage, and the drawn one; the last distribution decides their
    order, the one before it where that is equal, and so on."""


@dataclass(frozen=True)
class Choice:
    """One of a request's n continuations.

    finish_reason: "stop" (end-of-text, a stop string or a stop id), "length" (max_tokens, or the context is full),
    "aborted", or "error", which `error` tells.
    """

    index: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    logprobs: list[TokenLogprobs] | None = None
    error: str | None = None
    explanations: list[Explanation] | None = None


@dataclass(frozen=True)
class RequestOutput:
    """What a request gave. `text`, `token_ids`, `finish_reason`, `logprobs`, `explanations` and `error` are those of
    choice 0; see Choice."""

    prompt: str | None
    prompt_token_ids: list[int]
    seed: int
    outputs: list[Choice]
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    """One for each of the prompt's tokens, None for the first."""
    num_cached_tokens: int = 0
    """Tokens of the prompt that the prefix cache had."""

    @property
    def text(self) -> str:
        return self.outputs[0].text

    @property
    def token_ids(self) -> list[int]:
        return self.outputs[0].token_ids

    @property
    def finish_reason(self) -> FinishReason:
        return self.outputs[0].finish_reason

    @property
    def logprobs(self) -> list[TokenLogprobs] | None:
        return self.outputs[0].logprobs

    @property
    def explanations(self) -> list[Explanation] | None:
        return self.outputs[0].explanations

    @property
    def error(self) -> str | None:
        return self.outputs[0].error


@dataclass(frozen=True)
class Piece:
    """What one step added to one choice. `text` may be empty while a UTF-8 character or a stop string is incomplete;
    the last piece has a finish_reason."""

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None
    finish_reason: FinishReason | None
    index: int = 0
    error: str | None = None
    explanations: list[Explanation] | None = None
    """One for each of `token_ids`, where SamplingParams.explain asks for it."""
