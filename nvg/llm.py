"""LLM, the Python API: joins names to objects (directory, runner, tokenizer, samplers) and callers to the engine."""

from __future__ import annotations

import sys
import time
import weakref
from _thread import start_new_thread
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from nvg import hub
from nvg.engine import drawing
from nvg.engine.engine import Engine
from nvg.engine.loop import StepLoop
from nvg.engine.sequence import Request, Sink
from nvg.engine.stats import EngineStats
from nvg.engine.thread import EngineThread
from nvg.errors import CheckpointError, ParameterError
from nvg.model.checkpoint import Checkpoint
from nvg.model.contract import Float32, ModelRunner
from nvg.model.generation import GenerationDefaults, read_generation_defaults
from nvg.params import EngineConfig, Piece, RequestOutput, SamplingParams
from nvg.plugins import registry, unknown_name
from nvg.progress import Progress
from nvg.prompts import Prompt, given_params, pair, text_or_ids
from nvg.runtime.compile_cache import CompileStep, prepare
from nvg.runtime.interrupts import HeldInterrupt
from nvg.runtime.kernel_store import Report
from nvg.sampling.compose import SHORTCUTS, compose, own_chain, resolve
from nvg.sampling.random import new_seed
from nvg.tokenizers.contract import Tokenizer
from nvg.tokenizers.prompt import encode_whole


def report_to_stderr(line: str) -> None:
    """Where lines about compiling and loading go unless the caller says otherwise."""
    if sys.stderr is not None:
        print(f"nvg: {line}", file=sys.stderr, flush=True)


