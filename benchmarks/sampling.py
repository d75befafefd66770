"""Microseconds from a row of logits to a token, beside transformers' logits processors and llama.cpp's sampler chain.

    python benchmarks/sampling.py

Rows are random: `peaked` as a trained model's (most of the probability on some hundreds of tokens), `flat` as random
weights give them (tens of thousands of tokens in a nucleus). Each repetition has new rows, copied to where the engine
wants them before the clock starts; engines take turns on the same row, in a random order, because who follows
transformers finds the caches colder. All are in this process and on one thread. The clock covers the chain and the
draw: nvg's `Chain.sample`; transformers' processors, softmax and `torch.multinomial` (or argmax); llama.cpp's chain
with its greedy or dist sampler at the end, and the filling of its array of candidates, which `llama_sampler_sample`
does too. With `--cold` 64 MB are written before each call, so that nothing of it is in any cache: a step of a large
model leaves them like that.
"""

from __future__ import annotations

import argparse
import ctypes
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from report import Spread, facts, print_facts, print_table, write_json

from nvg.params import SamplingParams
from nvg.sampling.chain import Chain
from nvg.sampling.compose import resolve
from nvg.sampling.contract import SamplerRequest

Logits = npt.NDArray[np.float32]
Options = dict[str, float]

CHAINS: dict[str, Options] = {
    "greedy": {},
    "topk 40, topp 0.95, temperature 0.8": {"topk": 40, "topp": 0.95, "temperature": 0.8},
    "topp 0.9": {"topp": 0.9},
    "minp 0.05": {"minp": 0.05},
    "typical 0.9": {"typical": 0.9},
    "epsilon 0.0003": {"epsilon": 3e-4},
    "topnsigma 1": {"topnsigma": 1.0},
    "repetition 1.1, temperature 0.8": {"penalties": 1.1, "temperature": 0.8},
    "mirostat2 5": {"mirostat2": 5.0},
}
"""What is measured: sampler -> its option, in the order of the chain; none is greedy. An engine without the sampler is
left out."""

ROWS = {"peaked": 3.0, "flat": 1.0}
"""Kind of row -> standard deviation of its logits; a peaked one has a bonus on some tokens besides."""


_COLD_BYTES = 64_000_000


def make_row(kind: str, vocab_size: int, rng: np.random.Generator) -> Logits:
    row = rng.standard_normal(vocab_size, np.float32) * np.float32(ROWS[kind])
    if kind == "peaked":
        row[rng.integers(0, vocab_size, 200)] += np.float32(8)
    return row


class Nvg:
    """`nvg.sampling.chain.Chain`, as the engine calls it once for each token."""

    def __init__(self, options: Options, vocab_size: int) -> None:
        spec = [(name, {_option(name): value}) for name, value in options.items()]
        params = SamplingParams(sampler=spec or "greedy")
        prompt = np.arange(32, dtype=np.int32)
        request = SamplerRequest(_Tokenizer(vocab_size), vocab_size, (0,), prompt, params)
        self._chain = Chain(resolve(params), request, seed=1)
        self._prompt = prompt
        self._row = np.empty(vocab_size, np.float32)
        self._num_drawn = 0

    def set_row(self, row: Logits) -> None:
        self._row[:] = row
        self._output = np.zeros(self._num_drawn, np.int32)
        self._num_drawn += 1

    def sample(self) -> int:
        return self._chain.sample(self._row, self._prompt, self._output)[0]


class _Tokenizer:
    """As much of a tokenizer as a chain looks at."""

    eos_token_ids = (0,)

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size


def _require(known: Mapping[str, Any], options: Options) -> None:
    """Raise NotImplementedError where an engine lacks a sampler."""
    for name in options:
        if name not in known:
            raise NotImplementedError(f"has no sampler {name!r}")


def _option(name: str) -> str:
    options = {"topk": "k", "temperature": "t", "topnsigma": "n", "penalties": "repetition", "mirostat2": "tau"}
    return "epsilon" if name == "epsilon" else options.get(name, "p")


class Transformers:
    """The processors that `generate` makes of these options, one row, float32."""

    def __init__(self, options: Options, vocab_size: int) -> None:
        import torch
        import transformers

        torch.set_num_threads(1)
        torch.set_grad_enabled(False)
        self._torch = torch
        warpers = {
            "topk": lambda k: transformers.TopKLogitsWarper(int(k)),
            "topp": transformers.TopPLogitsWarper,
            "minp": transformers.MinPLogitsWarper,
            "temperature": transformers.TemperatureLogitsWarper,
            "typical": transformers.TypicalLogitsWarper,
            "epsilon": transformers.EpsilonLogitsWarper,
            "penalties": transformers.RepetitionPenaltyLogitsProcessor,
        }
        _require(warpers, options)
        self._processors = transformers.LogitsProcessorList([warpers[name](value) for name, value in options.items()])
        self._is_greedy = not options
        self._ids = torch.arange(32)[None]
        self._row = torch.empty(1, vocab_size)

    def set_row(self, row: Logits) -> None:
        self._row.copy_(self._torch.from_numpy(row)[None])

    def sample(self) -> int:
        scores = self._processors(self._ids, self._row)
        if self._is_greedy:
            return int(self._torch.argmax(scores, dim=-1))
        return int(self._torch.multinomial(self._torch.softmax(scores, dim=-1), 1))


