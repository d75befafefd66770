"""The step loop: schedule -> run -> sample -> append."""

from __future__ import annotations

import time
from collections.abc import Sequence as Listed
from dataclasses import dataclass

import numpy as np

from nvg.engine.blocks import BlockPool
from nvg.engine.scheduler import Scheduler, Share
from nvg.engine.sequence import Request, Sequence
from nvg.errors import EngineError, NvgError, ParameterError, SamplerError
from nvg.model.contract import Batch, Float32, ModelRunner
from nvg.params import EngineConfig, FinishReason, TokenLogprobs
from nvg.runtime.cores import available_memory
from nvg.sampling.chain import Chain
from nvg.sampling.contract import SamplerRequest
from nvg.tokenizers.contract import Tokenizer
from nvg.tokenizers.stream import TextStream


@dataclass
class EngineStats:
    """Totals since the engine began. A step that prefills counts as prefill; one that only decodes, as decode."""

    prefill_tokens: int = 0
    prefill_s: float = 0.0
    decode_tokens: int = 0
    decode_s: float = 0.0
    steps: int = 0

    def count(self, num_tokens: int, only_decodes: bool, seconds: float) -> None:
        """Add a step."""
        self.steps += 1
        if only_decodes:
            self.decode_tokens += num_tokens
            self.decode_s += seconds
        else:
            self.prefill_tokens += num_tokens
            self.prefill_s += seconds

    @property
    def prefill_tok_s(self) -> float | None:
        """Prompt tokens a second, sampling included; None before the first."""
        return self.prefill_tokens / self.prefill_s if self.prefill_s else None

    @property
    def decode_tok_s(self) -> float | None:
        """Output tokens a second over steps that only decode, all sequences together; None before the first."""
        return self.decode_tokens / self.decode_s if self.decode_s else None