class LLM:
    """A loaded model. Thread-safe; close it, or use it in a `with`; left open it does not keep a program from ending.

    `LLM(model="tales", dtype="float32", ...)` takes the fields of EngineConfig. `report` gets lines about what takes
    time (kernels are compiled once per machine); by default they go to stderr.

    Raises ModelNotFoundError, CheckpointError, UnknownNameError, PluginError, ParameterError.
    """

    def __init__(self, model: str = EngineConfig.model, *, report: Report = report_to_stderr, **options: Any) -> None:
        start = time.perf_counter()
        known = [field.name for field in fields(EngineConfig)]
        for name in options:
            if name not in known:
                raise unknown_name("option of LLM", name, known)
        config = EngineConfig(model=model, **options)
        directory = hub.resolve_model(config.model)
        tokenizer = registry().tokenizers.load(config.tokenizer or "gpt2").from_dir(directory)
        with Checkpoint(directory) as checkpoint:
            for line in checkpoint.warnings:
                report(line)
            if tokenizer.vocab_size > checkpoint.config.vocab_size:
                raise CheckpointError(
                    f"{directory}: the tokenizer has {tokenizer.vocab_size} ids, the weights have rows for "
                    f"{checkpoint.config.vocab_size}: they belong to different models"
                )
            model_class = registry().models.load(checkpoint.config.model_type)
            _compile_together(model_class, config, report)
            runner = model_class.from_checkpoint(checkpoint.config, checkpoint, config, report)
        self._directory: Path | None = directory
        self._start(config, runner, tokenizer)
        self.load_s = time.perf_counter() - start

    @classmethod
    def from_components(cls, config: EngineConfig, runner: ModelRunner, tokenizer: Tokenizer) -> LLM:
        """An LLM of one's own parts; the runner belongs to the LLM from now on.

        Raises ParameterError for what is no such part.
        """
        if not isinstance(config, EngineConfig):
            raise ParameterError(f"config is {config!r}; it must be an EngineConfig")
        for name, part, method in (("runner", runner, "execute"), ("tokenizer", tokenizer, "encode")):
            if not callable(getattr(part, method, None)):
                raise ParameterError(f"{name} is {part!r}; it must be an object with the methods of a {name}")
        try:
            prepare(_missing_sampling_steps(), what="sampling kernels", about_s=6)
        except BaseException:
            runner.close()
            raise
        llm = cls.__new__(cls)
        llm._directory = None
        llm._start(config, runner, tokenizer)
        llm.load_s = 0.0
        return llm

    def _start(self, config: EngineConfig, runner: ModelRunner, tokenizer: Tokenizer) -> None:
        self.config = config
        self.tokenizer = tokenizer
        try:
            self._engine = Engine(config, runner, tokenizer)
        except BaseException:
            runner.close()
            raise
        self._thread = EngineThread(self._engine)
        self._loop: StepLoop | None = None
        self._dropped = weakref.finalize(self, _close_elsewhere, self._thread)
        self._dropped.atexit = False  # daemon threads end with the process; waiting for them could only delay it

    @property
    def stats(self) -> EngineStats:
        """Totals of tokens and seconds since loading."""
        return self._engine.stats

    @property
    def max_model_len(self) -> int:
        """Most tokens of prompt and output together."""
        return self._engine.max_model_len

    def default_params(self, **changes: Any) -> SamplingParams:
        """The model's own defaults (generation_config.json, then config.json) and over them `changes`, fields of
        SamplingParams.

        They are used where they are asked for: without `params`, generate and stream take SamplingParams(). What
        `nvg generate` adds to them, its default chain, is not in it. Raises CheckpointError for a value that is outside
        its range in those files, ParameterError for one in `changes`.
        """
        defaults = GenerationDefaults() if self._directory is None else read_generation_defaults(self._directory)
        if "sampler" in changes:  # then the chain's defaults go with the chain
            own = {name: value for name, value in defaults.params.items() if name not in SHORTCUTS}
            return SamplingParams(**{**own, **changes})
        params = SamplingParams(**{**defaults.params, **changes})
        return compose(params, own_chain({}, defaults.stages)) if defaults.stages else params

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
    ) -> list[RequestOutput]:
        """Continue each prompt (a text or token ids); outputs are in the prompts' order.

        `params`: one for all, or one for each. `progress` shows a bar, with prefill and decode tok/s, on stderr.
        Raises ParameterError before any work, naming the prompt's index; a later fault of one request, such as a
        sampler that raises, is that output's `finish_reason` "error" and `.error`. Ctrl-C ends what is unfinished, with
        `finish_reason` "aborted" and the tokens so far, and all outputs are returned; pressed again it raises.
        """
        if not isinstance(progress, bool):
            raise ParameterError(f"progress is {progress!r}; it must be True or False")
        ended: SimpleQueue[int] = SimpleQueue()

        def sink(number: int) -> Sink:
            return lambda piece: ended.put(number) if piece.finish_reason else None

        def look(number: int) -> None:
            """Count a request if all of its choices have ended."""
            sequences = requests[number].sequences
            if number in left and all(sequence.finish_reason for sequence in sequences):
                left.remove(number)
                bar.add(sum(len(sequence.output_token_ids) for sequence in sequences))

        def tick() -> None:
            bar.tick()
            for number in sorted(left):  # Ctrl-C may have come when a number was taken out and nobody looked
                look(number)
            if not left:
                ended.put(0)  # which ends the wait

        def wait() -> None:
            while left:
                look(_get(ended, tick))

        with HeldInterrupt() as interrupt:
            requests = self._requests(prompts, params, sink)
            left = set(range(len(requests)))
            for request in requests:
                request.is_watched = False
            self._thread.start()
            with Progress(len(requests), self.stats, enabled=progress) as bar:
                try:
                    interrupt.deliver()
                    self._thread.submit(requests)
                    wait()
                except KeyboardInterrupt:
                    self._thread.abort(requests)
                    wait()
                except BaseException:
                    self._thread.abort(requests)
                    raise
        return [request.output() for request in requests]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Stream:
        """Continue one prompt, a piece for each token as it comes; pieces of n > 1 choices are interleaved.

        Raises ParameterError before any work. A stream that is forgotten before its end ends the request: that of
        `for piece in llm.stream(...)` when the loop is left. One that has a name is closed by `close` or `with`.
        """
        pieces: SimpleQueue[Piece | None] = SimpleQueue()
        request = self._request(prompt, given_params(params), pieces.put)
        self._thread.submit([request])
        return Stream(request, pieces, self._thread)

    @property
    def engine(self) -> StepLoop:
        """The engine for a loop of one's own: `add_request`, `step`, `is_finished`, `abort`. Not thread-safe.

        An LLM whose generate, stream or logits was called has a thread that makes the steps: then these raise
        EngineError, and those do once a request was added here.
        """
        if self._loop is None:
            self._loop = StepLoop(self._engine, self._request, self._thread.claim_loop)
        return self._loop

    def logits(self, token_ids: Sequence[int]) -> Float32:
        """The model's logits at every position, float32 (T, V), unmasked, without any cache.

        Raises ParameterError unless there are 1 to max_model_len ids of the vocabulary.
        """
        self._thread.check_process()
        given = text_or_ids(token_ids)
        if isinstance(given, str):
            raise ParameterError(f"logits of {given[:40]!r}; it takes token ids, as tokenizer.encode gives them")
        logits: Float32 = self._thread.logits(given)
        return logits

    def close(self) -> None:
        """End what runs and free threads and memory."""
        self._dropped.detach()
        self._thread.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _requests(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
        sink: Callable[[int], Sink],
    ) -> list[Request]:
        """A request for each prompt; its number decides its sink."""
        listed, all_params = pair(prompts, params)
        requests = []
        for number, (prompt, one) in enumerate(zip(listed, all_params, strict=True)):
            try:
                requests.append(self._request(prompt, one, sink(number)))
            except ParameterError as error:
                where = f"prompt {number}: " if len(listed) > 1 else ""
                raise type(error)(f"{where}{error}") from None
        return requests

    def _request(self, prompt: Prompt, params: SamplingParams, sink: Sink) -> Request:
        self._thread.check_process()
        given = text_or_ids(prompt)
        text = given if isinstance(given, str) else None
        token_ids = self._token_ids(given)
        seed = new_seed() if params.seed is None else params.seed
        request = Request(text, token_ids, params, seed, resolve(params), sink)
        if params.is_guided:
            negative = params.negative_prompt
            request.negative_token_ids = token_ids[-1:] if negative is None else self._token_ids(text_or_ids(negative))
        self._engine.check(request)
        return request

    def _token_ids(self, given: str | list[int]) -> list[int]:
        """The tokens to begin from."""
        token_ids = encode_whole(self.tokenizer, given) if isinstance(given, str) else given
        if not token_ids:
            if not self.tokenizer.eos_token_ids:
                raise ParameterError("the prompt is empty and the tokenizer has no end-of-text token to begin from")
            token_ids = [self.tokenizer.eos_token_ids[0]]
        return token_ids


