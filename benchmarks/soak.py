"""Thousands of requests that come, are cancelled and go: memory, slots, room in the pool, the same answers at the end.

    python benchmarks/soak.py

On the embedded model, through AsyncLLM: always 200 tasks at once, each with a stream of random length, prompts that
often begin alike, one to three choices; every fourth is cancelled after a random number of pieces. In the end some of
the requests are run again alone and compared. Exits with 1 if memory grew by 2 % or more after the first tenth, KV
waste came to 4 % of the pool on average, less than 90 % of the slots were taken while work waited, a block leaked, or
an answer changed. Before it begins, every block of the pool is used once: untouched memory is not there yet.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from report import facts, known_model, print_facts, print_table, write_json

from nvg import LLM, AsyncLLM, SamplingParams
from nvg.errors import NvgError
from nvg.runtime.cores import default_threads

AT_ONCE = 200
MOST_DRIFT, MOST_WASTE, LEAST_SLOTS = 0.02, 0.04, 0.9
_LOOK_EVERY_S = 0.005
_COMPARED = 50


@dataclass
class Mean:
    """Of numbers that are not kept."""

    count: int = 0
    total: float = 0.0
    most: float = 0.0

    def add(self, value: float) -> None:
        """One more."""
        self.count += 1
        self.total += value
        self.most = max(self.most, value)

    @property
    def value(self) -> float:
        """The mean."""
        return self.total / max(self.count, 1)


@dataclass
class Watch:
    """What is seen of the engine now and then."""

    slots: Mean = field(default_factory=Mean)
    waste: Mean = field(default_factory=Mean)
    resident: list[int] = field(default_factory=list)
    """Bytes, each time that a tenth of the requests was done."""
    cancelled: int = 0
    kept: list[tuple[list[int], SamplingParams, list[list[int]]]] = field(default_factory=list)
    """Prompts, parameters and tokens of some requests that were not cancelled."""


def resident_bytes() -> int:
    """What the process has in memory now."""
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the system does not tell VmRSS")


def draw(
    rng: random.Random, beginnings: list[list[int]], vocab_size: int, number: int
) -> tuple[list[int], SamplingParams]:
    """A request by chance."""
    beginning = rng.choice(beginnings) if rng.random() < 0.5 else []
    prompt = [*beginning, *(rng.randrange(vocab_size) for _ in range(rng.randint(1, 80)))]
    params = SamplingParams(
        max_tokens=rng.randint(1, 60),
        n=rng.choice([1, 1, 1, 1, 2, 3]),
        seed=number,
        temperature=rng.choice([0.0, 0.8]),
        ignore_eos=rng.random() < 0.5,
    )
    return prompt, params


async def one(llm: AsyncLLM, rng: random.Random, watch: Watch, request: tuple[list[int], SamplingParams]) -> None:
    """Read a stream to its end, or leave it."""
    prompt, params = request
    leaves_after = rng.randint(0, 40) if rng.random() < 0.25 else None
    tokens: list[list[int]] = [[] for _ in range(params.n)]
    stream = llm.stream(prompt, params)
    left = leaves_after
    async for piece in stream:
        tokens[piece.index] += piece.token_ids
        if left is not None:
            left -= 1
            if left < 0:
                watch.cancelled += 1
                await stream.aclose()
                return
    if len(watch.kept) < _COMPARED and rng.random() < 0.02:
        watch.kept.append((prompt, params, tokens))


def touch(llm: LLM) -> None:
    """Use every block of the pool."""
    rng = random.Random(1)
    size = llm.max_model_len
    prompts = [[rng.randrange(llm.tokenizer.vocab_size) for _ in range(size)] for _ in range(llm.config.max_num_seqs)]
    llm.generate(prompts, SamplingParams(max_tokens=0))


async def look(llm: AsyncLLM, watch: Watch) -> None:
    """Count slots and waste until cancelled."""
    engine = llm.llm._engine
    size = engine.pool.num_blocks * engine.pool.block_size
    while True:
        if engine.num_waiting:
            watch.slots.add(engine.num_running / engine.max_num_seqs)
        watch.waste.add(engine.num_empty_entries / size)
        await asyncio.sleep(_LOOK_EVERY_S)


async def soak(llm: AsyncLLM, num_requests: int, watch: Watch) -> None:
    """All requests, AT_ONCE at a time."""
    rng = random.Random(0)
    vocab_size = llm.llm.tokenizer.vocab_size
    beginnings = [[rng.randrange(vocab_size) for _ in range(rng.randint(30, 150))] for _ in range(10)]
    numbers = iter(range(num_requests))
    done = 0

    async def work() -> None:
        nonlocal done
        for number in numbers:
            await one(llm, rng, watch, draw(rng, beginnings, vocab_size, number))
            done += 1
            if done % max(1, num_requests // 10) == 0:
                watch.resident.append(resident_bytes())
                print(f"{done} requests, {watch.resident[-1] / 1e6:.0f} MB", file=sys.stderr, flush=True)

    looking = asyncio.create_task(look(llm, watch))
    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    looking.cancel()


def compare(llm: LLM, watch: Watch) -> int:
    """How many of the kept requests give other tokens now."""
    changed = 0
    for prompt, params, tokens in watch.kept:
        output = llm.generate([prompt], params)[0]
        changed += [choice.token_ids for choice in output.outputs] != tokens
    return changed


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--model", type=known_model, default="tales", help="a model's name or directory (default: %(default)s)"
    )
    parser.add_argument("--dtype", default="float32", help="default: %(default)s")
    parser.add_argument("--requests", type=int, default=10_000, help="10 or more (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=default_threads(), help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    args = parser.parse_args()
    if args.requests < 10:
        parser.error(f"--requests is {args.requests}; it must be at least 10")
    return args


def main() -> int:
    args = parse()
    machine = facts()
    print_facts(machine)
    watch = Watch()
    with LLM(args.model, dtype=args.dtype, threads=args.threads) as llm:
        touch(llm)
        start = time.perf_counter()
        asyncio.run(soak(AsyncLLM.from_llm(llm), args.requests, watch))
        seconds = time.perf_counter() - start
        while llm._engine.has_work:  # the last that were cancelled
            time.sleep(0.01)
        leaked = llm._engine.pool.num_blocks - llm._engine.pool.num_free
        stats = vars(llm.stats).copy()
        changed = compare(llm, watch)
    drift = watch.resident[-1] / watch.resident[0] - 1
    numbers: dict[str, Any] = {
        "requests": args.requests,
        "cancelled": watch.cancelled,
        "seconds": seconds,
        "tokens a second": (stats["prefill_tokens"] + stats["decode_tokens"]) / seconds,
        "tokens from the prefix cache": stats["cached_tokens"],
        "preemptions": stats["preemptions"],
        "resident after each tenth, MB": [round(size / 1e6, 1) for size in watch.resident],
        "drift of resident memory": drift,
        "slots taken while work waited": watch.slots.value,
        "KV waste, of the pool": watch.waste.value,
        "most KV waste": watch.waste.most,
        "blocks that leaked": leaked,
        "compared with themselves alone": len(watch.kept),
        "that gave something else": changed,
    }
    print_table([[name, f"{value:.4f}" if isinstance(value, float) else str(value)] for name, value in numbers.items()])
    write_json(args.json, {"machine": machine, "dtype": args.dtype, "threads": args.threads, **numbers})
    is_good = drift < MOST_DRIFT and watch.slots.value > LEAST_SLOTS and watch.waste.value < MOST_WASTE
    return 0 if is_good and not leaked and not changed else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except NvgError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
