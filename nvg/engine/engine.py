"""The step loop: schedule -> run -> sample -> append."""

from __future__ import annotations

import time
from collections.abc import Generator
from collections.abc import Sequence as Listed
from typing import cast

import numpy as np

from nvg.engine.batch import BatchBuilder
from nvg.engine.blocks import BlockPool
from nvg.engine.drawing import Drawing
from nvg.engine.kv import KVCache
from nvg.engine.output import add_prompt_logprobs, draw, take
from nvg.engine.scheduler import Limits, Scheduler, Share
from nvg.engine.sequence import ChoiceSequence, Request
from nvg.engine.sizing import num_kv_blocks
from nvg.engine.stats import EngineStats
from nvg.errors import AbortedError, NvgError, ParameterError
from nvg.model.contract import Batch, Float32, ModelRunner, TeamRunner
from nvg.params import EngineConfig, FinishReason, Piece
from nvg.sampling.logprobs import guide
from nvg.sampling.steps import BY_CHAIN
from nvg.tokenizers.contract import Tokenizer
from nvg.tokenizers.stream import TextStream

_UNNOTICED_S = 5e-3
"""Tokens may come so much later than they could and still seem to come one by one."""


class Engine:
    """Runs requests on a model runner. Not thread-safe."""

    def __init__(self, config: EngineConfig, runner: ModelRunner, tokenizer: Tokenizer) -> None:
        self.runner = runner
        self.tokenizer = tokenizer
        self.max_model_len = min(runner.max_model_len, config.max_model_len or runner.max_model_len)
        max_batched_tokens = min(config.max_num_batched_tokens, runner.max_batched_tokens)
        self.max_num_seqs = min(config.max_num_seqs, runner.max_logits_rows, max_batched_tokens)
        self._bound_of_seqs = "max_num_seqs" if self.max_num_seqs == config.max_num_seqs else "max_num_batched_tokens"
        num_blocks = num_kv_blocks(config, runner.bytes_per_block(config.block_size), self.max_model_len)
        runner.allocate_kv(num_blocks, config.block_size)
        table_width = -(-self.max_model_len // config.block_size)
        self._kv = KVCache(num_blocks, config.block_size, table_width, self._copy_block)
        limits = Limits(self.max_num_seqs, max_batched_tokens, runner.max_logits_rows, config.max_prefill_tokens)
        self._scheduler = Scheduler(self._kv, limits)
        self._batches = BatchBuilder(
            limits.max_num_seqs, limits.max_batched_tokens, limits.max_logits_rows, table_width, self.max_model_len
        )
        self._pieces: list[tuple[Request, Piece]] = []
        self._step_s = 1.0  # what the last one took
        self.stats = EngineStats()
        self._drawing: Drawing | None = None  # a runner need not have a team
        if hasattr(runner, "step_job"):
            num_ids = min(runner.vocab_size, tokenizer.vocab_size)
            self._drawing = Drawing(cast(TeamRunner, runner), num_ids, runner.max_logits_rows, self.stats)

    @property
    def pool(self) -> BlockPool:
        """The KV blocks."""
        return self._kv.pool

    @property
    def has_work(self) -> bool:
        """Whether any request is unfinished."""
        return self._scheduler.has_work

    @property
    def requests(self) -> list[Request]:
        """The unfinished requests, in the order in which they came."""
        return self._scheduler.requests

    @property
    def num_running(self) -> int:
        """Sequences that have one of the max_num_seqs slots."""
        return self._scheduler.num_running

    @property
    def num_waiting(self) -> int:
        """Requests that wait for slots."""
        return self._scheduler.num_waiting

    @property
    def num_empty_entries(self) -> int:
        """KV entries in blocks that sequences have, where no token is."""
        kvs = [sequence.kv for request in self._scheduler.running for sequence in request.live]
        return sum(kv.num_blocks * self.pool.block_size - kv.num_tokens for kv in kvs)

    def check(self, request: Request) -> None:
        """Get a request ready for `add`. Raises ParameterError for what can be seen up front: impossible ids, or what
        can never fit; and what its tokenizer raises, here and not in the middle of others' steps."""
        vocab_size, params, context = self.runner.vocab_size, request.params, self.max_model_len
        prompts = {"prompt": request.prompt_token_ids}
        if request.negative_token_ids is not None:
            prompts["negative prompt"] = request.negative_token_ids
        for name, prompt in prompts.items():
            for token_id in (min(prompt), max(prompt), *params.stop_token_ids):
                if not 0 <= token_id < vocab_size:
                    whose = "" if name == "prompt" else f"the {name}'s "
                    raise ParameterError(
                        f"{whose}token id {token_id} is not in the vocabulary; ids are 0 to {vocab_size - 1}"
                    )
        name, longest = max(((name, len(prompt)) for name, prompt in prompts.items()), key=lambda item: item[1])
        if (excess := longest - context) > 0:
            raise ParameterError(
                f"the {name} has {longest} tokens, the context holds {context}: shorten it by {excess}"
            )
        may_slide = longest + params.max_tokens > context
        if params.on_full == "error" and may_slide:
            raise ParameterError(
                f"the {name} has {longest} tokens and max_tokens is {params.max_tokens}, the context holds "
                f"{context}: lower max_tokens to {context - longest}, or set on_full to stop or slide"
            )
        if params.on_full == "slide" and context < 2:
            raise ParameterError("on_full is 'slide'; a context of one token can't slide: set it to stop or error")
        if params.num_seqs > self.max_num_seqs:
            raise ParameterError(
                f"n is {params.n}{', two sequences each with guidance' if params.is_guided else ''}; at most "
                f"{self.max_num_seqs} sequences run at once: lower n or raise {self._bound_of_seqs}"
            )
        slides, size = params.on_full == "slide" and may_slide, self.pool.block_size
        num_outputs = params.max_tokens if slides else min(params.max_tokens, context - longest)
        num_blocks = 0
        for prompt in prompts.values():
            # of a prompt's full blocks there is one for all choices, as long as their windows begin with it
            common = 0 if slides else len(prompt) // size
            own = min(context, len(prompt) + num_outputs) - common * size
            num_blocks += common + params.n * self.pool.blocks_for(own)
        if num_blocks > self.pool.num_blocks:
            raise ParameterError(
                f"the request needs {num_blocks} blocks of {size} KV entries, the pool has {self.pool.num_blocks}: "
                f"raise kv_memory or lower max_tokens{' or n' if params.n > 1 else ''}"
            )
        eos_token_ids = () if params.ignore_eos else self.tokenizer.eos_token_ids
        request.ending = frozenset((*params.stop_token_ids, *eos_token_ids))
        request.prompt_logprobs = None if params.prompt_logprobs is None else [None]
        texts = [TextStream(self.tokenizer, params.stop) for _ in range(params.n)]
        request.sequences = [
            ChoiceSequence(request, index, self.max_model_len, text) for index, text in enumerate(texts)
        ]
        request.live = [one for choice in request.sequences for one in choice.pair]

    def add(self, request: Request) -> None:
        """Queue a request that passed `check`; its sink gets pieces as steps are made."""
        self._scheduler.add(request)

    def step(self, most_steps: int = 1) -> None:
        """Make one step, or up to `most_steps` where nobody could tell the difference, and pass on what it gave. Raises
        AbortedError if the runner was aborted: nothing changed; and what a sink raises, once all have what is theirs.
        """
        start = time.perf_counter()
        shares = self._scheduler.schedule()
        if not shares:
            return
        drawing = self._drawing
        rows = [] if drawing is None else drawing.rows_of(shares)
        num_steps = 1 if most_steps == 1 or drawing is None else self._num_steps(shares, rows, most_steps)
        batch = self._batches.build(shares)
        num_tokens = len(batch.token_ids)
        scheduled = time.perf_counter()
        if drawing is not None and any(rows):
            logits, drawn = drawing.run(batch, rows, num_steps)
            num_steps = len(drawn)
            model_s = time.perf_counter() - scheduled - drawing.drawing_s
        else:
            logits, drawn = self.runner.execute(batch), None
            model_s = time.perf_counter() - scheduled
        if drawn is None or num_steps == 1:
            for share in shares:
                self._kv.advance(share.sequence, share.num_tokens)
        row = 0
        for share in shares:
            end = row + share.num_rows
            if isinstance(share.sequence, ChoiceSequence):  # a negative goes with its choice, whose rows precede it
                if drawn is not None and share.num_rows == 1 and drawn[0, row] != BY_CHAIN:
                    self._take(share.sequence, drawn[:, row].tolist())
                else:
                    self._append(share, share.sequence, logits[row:end], logits[end:])
            row = end
        self._step_s = (time.perf_counter() - scheduled) / num_steps
        decode_tokens = num_steps * sum(share.decodes for share in shares)
        prefill_tokens = num_tokens - sum(share.decodes for share in shares)
        try:
            self._deliver()
        finally:
            self.stats.count(prefill_tokens, decode_tokens, time.perf_counter() - start, model_s, num_steps)
            self.stats.cached_tokens = self._scheduler.num_cached_tokens
            self.stats.preemptions = self._scheduler.num_preemptions

    def hurry(self, hurry: bool = True) -> None:
        """Whether somebody waits for the end of the step that runs, so that no other follows it in one go; from any
        thread."""
        if self._drawing is not None:
            self._drawing.hurry(hurry)

    def _num_steps(self, shares: list[Share], rows: Listed[ChoiceSequence | None], most_steps: int) -> int:
        """How many steps can be made in one go: all draw in compiled code, who waits for single tokens does not wait
        long, a stop string is not looked for, and each has blocks for its tokens."""
        if len(rows) != len(shares) or len(shares) * self.pool.blocks_for(most_steps) > self.pool.num_free:
            return 1
        for share, sequence in zip(shares, rows, strict=True):
            if not share.decodes or sequence is None or sequence.request.params.stop:
                return 1
            if sequence.request.is_watched:
                most_steps = min(most_steps, max(1, int(_UNNOTICED_S / self._step_s)))
            most_steps = min(most_steps, sequence.num_left)
        for share in shares:
            most_steps = min(most_steps, self._kv.reserve(share.sequence.kv, most_steps))
        return most_steps

    def abort(self, request: Request, reason: FinishReason = "aborted", error: str | None = None) -> None:
        """End what is unfinished of a request."""
        self._end(request, reason, error)
        self._deliver()

    def abort_all(self, reason: FinishReason, error: str | None = None) -> None:
        """End every unfinished request."""
        for request in self.requests:
            self._end(request, reason, error)
        self._deliver()

    def logits(self, token_ids: Listed[int]) -> Generator[None, None, Float32]:
        """Run tokens apart from the requests, which can make steps whenever this yields; returns the unmasked logits
        (T, V) at every position. The newest requests make room in the pool if there is none.

        Raises ParameterError for ids or a length that can't be.
        """
        num_tokens, vocab_size = len(token_ids), self.runner.vocab_size
        if not 0 < num_tokens <= self.max_model_len:
            raise ParameterError(f"logits of {num_tokens} tokens; there must be 1 to {self.max_model_len}")
        ids = np.array(token_ids, np.int64)
        if ids.min() < 0 or ids.max() >= vocab_size:
            raise ParameterError(f"token ids must be 0 to {vocab_size - 1}; they span {ids.min()} to {ids.max()}")
        if self.pool.blocks_for(num_tokens) > self.pool.num_blocks:
            raise ParameterError(f"{num_tokens} tokens do not fit the KV pool: raise kv_memory")
        while (blocks := self.pool.allocate(self.pool.blocks_for(num_tokens))) is None:
            if self._scheduler.preempt_newest() is None:  # others like this one have it all
                yield
        try:
            result = np.empty((num_tokens, vocab_size), np.float32)
            size = min(self.runner.max_batched_tokens, self.runner.max_logits_rows)
            first = 0
            while first < num_tokens:
                end = min(first + size, num_tokens)
                batch = Batch(
                    token_ids=ids[first:end].astype(np.int32),
                    positions=np.arange(first, end, dtype=np.int32),
                    query_offsets=np.array([0, end - first], np.int32),
                    block_tables=np.array([blocks], np.int32),
                    context_lens=np.array([end], np.int32),
                    logits_rows=np.arange(end - first, dtype=np.int32),
                )
                try:
                    result[first:end] = self.runner.execute(batch)
                    first = end
                except AbortedError:  # for the sake of something else, or the caller closes this
                    pass
                if first < num_tokens:
                    yield
            return result
        finally:
            self.pool.release(blocks)

    def _copy_block(self, source: int, target: int) -> None:
        self.runner.copy_blocks(np.array([source], np.int32), np.array([target], np.int32))

    def _append(self, share: Share, sequence: ChoiceSequence, rows: Float32, next_rows: Float32) -> None:
        """Go on with a choice after its share of a step, whose logits `rows` are. `next_rows`: those of the shares that
        follow, the first of which is the choice's negative when both have all their tokens in the cache."""
        request = sequence.request
        if sequence.needs_prompt_logits:
            try:
                num_ids = self.tokenizer.vocab_size
                add_prompt_logprobs(sequence, sequence.kv.num_tokens - share.num_tokens, rows, num_ids)
            except NvgError as error:
                self._end(request, "error", str(error))
                return
        if sequence.num_new_tokens:
            return
        scale = request.params.guidance_scale
        if len(sequence.pair) > 1 and share.num_rows:
            assert scale is not None
            num_ids = min(rows.shape[1], self.tokenizer.vocab_size)
            guide(rows[-1, :num_ids], next_rows[0, :num_ids], float(scale))
        if request.is_forked:
            self._continue(sequence, rows)
            return
        request.is_forked = True
        choices = request.choices
        for choice in choices[1:]:
            for one, other in zip(sequence.pair, choice.pair, strict=True):
                self._kv.fork(one.kv, other.kv)
        for choice in choices:
            self._continue(choice, rows if choice is choices[-1] else rows[-1:].copy())

    def _take(self, sequence: ChoiceSequence, token_ids: list[int]) -> None:
        """Go on with a choice whose tokens were drawn in compiled code, one after each of the steps just made."""
        texts: list[str] = []
        reason, before, request = None, sequence.num_tokens, sequence.request
        try:
            for token_id in token_ids:
                if texts and request.is_watched:  # who gets a piece for each token
                    self._pieces.append((request, sequence.piece(texts.pop(), 1)))
                text, reason = take(sequence, token_id)
                texts.append(text)
        except NvgError as error:
            sequence.error = str(error)
        if len(token_ids) > 1:
            self._kv.advance(sequence, sequence.num_tokens - before)
        text = "".join(texts)
        if sequence.error is None:
            self._go_on(sequence, text, reason, 1 if request.is_watched else len(token_ids))
        else:
            self._finish(sequence, "error", text + sequence.text.finish(), 0)

    def _continue(self, sequence: ChoiceSequence, rows: Float32) -> None:
        """Draw a choice's next token from the last of `rows`, unless it can have none, or not from these."""
        if sequence.is_full:  # max_tokens is 0, or the prompt fills the context
            self._finish(sequence, "length", "", 0)
            return
        if not sequence.fills_context:
            try:
                text, reason = draw(sequence, rows[-1], self.tokenizer, self.stats)
            except NvgError as error:
                sequence.error = str(error)
                self._finish(sequence, "error", sequence.text.finish(), 0)
                return
            self._go_on(sequence, text, reason, 1)
        else:
            self._slide(sequence)

    def _go_on(self, sequence: ChoiceSequence, text: str, reason: FinishReason | None, num_token_ids: int) -> None:
        """After a choice got tokens, which show `text` and end it if there is a reason."""
        if reason is not None:
            self._finish(sequence, reason, text, num_token_ids)
            return
        self._pieces.append((sequence.request, sequence.piece(text, num_token_ids)))
        self._slide(sequence)

    def _slide(self, sequence: ChoiceSequence) -> None:
        if sequence.fills_context:  # and has leave to slide, or it would be full
            for one in sequence.pair:
                self._kv.release(one.kv)
                one.slide()

    def _finish(self, sequence: ChoiceSequence, reason: FinishReason, text: str, num_token_ids: int) -> None:
        sequence.finish_reason = reason
        sequence.chain = None  # whose rows are as long as the vocabulary, and a caller may keep many requests
        self._scheduler.remove(sequence)
        self._pieces.append((sequence.request, sequence.piece(text, num_token_ids)))
        sequence.let_go()

    def _end(self, request: Request, reason: FinishReason, error: str | None) -> None:
        for sequence in request.choices:
            sequence.error = error
            self._finish(sequence, reason, sequence.text.finish(), 0)

    def _deliver(self) -> None:
        """Pass on the pieces: all at once, because those who wait for them want the interpreter, too. Raises the first
        that a sink raises, after all have theirs."""
        pieces, self._pieces = self._pieces, []
        fault = None
        for request, piece in pieces:
            try:
                request.sink(piece)
            except BaseException as error:
                fault = fault or error
        for notify in {request.notify for request, _ in pieces}:
            if notify is not None:
                notify()
        if fault is not None:
            raise fault