def _missing_sampling_steps() -> list[CompileStep]:
    """Only what is missing: of what is on disk a chain loads the few that it uses, when it first does."""
    return [step for step in drawing.compile_steps() if not step.is_cached()]


def _compile_together(model_class: Any, config: EngineConfig, report: Report) -> None:
    """Compile what is missing for sampling, and with it, because two cores then share both, what the model's own
    `compile_steps` lists."""
    if missing := _missing_sampling_steps():
        model_steps = model_class.compile_steps(config) if hasattr(model_class, "compile_steps") else []
        prepare([*model_steps, *missing], report)


def _close_elsewhere(thread: EngineThread) -> None:
    """Close in a new thread: garbage is found in any thread at any moment, also in one that closing would wait for."""
    start_new_thread(thread.close, ())  # `threading`'s own locks may be what that one is about to give back


class RequestStream:
    """What streams of one request have in common. The pieces come through a queue, in which None says that there are no
    more, to each of those who share the stream. put: the queue's, which does not wait."""

    def __init__(self, request: Request, put: Callable[[Piece | None], None], thread: EngineThread) -> None:
        self._request = request
        self._put = put
        self._thread = thread
        self._left = request.params.n

    @property
    def prompt_token_ids(self) -> list[int]:
        """The prompt as tokens."""
        return self._request.prompt_token_ids

    @property
    def seed(self) -> int:
        """The request's seed, drawn where none was given."""
        return self._request.seed

    @property
    def num_cached_tokens(self) -> int:
        """Tokens of the prompt that the prefix cache had; known when the first piece is there."""
        return self._request.num_cached_tokens

    def _took(self, piece: Piece | None) -> Piece | None:
        """What came out of the queue; None at the stream's end."""
        if piece is None:
            self._put(None)  # for the next one who waits
        elif piece.finish_reason is not None and self._left:
            self._left -= 1
            if not self._left:
                self._put(None)
        return piece

    def close(self) -> None:
        """End the request."""
        if self._left:
            self._left = 0
            self._put(None)
            self._thread.abort([self._request])

    def __del__(self) -> None:
        self.close()


class Stream(RequestStream):
    """An iterator over the pieces of one request, for one consumer or for several that share them.

    Closed, or forgotten, before the end it ends the request; a `with` closes it.
    """

    def __init__(self, request: Request, pieces: SimpleQueue[Piece | None], thread: EngineThread) -> None:
        super().__init__(request, pieces.put, thread)
        self._pieces = pieces

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        if not self._left:
            raise StopIteration
        self._thread.check_caller()
        try:
            piece = self._took(_get(self._pieces))
        except BaseException:
            self.close()
            raise
        if piece is None:
            raise StopIteration
        return piece

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _get(pieces: SimpleQueue[Any], tick: Callable[[], None] = lambda: None) -> Any:
    """The next item; waits in short turns, because not every platform lets Ctrl-C end a long one. `tick` is called
    after each."""
    while True:
        try:
            return pieces.get(timeout=0.2)
        except Empty:
            tick()
