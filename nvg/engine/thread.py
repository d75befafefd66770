"""The engine's own thread: many callers, one engine.

Callers wait on queues, so Ctrl-C reaches a waiting main thread while a step runs in compiled code.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any

from nvg.engine.engine import Engine
from nvg.engine.sequence import Request
from nvg.errors import AbortedError, EngineError

Command = Callable[[], None]


class EngineThread:
    """Runs commands between steps and steps while there is work; started when first used, idle without CPU."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._commands: SimpleQueue[Command] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._process = os.getpid()
        self._fault: str | None = None

    def submit(self, request: Request) -> None:
        """Queue a request that passed `Engine.check`."""
        self._send(lambda: self._engine.add(request))

    def abort(self, request: Request) -> None:
        """End a request within a step's time, the running step included."""
        self._send(lambda: self._engine.abort(request))
        self._engine.runner.abort()

    def logits(self, token_ids: list[int]) -> Any:
        """`Engine.logits`, as soon as the pool has room."""
        future: Future[Any] = Future()

        def attempt() -> None:
            try:
                logits = self._engine.logits(token_ids)
            except Exception as error:
                future.set_exception(error)
                return
            if logits is None:
                self._commands.put(attempt)
            else:
                future.set_result(logits)

        self._send(attempt)
        try:
            return future.result()
        except KeyboardInterrupt:
            self._engine.runner.abort()
            raise

    def close(self) -> None:
        """Abort what runs and end the thread."""
        if os.getpid() != self._process:
            return  # in a forked child, which has neither the thread nor anybody who would give back its locks
        with self._lock:
            if self._closed:
                return
            self._closed = True
            thread = self._thread
        if thread is not None:
            self._commands.put(lambda: self._engine.abort_all("aborted"))
            self._engine.runner.abort()
            if thread is not threading.current_thread():
                thread.join()
        self._engine.runner.close()

    def _send(self, command: Command) -> None:
        with self._lock:
            if self._closed:
                raise EngineError("the LLM is closed; create a new one")
            if self._fault is not None:
                raise EngineError(f"the engine stopped earlier: {self._fault}")
            self._commands.put(command)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="nvg-engine", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while not self._closed and os.getpid() == self._process:  # a fork made by a sampler has no team of threads
            if not self._engine.has_work:
                self._commands.get()()
            for _ in range(self._commands.qsize()):  # not those that these commands add
                try:
                    self._commands.get_nowait()()
                except Empty:
                    break
            try:
                self._engine.step()
            except AbortedError:
                continue  # the command that says what to end is in the queue; the others' step is made again
            except BaseException as error:  # whatever it is, nobody may be left waiting
                with self._lock:
                    self._fault = f"{type(error).__name__}: {error}"
                self._engine.abort_all("error", f"the engine stopped: {self._fault}")
        self._engine.abort_all("aborted")
