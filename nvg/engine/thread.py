"""The engine's own thread: many callers, one engine.

Callers wait on queues, so Ctrl-C reaches a waiting main thread while a step runs in compiled code.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any

from nvg.engine.drawing import MOST_STEPS
from nvg.engine.engine import Engine
from nvg.engine.sequence import Request
from nvg.errors import AbortedError, EngineError, cause
from nvg.runtime.gil import GilShare

Command = Callable[[], None]
_PATIENCE_S = 5.0  # an aborted step ends within a layer's time


class EngineThread:
    """Runs commands between steps and steps while there is work; started when first used, idle without CPU."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._commands: SimpleQueue[Command] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._has_ended = False
        self._is_left_behind = False
        self._is_claimed = False
        self._process = os.getpid()
        self._fault: str | None = None
        self._computing: set[Future[Any]] = set()

    def check_process(self) -> None:
        """Raise EngineError in a forked child."""
        if os.getpid() != self._process:
            raise EngineError("this LLM was created before a fork, its threads are not here: create it in the child")

    def check_caller(self) -> None:
        """Raise EngineError in this thread itself, which would wait for what it makes."""
        if threading.current_thread() is self._thread:
            raise EngineError(
                "generate, stream or logits was called inside of a step of the same LLM, or a stream of it read there, "
                "which would wait for itself: use another LLM"
            )

    def claim_loop(self) -> None:
        """The caller makes the steps. Raises EngineError where this thread does, where all is closed, and in a fork."""
        self.check_process()
        with self._lock:
            if self._closed:
                raise EngineError("the LLM is closed; create a new one")
            if self._thread is not None:
                raise EngineError(
                    "this LLM has used generate, stream or logits, so its own thread makes its steps: "
                    "create another one for a loop of your own"
                )
            self._is_claimed = True

    def start(self) -> None:
        """Have the thread run, as whatever is sent does: starting takes its time, in which Ctrl-C may come."""
        self._send(lambda: None)

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests that passed `Engine.check`."""

        def add() -> None:
            for request in requests:
                try:
                    self._engine.add(request)
                except BaseException as error:  # whatever it is, nobody may be left waiting
                    self._engine.abort(request, "error", cause(error))

        self._send(add)

    def abort(self, requests: Sequence[Request]) -> None:
        """End requests that were submitted, before the next step. Where no other runs, the running one is cut short.

        May be called by a finaliser, in the middle of anything: takes no lock.
        """

        def end() -> None:
            for request in requests:
                self._engine.abort(request)

        self._put(end)
        if not self._computing and set(self._engine.requests).issubset(requests):
            self._engine.runner.abort()  # a step of others that begins meanwhile is made again

    def logits(self, token_ids: list[int]) -> Any:
        """`Engine.logits`, a piece between any two steps."""
        future: Future[Any] = Future()
        work = self._engine.logits(token_ids)

        def go_on() -> None:
            try:
                next(work)
            except StopIteration as done:
                self._computing.discard(future)
                future.set_result(done.value)
            except BaseException as error:
                self._computing.discard(future)
                future.set_exception(error)
            else:
                self._put(go_on)

        def begin() -> None:
            self._computing.add(future)
            go_on()

        self._send(begin)
        try:
            return future.result()
        except KeyboardInterrupt:
            self._put(work.close)
            self._engine.runner.abort()
            raise

    def close(self) -> None:
        """Abort what runs and end the thread, or leave it behind in a sampler that does not return."""
        if os.getpid() != self._process:
            return  # in a forked child, which has neither the thread nor anybody who would give back its locks
        with self._lock:
            if self._closed:
                return
            self._closed = True
            thread = self._thread
        if thread is not None:
            self._put(lambda: self._engine.abort_all("aborted"))
            self._engine.runner.abort()
            if thread is not threading.current_thread():
                thread.join(_PATIENCE_S)
            with self._lock:
                self._is_left_behind = not self._has_ended and thread is not threading.current_thread()
            if self._is_left_behind:
                return  # in a sampler that does not return; it closes the runner if it ever does
        self._engine.runner.close()

    def _put(self, command: Command) -> None:
        """Let a command be run after the step that runs."""
        self._commands.put(command)
        self._engine.hurry()

    def _send(self, command: Command) -> None:
        self.check_caller()
        with self._lock:
            if self._closed:
                raise EngineError("the LLM is closed; create a new one")
            if self._is_claimed:
                raise EngineError(
                    "this LLM's steps are made by a loop over llm.engine: create another one for generate, stream "
                    "and logits"
                )
            if self._fault is not None:
                raise EngineError(f"the engine stopped earlier: {self._fault}")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="nvg-engine", daemon=True)
                self._thread.start()
            self._put(command)

    def _run(self) -> None:
        gil = GilShare()
        while not self._closed and os.getpid() == self._process:  # a fork made by a sampler has no team of threads
            if not self._engine.has_work:
                gil.give_up()
                self._do(self._commands.get())
            self._engine.hurry(False)  # before the look at the commands: what comes after it is in a hurry again
            self._run_commands()
            gil.claim()
            try:
                self._engine.step(MOST_STEPS)
            except AbortedError:
                continue  # the command that says what to end is in the queue; the others' step is made again
            except BaseException as error:
                self._stop(error)
        gil.give_up()
        self._run_commands()
        self._engine.abort_all("aborted")
        for future in self._computing:
            future.set_exception(EngineError("the LLM was closed meanwhile"))
        with self._lock:
            self._has_ended = True
            is_left_behind = self._is_left_behind
        if is_left_behind:
            self._engine.runner.close()

    def _run_commands(self) -> None:
        for _ in range(self._commands.qsize()):  # not those that these commands add
            with contextlib.suppress(Empty):
                self._do(self._commands.get_nowait())

    def _do(self, command: Command) -> None:
        try:
            command()
        except BaseException as error:
            self._stop(error)

    def _stop(self, error: BaseException) -> None:
        """After a fault of the engine's own: whatever it is, nobody may be left waiting."""
        with self._lock:
            self._fault = cause(error)
        self._engine.abort_all("error", f"the engine stopped: {self._fault}")
