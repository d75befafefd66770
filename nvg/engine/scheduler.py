"""Who takes part in the next step: all that decode, then pieces of prompts, first come first served."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from nvg.engine.kv import KVCache
from nvg.engine.sequence import ChoiceSequence, Request, Sequence

_PREFILL_PER_DECODE = 2
"""Where many decode a step is long anyway, and slots must fill as fast as they empty."""


@dataclass(slots=True)
class Share:
    """A sequence's part of a step: its next tokens, and logits of the last `num_rows` of them."""

    sequence: Sequence
    num_tokens: int
    num_rows: int
    decodes: bool
    """Whether it is one of all those that draw a token in every step."""


@dataclass(frozen=True)
class Limits:
    """Of a step. There is a row of logits for each sequence."""

    max_num_seqs: int
    max_batched_tokens: int
    max_logits_rows: int
    max_prefill_tokens: int
    """Beside decodes whose tokens somebody waits for, unless twice the number of decodes is more."""


class Scheduler:
    """Requests that wait and requests that run, both in the order in which they came.

    A request is admitted when all of its sequences have slots and the pool has room for its prompt and for everybody
    to grow by a block. Blocks are taken as tokens need them; where there are none left, the newest request is
    preempted: it gives up its blocks and waits at the head of the queue, to be computed again. The oldest is never
    preempted for another, and fits the pool alone (`Engine.check`), so everybody's turn comes.
    """

    def __init__(self, kv: KVCache, limits: Limits) -> None:
        self._kv = kv
        self._limits = limits
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []
        self.num_preemptions = 0
        self.num_cached_tokens = 0
        """Tokens that the prefix cache had and nobody had to compute."""

    @property
    def has_work(self) -> bool:
        """Whether any request waits or runs."""
        return bool(self._waiting or self._running)

    @property
    def running(self) -> list[Request]:
        """Those that have slots, in the order in which they came."""
        return self._running

    @property
    def requests(self) -> list[Request]:
        """All that run or wait, in the order in which they came."""
        return [*self._running, *self._waiting]

    @property
    def num_running(self) -> int:
        """Sequences that have a slot."""
        return sum(len(request.live) for request in self._running)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a slot."""
        return len(self._waiting)

    def add(self, request: Request) -> None:
        """Queue a request."""
        self._waiting.append(request)

    def remove(self, sequence: ChoiceSequence) -> None:
        """Take a choice that has ended out, with its negative, wherever it is, and give up the blocks."""
        request = sequence.request
        for one in sequence.pair:
            self._kv.release(one.kv)
            request.live.remove(one)
        if not request.live:
            if request in self._running:
                self._running.remove(request)
            elif request in self._waiting:  # and not one that could not be added
                self._waiting.remove(request)

    def preempt_newest(self) -> Request | None:
        """Let the newest request that runs wait, and give up its blocks; None if none runs."""
        if not self._running:
            return None
        request = self._running.pop()
        for sequence in request.live:
            self._kv.release(sequence.kv)
        self._waiting.appendleft(request)
        self.num_preemptions += 1
        return request

    def schedule(self) -> list[Share]:
        """The next step's shares. Doing it again instead of running them changes nothing."""
        shares: list[Share] = []
        turn = 0
        while turn < len(self._running):  # whose end may be cut off meanwhile
            request = self._running[turn]
            if request.decodes and self._grow(request):
                shares += [Share(sequence, 1, _num_draws(sequence, 1), True) for sequence in request.computing]
            turn += 1
        budget = self._limits.max_batched_tokens - len(shares)
        if any(share.sequence.request.is_watched for share in shares):
            budget = min(budget, max(self._limits.max_prefill_tokens, _PREFILL_PER_DECODE * len(shares)))
        self._admit()
        self._prefill(shares, budget)
        return shares

    def _grow(self, request: Request) -> bool:
        """Get a place for one token more of each sequence, whatever newer requests lose by it; False if the request
        is itself the newest, and was preempted."""
        for sequence in request.computing:
            while not self._kv.reserve(sequence.kv, 1):
                if self.preempt_newest() is request:
                    return False
        return True

    def _admit(self) -> None:
        """Let those run that wait, while there are slots and room."""
        while self._waiting:
            request = self._waiting[0]
            if self.num_running + len(request.live) > self._limits.max_num_seqs:
                break
            num_cached_tokens = sum(self._reuse(sequence) for sequence, _ in request.prefills())
            if self._running and not self._has_room(request):
                for sequence in request.live:
                    self._kv.release(sequence.kv)
                break
            self._running.append(self._waiting.popleft())
            self.num_cached_tokens += num_cached_tokens
            if not request.is_forked:
                request.num_cached_tokens = request.live[0].kv.num_tokens

    def _has_room(self, request: Request) -> bool:
        """Whether all that run, and this request, can have their tokens in the cache and grow by a block each."""
        wanted = sum(self._num_missing_blocks(sequence) for one in self._running for sequence in one.live)
        wanted += sum(self._num_missing_blocks(sequence) for sequence in request.live)
        return wanted <= self._kv.pool.num_free

    def _num_missing_blocks(self, sequence: Sequence) -> int:
        pool, request = self._kv.pool, sequence.request
        most = min(sequence.num_window_tokens + pool.block_size, sequence.most_window_tokens)
        if request.is_forked or sequence in request.computing:
            return pool.blocks_for(most) - sequence.kv.num_blocks
        return pool.blocks_for(most) - sequence.num_window_tokens // pool.block_size  # full ones will be shared

    def _prefill(self, shares: list[Share], budget: int) -> None:
        """Add shares of those that do not decode, up to `budget` tokens."""
        more_rows = self._limits.max_logits_rows - self.num_running  # than one for each
        turn = 0
        while budget and turn < len(self._running):
            request = self._running[turn]
            turn += 1
            for sequence, num_new_tokens in [] if request.decodes else request.prefills():
                saved = self._reuse(sequence)
                self.num_cached_tokens += saved
                if not request.is_forked and sequence is request.live[0]:
                    request.num_cached_tokens += saved
                wanted = min(budget, num_new_tokens - saved)
                if sequence.needs_prompt_logits:
                    wanted = min(wanted, 1 + more_rows)
                if not wanted:
                    continue
                num_tokens = self._room_for(sequence, wanted)
                if not num_tokens:
                    return  # and none for anybody who came later
                num_rows = num_tokens if sequence.needs_prompt_logits else _num_draws(sequence, num_tokens)
                more_rows -= max(0, num_rows - 1)
                budget -= num_tokens
                shares.append(Share(sequence, num_tokens, num_rows, False))

    def _reuse(self, sequence: Sequence) -> int:
        return 0 if sequence.needs_prompt_logits else self._kv.reuse(sequence)

    def _room_for(self, sequence: Sequence, num_tokens: int) -> int:
        """Get blocks for up to `num_tokens`, if need be those of newer requests that have no part in this step yet."""
        while not (room := self._kv.reserve(sequence.kv, num_tokens)):
            newest = self._running[-1]
            if newest is sequence.request or newest.decodes:
                return 0
            self.preempt_newest()
        return room


def _num_draws(sequence: Sequence, num_tokens: int) -> int:
    """1 if a token can be drawn when these are in the cache."""
    completes = num_tokens == sequence.num_new_tokens
    return int(completes and not sequence.is_full and not sequence.fills_context)