class Engine:
    """Runs requests on a model runner. Not thread-safe."""

    def __init__(self, config: EngineConfig, runner: ModelRunner, tokenizer: Tokenizer) -> None:
        self.runner = runner
        self.tokenizer = tokenizer
        self.max_model_len = min(runner.max_model_len, config.max_model_len or runner.max_model_len)
        self.pool = BlockPool(_num_blocks(config, runner, self.max_model_len), config.block_size)
        runner.allocate_kv(self.pool.num_blocks, config.block_size)
        max_num_seqs = min(config.max_num_seqs, runner.max_logits_rows, runner.max_batched_tokens)
        max_batched_tokens = min(config.max_num_batched_tokens, runner.max_batched_tokens)
        self._scheduler = Scheduler(self.pool, max_num_seqs, max_batched_tokens)
        self.stats = EngineStats()

    @property
    def has_work(self) -> bool:
        """Whether any request is unfinished."""
        return self._scheduler.has_work

    def check(self, request: Request) -> None:
        """Raise ParameterError for what can be seen up front: a prompt that is too long or has impossible ids."""
        vocab_size, prompt = self.runner.vocab_size, request.prompt_token_ids
        for token_id in (*prompt, *request.params.stop_token_ids):
            if not 0 <= token_id < vocab_size:
                raise ParameterError(f"token id {token_id} is not in the vocabulary; ids are 0 to {vocab_size - 1}")
        if len(prompt) > self.max_model_len:
            raise ParameterError(
                f"the prompt has {len(prompt)} tokens, the context holds {self.max_model_len}: "
                f"shorten it by {len(prompt) - self.max_model_len}"
            )
        longest = self.pool.num_blocks * self.pool.block_size
        needed = min(self.max_model_len, len(prompt) + request.params.max_tokens)
        if needed > longest:
            raise ParameterError(
                f"the request needs {needed} KV entries, the pool holds {longest}: raise kv_memory or lower max_tokens"
            )

    def add(self, request: Request) -> None:
        """Queue a request that passed `check`; its sink gets pieces as steps are made."""
        for index in range(request.params.n):
            sequence = Sequence(request, index, self.max_model_len, TextStream(self.tokenizer, request.params.stop))
            request.sequences.append(sequence)
            self._scheduler.add(sequence)
        for sequence in request.sequences:
            try:
                sequence.chain = Chain(request.stages, self._sampler_request(sequence), request.seed, sequence.index)
            except SamplerError as error:
                self._fail(sequence, error)

    def step(self) -> None:
        """Make one step and pass on what it gave. Raises AbortedError if the runner was aborted: nothing changed."""
        shares = self._scheduler.schedule()
        if not shares:
            return
        only_decodes = all(share.decodes for share in shares)
        start = time.perf_counter()
        logits = self.runner.execute(self._batch(shares))
        row = 0
        for share in shares:
            share_completes = share.completes
            share.sequence.num_cached_tokens += share.num_tokens
            if share_completes:
                if share.sequence.is_full:  # max_tokens is 0, or the prompt fills the context
                    self._finish(share.sequence, "length", "", 0)
                else:
                    try:
                        self._sample(share.sequence, logits[row])
                    except NvgError as error:
                        self._fail(share.sequence, error)
                    row += 1
        self.stats.count(sum(share.num_tokens for share in shares), only_decodes, time.perf_counter() - start)

    def abort(self, request: Request, reason: FinishReason = "aborted", error: str | None = None) -> None:
        """End what is unfinished of a request."""
        for sequence in request.sequences:
            if sequence.finish_reason is None:
                sequence.error = error
                self._finish(sequence, reason, sequence.text.finish(), 0)

    def abort_all(self, reason: FinishReason, error: str | None = None) -> None:
        """End every unfinished request."""
        for sequence in self._scheduler.sequences:
            self.abort(sequence.request, reason, error)

    def logits(self, token_ids: Listed[int]) -> Float32 | None:
        """Unmasked logits (T, V) at every position, run at once, apart from the requests.

        None if the pool has no room for it now. Raises ParameterError for ids or a length that can't be.
        """
        num_tokens, vocab_size = len(token_ids), self.runner.vocab_size
        if not 0 < num_tokens <= self.max_model_len:
            raise ParameterError(f"logits of {num_tokens} tokens; there must be 1 to {self.max_model_len}")
        ids = np.array(token_ids, np.int64)
        if ids.min() < 0 or ids.max() >= vocab_size:
            raise ParameterError(f"token ids must be 0 to {vocab_size - 1}; they span {ids.min()} to {ids.max()}")
        if self.pool.blocks_for(num_tokens) > self.pool.num_blocks:
            raise ParameterError(f"{num_tokens} tokens do not fit the KV pool: raise kv_memory")
        blocks = self.pool.allocate(self.pool.blocks_for(num_tokens))
        if blocks is None:
            return None
        try:
            result = np.empty((num_tokens, vocab_size), np.float32)
            size = min(self.runner.max_batched_tokens, self.runner.max_logits_rows)
            for first in range(0, num_tokens, size):
                end = min(first + size, num_tokens)
                result[first:end] = self.runner.execute(
                    Batch(
                        token_ids=ids[first:end].astype(np.int32),
                        positions=np.arange(first, end, dtype=np.int32),
                        query_offsets=np.array([0, end - first], np.int32),
                        block_tables=blocks[None, :],
                        context_lens=np.array([end], np.int32),
                        logits_rows=np.arange(end - first, dtype=np.int32),
                    )
                )
            return result
        finally:
            self.pool.release(blocks)

    def _batch(self, shares: list[Share]) -> Batch:
        """The shares as the runner's flat arrays."""
        query_offsets = np.zeros(len(shares) + 1, np.int32)
        np.cumsum([share.num_tokens for share in shares], out=query_offsets[1:])
        num_tokens = int(query_offsets[-1])
        token_ids, positions = np.empty(num_tokens, np.int32), np.empty(num_tokens, np.int32)
        width = max(len(share.sequence.blocks) for share in shares if share.sequence.blocks is not None)
        block_tables = np.zeros((len(shares), width), np.int32)
        context_lens = np.empty(len(shares), np.int32)
        logits_rows = []
        for s, share in enumerate(shares):
            sequence, first = share.sequence, share.sequence.num_cached_tokens
            assert sequence.blocks is not None
            end = first + share.num_tokens
            token_ids[query_offsets[s] : query_offsets[s + 1]] = sequence.token_ids[first:end]
            positions[query_offsets[s] : query_offsets[s + 1]] = np.arange(first, end, dtype=np.int32)
            block_tables[s, : len(sequence.blocks)] = sequence.blocks
            context_lens[s] = end
            if share.completes and not sequence.is_full:
                logits_rows.append(int(query_offsets[s + 1]) - 1)
        return Batch(token_ids, positions, query_offsets, block_tables, context_lens, np.array(logits_rows, np.int32))

    def _sampler_request(self, sequence: Sequence) -> SamplerRequest:
        return SamplerRequest(
            tokenizer=self.tokenizer,
            vocab_size=min(self.runner.vocab_size, self.tokenizer.vocab_size),
            eos_token_ids=tuple(self.tokenizer.eos_token_ids),
            prompt_token_ids=sequence.prompt_token_ids,
            params=sequence.request.params,
        )

    def _sample(self, sequence: Sequence, row: Float32) -> None:
        """Draw the sequence's next token from its row of logits. Raises NvgError, which ends this sequence alone."""
        params = sequence.request.params
        row = row[: self.tokenizer.vocab_size]  # ids beyond the tokenizer's have no text
        ending = {*params.stop_token_ids, *(() if params.ignore_eos else self.tokenizer.eos_token_ids)}
        banned = ending if len(sequence.output_token_ids) < params.min_tokens else ()
        raw = row.copy() if params.logprobs is not None else None
        assert sequence.chain is not None
        token_id, _ = sequence.chain.sample(
            row, sequence.prompt_token_ids, sequence.output_token_ids, banned=sorted(banned)
        )
        sequence.append(token_id)
        if raw is not None and sequence.logprobs is not None:
            sequence.logprobs.append(_token_logprobs(raw, token_id, params.logprobs or 0))
        if token_id in ending:
            self._finish(sequence, "stop", sequence.text.finish(), 1)
            return
        text = sequence.text.push(token_id)
        if sequence.text.stopped:
            self._finish(sequence, "stop", text, 1)
        elif sequence.is_full:
            text += sequence.text.finish()  # which may find that a held back text was a stop string
            self._finish(sequence, "stop" if sequence.text.stopped else "length", text, 1)
        else:
            sequence.emit(text, 1)

    def _finish(self, sequence: Sequence, reason: FinishReason, text: str, num_token_ids: int) -> None:
        sequence.finish_reason = reason
        self._scheduler.remove(sequence)
        sequence.emit(text, num_token_ids)

    def _fail(self, sequence: Sequence, error: NvgError) -> None:
        sequence.error = str(error)
        self._finish(sequence, "error", sequence.text.finish(), 0)


