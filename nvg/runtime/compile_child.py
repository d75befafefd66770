"""What the process of `nvg.runtime.compile_helper` runs. Imports nothing but nvg's own modules and what they need.

Reads lines of JSON from stdin: the `store_key` of the process that asks, then requests; a list to be searched for
modules came before. Writes `READY` when it waits for a request, having kept what the one before was for. It ends at
once when stdin does.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any, NamedTuple

from nvg.runtime import cpu
from nvg.runtime.kernel_store import sources_digest, store

READY = b"ready\n"


class Request(NamedTuple):
    """To compile the step called `name` of those that `compile_steps(*arguments)` of a module lists."""

    module: str
    arguments: Sequence[Any]
    name: str


def store_key() -> list[Any]:
    """What two processes must agree on, so that one finds what the other compiled: JSON."""
    triple, name, on = cpu.target()
    return [sources_digest(), str(store.directory), triple, name, sorted(on), repr(cpu.features())]


def main() -> None:
    """Do it."""
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is meant for all; compiled code would not notice it
    answers = os.dup(1)
    os.dup2(2, 1)  # what anything prints is no answer
    messages: SimpleQueue[Any] = SimpleQueue()
    threading.Thread(target=_listen, args=(messages,), daemon=True).start()
    try:
        if messages.get() == store_key():
            with store.required():
                while True:
                    os.write(answers, READY)
                    _compile(Request(*messages.get()))
    finally:
        os._exit(1)  # without waiting for the other thread, which reads


def _compile(request: Request) -> None:
    steps = importlib.import_module(request.module).compile_steps(*request.arguments)
    next(step for step in steps if step.name == request.name).compile()


def _listen(messages: SimpleQueue[Any]) -> None:
    """Pass on what is read; end the process, whatever it does, when nothing will come any more."""
    try:
        for line in sys.stdin.buffer:
            messages.put(json.loads(line))
    finally:
        os._exit(0)
