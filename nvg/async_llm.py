"""AsyncLLM: the same model for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Any

from nvg.engine.sequence import Request
from nvg.engine.stats import EngineStats
from nvg.engine.thread import EngineThread
from nvg.llm import LLM, RequestStream
from nvg.params import EngineConfig, Piece, RequestOutput, SamplingParams
from nvg.prompts import Prompt, given_params
from nvg.tokenizers.contract import Tokenizer


class AsyncLLM:
    """An LLM whose streams are asynchronous iterators; for any number of tasks at once.

        async with AsyncLLM("tales") as llm:
            async for piece in llm.stream("Once upon a time", SamplingParams(max_tokens=40)):
                print(piece.text, end="")

    Takes what LLM takes, and loads the model where it is made: in a server, before the event loop starts. A task that
    is cancelled while it waits for a piece ends its request before the next step, and so does one that leaves the loop
    above, because nobody has that stream any more; one that has a name is closed by `aclose` or `async with`.
    """

    def __init__(self, model: str = EngineConfig.model, **options: Any) -> None:
        self._open(LLM(model, **options))

    @classmethod
    def from_llm(cls, llm: LLM) -> AsyncLLM:
        """The same model for asyncio. Both may be used at once; closing either closes both."""
        made = cls.__new__(cls)
        made._open(llm)
        return made

    def _open(self, llm: LLM) -> None:
        self.llm = llm
        """The model's synchronous side."""
        self._post: _Post | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self.llm.tokenizer

    @property
    def max_model_len(self) -> int:
        """Most tokens of prompt and output together."""
        return self.llm.max_model_len

    @property
    def stats(self) -> EngineStats:
        """Totals of tokens and seconds since loading."""
        return self.llm.stats

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> AsyncStream:
        """Continue one prompt, a piece for each token as it comes; pieces of n > 1 choices are interleaved.

        Raises ParameterError before any work. Must be called in a running event loop.
        """
        post = self._post_office()
        box: asyncio.Queue[Piece | None] = asyncio.Queue()
        request = self.llm._request(prompt, given_params(params), lambda piece: post.put(box, piece))
        request.notify = post.send
        self.llm._thread.submit([request])
        return AsyncStream(request, box, self.llm._thread)

    async def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Continue each prompt; outputs are in the prompts' order. See LLM.generate. Cancelling it ends all of them."""
        post = self._post_office()
        box: asyncio.Queue[Piece | None] = asyncio.Queue()

        def take(piece: Piece) -> None:
            if piece.finish_reason:
                post.put(box, piece)

        requests = self.llm._requests(prompts, params, lambda number: take)
        for request in requests:
            request.notify, request.is_watched = post.send, False
        self.llm._thread.submit(requests)
        try:
            for _ in range(sum(request.params.n for request in requests)):
                await box.get()
        except BaseException:
            self.llm._thread.abort(requests)
            raise
        return [request.output() for request in requests]

    async def close(self) -> None:
        """End what runs and free threads and memory."""
        await asyncio.to_thread(self.llm.close)

    async def __aenter__(self) -> AsyncLLM:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    def _post_office(self) -> _Post:
        loop = asyncio.get_running_loop()
        if self._post is None or self._post.loop is not loop:
            self._post = _Post(loop)
        return self._post


class AsyncStream(RequestStream):
    """An asynchronous iterator over the pieces of one request, for one task or for several that share them.

    Closed, or forgotten, before the end it ends the request; an `async with` closes it.
    """

    def __init__(self, request: Request, box: asyncio.Queue[Piece | None], thread: EngineThread) -> None:
        super().__init__(request, box.put_nowait, thread)
        self._box = box

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self

    async def __anext__(self) -> Piece:
        if not self._left:
            raise StopAsyncIteration
        self._thread.check_caller()
        try:
            piece = self._took(await self._box.get())
        except BaseException:
            self.close()
            raise
        if piece is None:
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        """End the request."""
        self.close()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.close()


class _Post:
    """Carries pieces from the engine's thread to an event loop, all of a step in one go: to wake a loop costs both
    threads more than to draw a token."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._pieces: deque[tuple[asyncio.Queue[Piece | None], Piece]] = deque()

    def put(self, box: asyncio.Queue[Piece | None], piece: Piece) -> None:
        """Take a piece; on the engine's thread."""
        self._pieces.append((box, piece))

    def send(self) -> None:
        """Have what was put into boxes; on the engine's thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits
            self.loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        for _ in range(len(self._pieces)):  # what is put meanwhile is sent again
            box, piece = self._pieces.popleft()
            box.put_nowait(piece)