def _num_blocks(config: EngineConfig, runner: ModelRunner, max_model_len: int) -> int:
    """As many blocks as max_num_seqs whole contexts need, or as the memory allows."""
    per_sequence = -(-max_model_len // config.block_size)
    wanted = per_sequence * config.max_num_seqs
    bytes_per_block = runner.bytes_per_block(config.block_size)
    memory = config.kv_memory
    if memory is None:
        memory = available_memory() // 2 or wanted * bytes_per_block
    allowed = memory // bytes_per_block
    if allowed < 1:
        raise EngineError(f"{memory} bytes of KV memory hold no block of {bytes_per_block} bytes: raise kv_memory")
    return min(wanted, allowed)


def _token_logprobs(row: Float32, token_id: int, num_top: int) -> TokenLogprobs:
    """Log-softmax of a row (V,) at the drawn id and at the num_top most probable, lowest ids first among equals."""
    values = row.astype(np.float64)
    values -= values.max()
    values -= np.log(np.exp(values).sum())
    num_top = min(num_top, len(values))
    top: list[int] = []
    if num_top:
        least = np.partition(values, -num_top)[-num_top]
        candidates = np.flatnonzero(values >= least)
        top = candidates[np.argsort(-values[candidates], kind="stable")][:num_top].tolist()
    return TokenLogprobs(token_id, float(values[token_id]), {i: float(values[i]) for i in top})
