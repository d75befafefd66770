"""The thread team: what a job, a barrier and an idle second cost, and decode while cores or the team are shared.

    python benchmarks/team.py

Decode is one sequence of a model with random weights; each repetition times all kinds of it in turns, and ratios are
within a repetition. Another process that never sleeps burns one core, and can't leave it: half of that core is left by
a fair scheduler. In bursts it works for 20 of every 100 ms.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numba
import numpy as np
from numba import carray
from report import Spread, facts, known_model, print_facts, print_table, write_json

from nvg import LLM, EngineConfig, SamplingParams
from nvg.bench.dummy import DummyCheckpoint, NumberTokenizer, dummy_config
from nvg.bench.options import DUMMY_SIZES
from nvg.errors import NvgError
from nvg.kernels.simd import int64_at
from nvg.model.runner import GPT2Runner
from nvg.params import DTYPES
from nvg.runtime import team as team_module
from nvg.runtime.compile_cache import prepare
from nvg.runtime.cores import allowed_cpus, default_threads
from nvg.runtime.team import MEETING_WORDS, PATIENCE, Team, barrier

JOBS = 2_000  # in a row
BARRIERS = 100_000
WAKES = 20
IDLE_S = 1.0

_BURN = "while True: pass"
_BURST = """
import time
while True:
    end = time.perf_counter() + 0.02
    while time.perf_counter() < end: pass
    time.sleep(0.08)
"""


def _nothing(context, thread, num_threads):
    pass


def _meet(context, thread, num_threads):
    words = carray(int64_at(context), MEETING_WORDS + 1)
    for _ in range(words[MEETING_WORDS]):
        if barrier(words, num_threads):
            return


def measure_team(num_threads: int, repetitions: int) -> dict[str, list[float]]:
    """What a bare team costs, in each repetition."""
    prepare(team_module.compile_steps())
    signature = numba.void(numba.int64, numba.int64, numba.int64)
    nothing, meet = (numba.cfunc(signature, nopython=True, nogil=True)(job) for job in (_nothing, _meet))
    words = np.zeros(MEETING_WORDS + 1, np.int64)
    words[-1] = BARRIERS
    result: dict[str, list[float]] = {"job_us": [], "barrier_ns": [], "wake_us": [], "idle_cpu_ms": []}
    team = Team(num_threads)
    try:
        for _ in range(repetitions):
            team.run(nothing.address, 0)
            start = time.perf_counter()
            for _ in range(JOBS):
                team.run(nothing.address, 0)
            result["job_us"].append((time.perf_counter() - start) / JOBS * 1e6)
            words[PATIENCE] = team.patience
            start = time.perf_counter()
            team.run(meet.address, words.ctypes.data)
            result["barrier_ns"].append((time.perf_counter() - start) / BARRIERS * 1e9)
            for _ in range(WAKES):
                time.sleep(0.02)
                start = time.perf_counter()
                team.run(nothing.address, 0)
                result["wake_us"].append((time.perf_counter() - start) * 1e6)
            busy = time.process_time()
            time.sleep(IDLE_S)
            result["idle_cpu_ms"].append((time.process_time() - busy) / IDLE_S * 1e3)
    finally:
        team.close()
    return result


def make_llm(args: argparse.Namespace, num_threads: int) -> LLM:
    """An LLM of one's own weights."""
    options = {"dtype": args.dtype, "threads": num_threads, "max_num_seqs": 1}
    if args.model:
        return LLM(args.model, **options)
    config = EngineConfig(**options)
    model_config = dummy_config(args.dummy)
    runner = GPT2Runner.from_checkpoint(model_config, DummyCheckpoint(model_config), config)
    return LLM.from_components(config, runner, NumberTokenizer(model_config.vocab_size))