class LlamaCpp:
    """llama.cpp's sampler chain on an array of candidates, through llama-cpp-python's low-level functions."""

    def __init__(self, options: Options, vocab_size: int) -> None:
        import llama_cpp

        self._library = llama_cpp
        self._chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        make = {
            "topk": lambda k: llama_cpp.llama_sampler_init_top_k(int(k)),
            "topp": lambda p: llama_cpp.llama_sampler_init_top_p(p, 1),
            "minp": lambda p: llama_cpp.llama_sampler_init_min_p(p, 1),
            "temperature": llama_cpp.llama_sampler_init_temp,
            "typical": lambda p: llama_cpp.llama_sampler_init_typical(p, 1),
            "topnsigma": llama_cpp.llama_sampler_init_top_n_sigma,
            "penalties": lambda r: llama_cpp.llama_sampler_init_penalties(vocab_size, 64, r, 0, 0),
            "mirostat2": lambda tau: llama_cpp.llama_sampler_init_mirostat_v2(1, tau, 0.1),
        }
        _require(make, options)
        for name, value in options.items():
            llama_cpp.llama_sampler_chain_add(self._chain, make[name](value))
        last = llama_cpp.llama_sampler_init_dist(1) if options else llama_cpp.llama_sampler_init_greedy()
        if "mirostat2" not in options:  # which draws itself
            llama_cpp.llama_sampler_chain_add(self._chain, last)
        for token_id in range(32):
            llama_cpp.llama_sampler_accept(self._chain, token_id)
        self._data = (llama_cpp.llama_token_data * vocab_size)()
        fields = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        self._fields = np.frombuffer(self._data, fields)
        self._ids = np.arange(vocab_size, dtype=np.int32)
        self._row = np.empty(vocab_size, np.float32)
        self._candidates = llama_cpp.llama_token_data_array(self._data, vocab_size, -1, False)
        self._vocab_size = vocab_size

    def set_row(self, row: Logits) -> None:
        self._row[:] = row

    def sample(self) -> int:
        self._fields["id"], self._fields["logit"], self._fields["p"] = self._ids, self._row, 0
        candidates = self._candidates
        candidates.size, candidates.selected, candidates.sorted = self._vocab_size, -1, False
        self._library.llama_sampler_apply(self._chain, ctypes.byref(candidates))
        return int(candidates.data[candidates.selected].id)


ENGINES: dict[str, Callable[[Options, int], Any]] = {
    "nvg": Nvg,
    "llama.cpp": LlamaCpp,
    "transformers": Transformers,
}


def make_engines(options: Options, vocab_size: int) -> tuple[dict[str, Any], dict[str, str]]:
    """(engines by name, what is missing by name)."""
    engines, problems = {}, {}
    for name, make in ENGINES.items():
        try:
            engines[name] = make(options, vocab_size)
        except ImportError as error:
            problems[name] = f"missing: {error}"
        except NotImplementedError:
            continue
    return engines, problems


def check(engines: dict[str, Any], row: Logits) -> None:
    """Raise RuntimeError unless all engines choose the same greedy token."""
    chosen = {}
    for name, engine in engines.items():
        engine.set_row(row)
        chosen[name] = engine.sample()
    if len(set(chosen.values())) > 1:
        raise RuntimeError(f"greedy tokens differ: {chosen}")


def measure(
    engines: dict[str, Any], kind: str, vocab_size: int, repetitions: int, cold: bool
) -> dict[str, list[float]]:
    """Microseconds of each repetition, after two that do not count, by engine."""
    rng = np.random.default_rng(3)
    elsewhere = np.zeros(_COLD_BYTES // 4 if cold else 0, np.float32)
    times: dict[str, list[float]] = {name: [] for name in engines}
    names = list(engines)
    for repetition in range(-2, repetitions):
        row = make_row(kind, vocab_size, rng)
        for name in rng.permutation(names):
            elsewhere += 1
            engines[name].set_row(row)
            start = time.perf_counter()
            engines[name].sample()
            seconds = time.perf_counter() - start
            if repetition >= 0:
                times[name].append(seconds * 1e6)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--vocab-size", type=int, default=50257, help="default: %(default)s")
    parser.add_argument("--repetitions", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--cold", action="store_true", help="with nothing in the caches")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    args = parser.parse_args()
    for name in ("vocab_size", "repetitions"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(args, name)}; it must be at least 1")
    machine = facts()
    print_facts(machine)
    measured: dict[str, dict[str, dict[str, list[float]]]] = {}
    problems: dict[str, str] = {}
    table = [["chain", "row", "engine", "us a row", "times nvg's"]]
    for chain, options in CHAINS.items():
        engines, problems = make_engines(options, args.vocab_size)
        if not options:
            check(engines, make_row("flat", args.vocab_size, np.random.default_rng(0)))
        measured[chain] = {}
        for kind in ROWS:
            times = measured[chain][kind] = measure(engines, kind, args.vocab_size, args.repetitions, args.cold)
            for name, values in times.items():
                ratio = Spread.of_ratios(values, times["nvg"]).text(1) if name != "nvg" else ""
                table.append([chain, kind, name, Spread.of(values).text(0), ratio])
    print_table(table)
    for name, problem in problems.items():
        print(f"{name} {problem}")
    write_json(args.json, {"machine": machine, "cold": args.cold, "us": measured, "problems": problems})


if __name__ == "__main__":
    main()
