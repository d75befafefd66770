"""Peak memory of a process that loads a model and generates from it, and what it is made of.

    python benchmarks/memory.py --dummy gpt2

The measured process is fresh and does nothing else; kernels are compiled before. This process writes no model and
imports no NumPy, because on Linux a child's peak begins with its parent's. The KV pool is reserved whole and becomes
memory as its blocks are used: only used ones count.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from report import facts, known_model, print_facts, print_table, write_json

PROMPT_TOKENS = 32
TARGET_BYTES = 300_000_000
"""Most that the peak should exceed the float32 weights and the used KV blocks by."""


def run_child(model: str, num_seqs: int, new_tokens: int) -> None:
    """Load, generate, and print the peak after each stage as JSON."""
    import resource

    peaks: dict[str, int] = {}

    def note(stage: str) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, KiB elsewhere
        peaks[stage] = peak if sys.platform == "darwin" else peak * 1024

    note("Python")
    import math

    from nvg import LLM, EngineConfig, SamplingParams
    from nvg.hub import resolve_model
    from nvg.model.checkpoint import Checkpoint
    from nvg.model.contract import Batch, Float32
    from nvg.model.runner import GPT2Runner, compile_steps
    from nvg.plugins import registry
    from nvg.runtime.compile_cache import prepare

    class WatchedRunner(GPT2Runner):
        """Notes how much of the KV pool is reserved and which blocks are used."""

        def allocate_kv(self, num_blocks: int, block_size: int) -> None:
            super().allocate_kv(num_blocks, block_size)
            self.reserved_bytes = num_blocks * self.bytes_per_block(block_size)
            self.used_blocks: set[int] = set()

        def execute(self, batch: Batch) -> Float32:
            for table, length in zip(batch.block_tables, batch.context_lens, strict=True):
                self.used_blocks.update(table[: -(-int(length) // config.block_size)].tolist())
            return super().execute(batch)

    note("+ imports")
    prepare(compile_steps())
    note("+ kernels")
    directory = resolve_model(model)
    config = EngineConfig(model=model, max_num_seqs=num_seqs)
    tokenizer = registry().tokenizers.load("gpt2").from_dir(directory)
    note("+ tokenizer")
    with Checkpoint(directory) as checkpoint:
        runner = WatchedRunner(checkpoint.config, checkpoint, config)
        weights_bytes = 4 * sum(math.prod(checkpoint.shape(name)) for name in checkpoint.names)
    note("+ weights and buffers")
    with LLM.from_components(config, runner, tokenizer) as llm:
        prompts = [[(17 * i + s) % runner.vocab_size for i in range(PROMPT_TOKENS)] for s in range(num_seqs)]
        outputs = llm.generate(prompts, SamplingParams(max_tokens=new_tokens, ignore_eos=True, seed=1))
        assert all(len(output.token_ids) == new_tokens for output in outputs)
        note("+ generating")
        used_bytes = len(runner.used_blocks) * runner.bytes_per_block(config.block_size)
    result = {
        "weights_bytes": weights_bytes,
        "packed_weights_bytes": runner.weight_bytes,
        "kv_used_bytes": used_bytes,
        "kv_reserved_bytes": runner.reserved_bytes,
        "excess_bytes": peaks["+ generating"] - weights_bytes - used_bytes,
        "peak_bytes": peaks,
    }
    print(json.dumps(result))


def measure(model: str, num_seqs: int, new_tokens: int) -> dict[str, Any]:
    """What the fresh process reports; ends this one with its status if it fails, having said why."""
    options = ["--model", model, "--num-seqs", str(num_seqs), "--new-tokens", str(new_tokens)]
    child = subprocess.run([sys.executable, __file__, "--child", *options], stdout=subprocess.PIPE)
    if child.returncode:
        sys.exit(child.returncode)
    measured: dict[str, Any] = json.loads(child.stdout)
    return measured


def print_result(measured: dict[str, Any], num_seqs: int, new_tokens: int) -> None:
    def mb(count: int) -> str:
        return f"{count / 1e6:,.1f} MB"

    print(f"sequences: {num_seqs}, each of {PROMPT_TOKENS} prompt tokens and {new_tokens} new tokens\n")
    rows = [["peak with", "", ""]]
    before = 0
    for stage, peak in measured["peak_bytes"].items():
        rows.append([f"  {stage}", mb(peak), f"+{mb(peak - before)}" if before else ""])
        before = peak
    rows += [
        ["float32 weights", mb(measured["weights_bytes"]), f"packed {mb(measured['packed_weights_bytes'])}"],
        ["KV blocks used", mb(measured["kv_used_bytes"]), f"of {mb(measured['kv_reserved_bytes'])} reserved"],
        ["peak - weights - KV", mb(measured["excess_bytes"]), f"at most {mb(TARGET_BYTES)}"],
    ]
    print_table(rows)


def run(model: str, args: argparse.Namespace) -> None:
    machine = facts()
    print_facts(machine)
    subprocess.run([sys.executable, "-m", "nvg", "warmup"], check=True, capture_output=True)
    measured = measure(model, args.num_seqs, args.new_tokens)
    print_result(measured, args.num_seqs, args.new_tokens)
    settings = {"model": args.model, "dummy": args.dummy, "num_seqs": args.num_seqs, "new_tokens": args.new_tokens}
    write_json(args.json, {"machine": machine, "settings": settings, **measured})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", type=known_model, help="a built-in model's name or a Hugging Face GPT-2 directory")
    model.add_argument("--dummy", metavar="SIZE", help="random weights: gpt2, gpt2-medium, gpt2-large or gpt2-xl")
    parser.add_argument("--num-seqs", type=int, default=1, help="sequences at once (default: %(default)s)")
    parser.add_argument("--new-tokens", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep and reuse the dummy model in this directory")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.num_seqs < 1 or args.new_tokens < 1:
        parser.error("--num-seqs and --new-tokens must be at least 1")
    if args.child:
        from nvg.errors import NvgError

        try:
            run_child(args.model, args.num_seqs, args.new_tokens)
        except NvgError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(error.exit_code)
        return
    with tempfile.TemporaryDirectory(prefix="nvg-benchmark-") as temporary:
        if args.dummy:
            directory = (args.keep or Path(temporary)) / args.dummy
            writer = [sys.executable, str(Path(__file__).with_name("dummy.py")), args.dummy, str(directory)]
            status = subprocess.run(writer, stdout=subprocess.DEVNULL).returncode
            if status:
                sys.exit(status)
            run(str(directory), args)
        else:
            run(args.model, args)


if __name__ == "__main__":
    main()
