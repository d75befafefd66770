"""What a precision costs in quality: perplexity and distance from float32, of nvg's and of llama.cpp's.

    python benchmarks/quality.py --model tales --text FILE

The text is cut into windows of the model's context. At each token: the negative log-likelihood of the next one, the
Kullback-Leibler divergence of the distribution from float32's (each engine's own), and whether the most probable token
is the same. All run with float32 keys and values, so that weights and activations alone differ, and nvg's once more
with each other kind; llama.cpp is left out, and said to be, where it is not installed.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from report import facts, known_model, print_facts, print_table, write_json

from nvg import LLM
from nvg.errors import NvgError
from nvg.hub import resolve_model
from nvg.params import DTYPES, KV_DTYPES
from nvg.runtime.cores import default_threads

Logits = npt.NDArray[np.float32]
Compute = Callable[[list[int]], Logits]
LLAMA_CPP_KINDS = ("f32", "q8_0", "q4_0", "q4_0-pure")


def log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    """Of each row, in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return wide


def compare(windows: list[list[int]], compute: Compute, exact: list[npt.NDArray[np.float64]]) -> dict[str, float]:
    """Figures of an engine over all windows; `exact` has float32's log-probabilities, and is filled if it is empty."""
    nll = divergence = same = count = 0.0
    is_reference = not exact
    for number, window in enumerate(windows):
        ours = log_softmax(compute(window))
        if is_reference:
            exact.append(ours)
        reference = exact[number]
        nll -= ours[np.arange(len(window) - 1), window[1:]].sum()
        divergence += (np.exp(reference) * (reference - ours)).sum()
        same += (reference.argmax(1) == ours.argmax(1)).sum()
        count += len(window)
    nll /= count - len(windows)
    return {
        "nats_per_token": nll,
        "perplexity": math.exp(nll),
        "kl_nats": max(0.0, divergence / count),
        "same_top_token": same / count,
    }


def nvg_engines(model: str, threads: int) -> Iterator[tuple[str, int, Compute, Callable[[], None]]]:
    """(name, bytes of the weights, logits of a window, close) of every precision, float32 first."""
    for dtype in DTYPES:
        for kv_dtype in KV_DTYPES:
            llm = LLM(model, dtype=dtype, kv_dtype=kv_dtype, threads=threads, max_num_seqs=1)
            name = f"nvg {dtype}" if kv_dtype == "float32" else f"nvg {dtype}, {kv_dtype} KV"
            yield name, _weight_bytes(llm), llm.logits, llm.close


def _weight_bytes(llm: LLM) -> int:
    return int(llm._engine.runner.weight_bytes)  # type: ignore[attr-defined]


def llama_cpp_engines(
    model: str, threads: int, context: int, scratch: Path
) -> Iterator[tuple[str, int, Compute, Callable[[], None]]]:
    """The same of llama.cpp's types of weights. Raises ImportError."""
    from engine_llama_cpp import Context, Library
    from to_gguf import gguf_file

    library = Library()
    directory = resolve_model(model)
    for kind in LLAMA_CPP_KINDS:
        path = gguf_file(directory, scratch, kind)
        loaded = Context(library.load(str(path)), 1, context, threads, "f32")

        def compute(window: list[int], loaded: Any = loaded) -> Logits:
            loaded.clear()
            logits: Logits = loaded.logits(loaded.decode(np.array([window], np.int32), 0, 0, "all"))
            return logits

        yield f"llama.cpp {kind}", path.stat().st_size, compute, loaded.clear


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=known_model, default="tales", help="default: %(default)s")
    parser.add_argument(
        "--text", type=Path, required=True, metavar="FILE", help="UTF-8 that the model was not trained on"
    )
    parser.add_argument("--tokens", type=int, default=8192, help="of its beginning (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=default_threads(), help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    args = parser.parse_args()
    try:
        text = args.text.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        parser.error(f"--text {args.text}: {error}")
    with LLM(args.model) as llm:
        context = min(512, llm.max_model_len)
        ids = llm.tokenizer.encode(text)[: args.tokens]
    windows = [ids[i : i + context] for i in range(0, len(ids), context)]
    windows = [window for window in windows if len(window) > 1]
    if not windows:
        print(f"error: {args.text} has {len(ids)} tokens; it must have at least 2", file=sys.stderr)
        return 1
    machine = facts()
    print_facts(machine)
    result: dict[str, Any] = {"machine": machine, "model": args.model, "tokens": len(ids), "engines": {}}
    with tempfile.TemporaryDirectory(prefix="nvg-quality-") as temporary:
        for engines in (
            nvg_engines(args.model, args.threads),
            llama_cpp_engines(args.model, args.threads, context, Path(temporary)),
        ):
            exact: list[npt.NDArray[np.float64]] = []
            try:
                for name, size, compute, close in engines:
                    result["engines"][name] = {"weight_bytes": size, **compare(windows, compute, exact)}
                    close()
            except ImportError as error:
                print(f"llama.cpp is missing: {error}", file=sys.stderr)
    rows = [["", "MB", "perplexity", "KL from float32", "same top token"]]
    for name, figures in result["engines"].items():
        rows.append(
            [
                name,
                f"{figures['weight_bytes'] / 1e6:.2f}",
                f"{figures['perplexity']:.3f}",
                f"{figures['kl_nats']:.2e}",
                f"{100 * figures['same_top_token']:.1f} %",
            ]
        )
    print_table(rows)
    write_json(args.json, result)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except NvgError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