class Decodes:
    """Decode rates, in tokens a second, of what takes turns."""

    def __init__(self, args: argparse.Namespace, llms: dict[str, LLM]) -> None:
        self._llms = llms
        self._params = SamplingParams(temperature=0, max_tokens=args.new_tokens, ignore_eos=True)
        self._cpus = sorted(allowed_cpus())
        self.kinds: dict[str, Callable[[], float]] = {
            "alone": lambda: self._rate("one"),
            "one thread": lambda: self._rate("one thread"),
            "two engines at once, together": lambda: self._rate("one", "other"),
        }
        if hasattr(os, "sched_setaffinity"):
            self.kinds["another process burns a core"] = lambda: self._beside(_BURN, "one")
            self.kinds["another process burns a core in bursts"] = lambda: self._beside(_BURST, "one")
            self.kinds["all threads on one core"] = lambda: self._on_one_core("one")
            self.kinds["one thread, on that core"] = lambda: self._on_one_core("one thread")

    def _rate(self, *names: str) -> float:
        """Of these LLMs together, each called from a thread of its own."""
        ready = threading.Barrier(len(names) + 1)

        def generate(llm: LLM) -> None:
            ready.wait()
            llm.generate([1], self._params)

        threads = [threading.Thread(target=generate, args=(self._llms[name],)) for name in names]
        for thread in threads:
            thread.start()
        ready.wait()
        start = time.perf_counter()
        for thread in threads:
            thread.join()
        return len(names) * self._params.max_tokens / (time.perf_counter() - start)

    def _beside(self, code: str, name: str) -> float:
        with other_process(code, self._cpus[-1]):
            return self._rate(name)

    def _on_one_core(self, name: str) -> float:
        tasks = [int(task) for task in os.listdir("/proc/self/task")]
        try:
            _pin(tasks, self._cpus[:1])
            return self._rate(name)
        finally:
            _pin(tasks, self._cpus)


def _pin(tasks: list[int], cpus: list[int]) -> None:
    """Let these threads of the process run on these CPUs only."""
    for task in tasks:
        with suppress(ProcessLookupError):  # it ended
            os.sched_setaffinity(task, cpus)


@contextmanager
def other_process(code: str, cpu: int) -> Iterator[None]:
    """A process that runs `code` on one CPU, from before the body begins."""
    code = f"import os; os.sched_setaffinity(0, [{cpu}]); print(flush=True)\n{code}"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield
    finally:
        process.kill()
        process.communicate()


def measure_decode(args: argparse.Namespace) -> dict[str, list[float]]:
    """Tokens a second of each kind, in each repetition."""
    with ExitStack() as stack:
        threads = {"one": args.threads, "other": args.threads, "one thread": 1}
        llms = {name: stack.enter_context(make_llm(args, count)) for name, count in threads.items()}
        kinds = Decodes(args, llms).kinds
        rates: dict[str, list[float]] = {name: [] for name in kinds}
        for repetition in range(args.repetitions + 1):
            for name, measure in kinds.items():
                rate = measure()
                if repetition:  # the first one warms up
                    rates[name].append(rate)
    return rates


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--dummy", choices=DUMMY_SIZES, default="gpt2", help="random weights (default: %(default)s)")
    model.add_argument("--model", type=known_model, help="a built-in model or a GPT-2 directory instead")
    parser.add_argument("--dtype", choices=DTYPES, default="int8", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=default_threads(), help="default: %(default)s")
    parser.add_argument("--new-tokens", type=int, default=100, help="each time (default: %(default)s)")
    parser.add_argument("--repetitions", type=int, default=7, help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    args = parser.parse_args()
    for name in ("threads", "new_tokens", "repetitions"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(args, name)}; it must be at least 1")
    machine = facts()
    print_facts(machine)
    costs = measure_team(args.threads, args.repetitions)
    shown = {
        "job_us": ("an empty job, of many in a row", "us", 2),
        "barrier_ns": ("a barrier", "ns", 0),
        "wake_us": ("an empty job that wakes parked threads", "us", 0),
        "idle_cpu_ms": ("CPU time of a second without jobs", "ms", 2),
    }
    print(f"{args.threads} threads; median (least-greatest)\n")
    rows = [[text, f"{Spread.of(costs[name]).text(digits)} {unit}"] for name, (text, unit, digits) in shown.items()]
    print_table(rows)
    name = args.model or f"random {args.dummy}"
    print(f"\n{name}, {args.dtype}, decode at batch 1; {args.repetitions} repetitions\n")
    rates = measure_decode(args)
    rows = [["", "tok/s", "times alone"]]
    for kind, values in rates.items():
        rows.append([kind, Spread.of(values).text(0), Spread.of_ratios(values, rates["alone"]).text(2)])
    print_table(rows)
    settings = {"model": name, **{key: getattr(args, key) for key in ("dtype", "threads", "new_tokens", "repetitions")}}
    write_json(args.json, {"machine": machine, "settings": settings, "team": costs, "decode_tok_s": rates})
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except NvgError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
