"""The engine in the caller's own loop."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

from nvg.engine.engine import Engine
from nvg.engine.sequence import Request, Sink
from nvg.errors import AbortedError, EngineError, ParameterError, cause
from nvg.params import Piece, RequestOutput, SamplingParams
from nvg.prompts import given_params
from nvg.runtime.interrupts import HeldInterrupt


class StepLoop:
    """Requests are added, steps are made, outputs come as requests end. Not thread-safe.

        ids = {llm.engine.add_request(prompt, params): prompt for prompt in prompts}
        while not llm.engine.is_finished():
            for request_id, output in llm.engine.step():
                print(ids[request_id], output.text)

    An LLM is used either in this way or by its own methods; the second of both raises EngineError.
    """

    def __init__(
        self, engine: Engine, make_request: Callable[[Any, SamplingParams, Sink], Request], claim: Callable[[], None]
    ) -> None:
        """claim: raises EngineError where the engine is not the caller's."""
        self._engine = engine
        self._make_request = make_request
        self._claim = claim
        self._ids = count()
        self._requests: dict[int, Request] = {}
        self._finished: list[tuple[int, RequestOutput]] = []
        self._is_stepping = False
        self._fault: BaseException | None = None  # the first that an on_piece raised in this step

    def add_request(
        self, prompt: Any, params: SamplingParams | None = None, on_piece: Callable[[Piece], None] | None = None
    ) -> int:
        """Queue a prompt, a text or token ids; returns the request's id. `step` calls `on_piece` for each token.

        Raises ParameterError for what can't be run.
        """
        self._claim()
        if on_piece is not None and not callable(on_piece):
            raise ParameterError(f"on_piece is {on_piece!r}; it must be a function of one Piece")
        request_id = next(self._ids)
        params = given_params(params)
        left = params.n

        def sink(piece: Piece) -> None:
            nonlocal left
            left -= piece.finish_reason is not None
            if not left:
                self._finished.append((request_id, self._requests.pop(request_id).output()))
            if on_piece is not None:
                try:
                    on_piece(piece)
                except BaseException as error:
                    self._fault = self._fault or error

        request = self._make_request(prompt, params, sink)
        request.is_watched = on_piece is not None
        self._requests[request_id] = request
        self._engine.add(request)
        return request_id

    def step(self) -> list[tuple[int, RequestOutput]]:
        """Make one step; returns (id, output) of the requests that have ended since the last one.

        Raises what an `on_piece` raises, after each got its pieces, and KeyboardInterrupt for a Ctrl-C that came, when
        the step is done: the next step returns what has ended. Pressed again while a sampler does not return, or after
        a fault of the engine's own, it raises at once, and all requests end with `finish_reason` "error". Raises
        EngineError inside of a step.
        """
        self._claim()
        if self._is_stepping:
            raise EngineError("step was called inside of a step, by an on_piece or a sampler: return from there first")
        with HeldInterrupt():
            self._is_stepping = True
            try:
                self._engine.step()
            except AbortedError:
                raise
            except BaseException as error:  # in the middle of it: what is half done can't go on
                self._engine.abort_all("error", f"the step failed: {cause(error)}")
                raise
            finally:
                self._is_stepping = False
            self._raise_fault()
        finished, self._finished = self._finished, []
        return finished

    def is_finished(self) -> bool:
        """Whether there is no request whose output `step` has yet to return."""
        return not self._requests and not self._finished

    def abort(self, request_id: int) -> None:
        """End a request; the next `step` returns what it has. An id that has ended is ignored."""
        self._claim()
        if not isinstance(request_id, int):
            raise ParameterError(f"request_id is {request_id!r}; it must be one that add_request returned")
        if request_id in self._requests:
            self._engine.abort(self._requests[request_id])
            self._raise_fault()

    def _raise_fault(self) -> None:
        fault, self._fault = self._fault, None
        if fault is not None:
            raise fault
