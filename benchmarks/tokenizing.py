"""Encoding text: nvg beside Hugging Face tokenizers and tiktoken, with GPT-2's own vocabulary or another one.

    python benchmarks/tokenizing.py VOCABULARY --text english=corpus.txt

VOCABULARY is a directory with GPT-2's vocab.json and merges.txt, or with a byte-level BPE tokenizer.json that has
GPT-2's pattern; --pattern cl100k puts GPT-4's in its place, for all three libraries. Each text is cut to --megabytes;
`code` is the standard library's own source. The others are 1 MB of one thing, which is where an encoder's time can grow
faster than the text. Whoever is measured takes turns, in one thread; `batch` is the text's lines at once, with whatever
threads each library takes for that.
"""

from __future__ import annotations

import argparse
import json
import random
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from report import Spread, facts, print_facts, print_table, write_json

from nvg.tokenizers.bpe import ByteLevelBPE

CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
"""GPT-4's kind of pattern, as a tokenizer.json has it."""
CL100K_TIKTOKEN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]"
    r"|\s+(?!\S)|\s"
)
"""The same pieces, as tiktoken writes it: the other one overflows its stack."""

Encode = Callable[[str], Any]
EncodeBatch = Callable[[list[str]], Any]


def standard_library(num_bytes: int) -> str:
    """Python source of so many bytes; fewer where there are not so many."""
    parts, total = [], 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if total >= num_bytes:
            break
        if "site-packages" not in path.parts:
            parts.append(path.read_bytes().decode("utf-8", "replace"))
            total += len(parts[-1])
    return "".join(parts)


def texts(arguments: argparse.Namespace) -> dict[str, str]:
    """Name -> text."""
    size = int(arguments.megabytes * 1e6)
    found = {"code": standard_library(size)}
    for given in arguments.text:
        name, _, path = given.rpartition("=")
        found[name or Path(path).stem] = Path(path).read_bytes()[: 4 * size].decode("utf-8", "replace")
    cut = {name: text.encode()[:size].decode("utf-8", "ignore") for name, text in found.items()}
    small = int(arguments.small_megabytes * 1e6)
    letters = "".join(random.Random(0).choices("etaoinshrdlucmf", k=small))
    return cut | {"^": "^" * small, "spaces": " " * small, "emoji": "😀" * (small // 4)} | {"one word": letters}


def with_pattern(vocabulary: Path, pattern: str, directory: Path) -> Path:
    """The vocabulary as a tokenizer.json in `directory`, with another pattern."""
    import tokenizers

    if (vocabulary / "tokenizer.json").exists():
        settings = json.loads((vocabulary / "tokenizer.json").read_text("utf-8"))
    else:
        pair = str(vocabulary / "vocab.json"), str(vocabulary / "merges.txt")
        settings = json.loads(tokenizers.ByteLevelBPETokenizer(*pair).to_str())
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    as_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    settings["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, as_bytes]}
    (directory / "tokenizer.json").write_text(json.dumps(settings), "utf-8")
    return directory


def hugging_face(directory: Path) -> tuple[Encode, EncodeBatch]:
    import tokenizers

    if (directory / "tokenizer.json").exists():
        tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    else:
        tokenizer = tokenizers.ByteLevelBPETokenizer(str(directory / "vocab.json"), str(directory / "merges.txt"))
    return lambda text: tokenizer.encode(text).ids, lambda batch: [each.ids for each in tokenizer.encode_batch(batch)]


def tiktoken_of(ours: ByteLevelBPE, pattern_name: str) -> tuple[Encode, EncodeBatch]:
    import tiktoken
    from tiktoken_ext.openai_public import r50k_pat_str  # GPT-2's, which overflows no stack

    pattern = CL100K_TIKTOKEN if pattern_name == "cl100k" else r50k_pat_str

    special = ours.special_tokens
    ranks = {ours.token_bytes(i): i for i in range(ours.vocab_size) if i not in special.values()}
    ordered = sorted(ranks.values()) == list(range(len(ranks)))
    if not ordered:  # tiktoken's ids are its ranks; what it costs is the same
        ranks = {token: rank for rank, token in enumerate(sorted(ranks, key=ranks.__getitem__))}
    encoding = tiktoken.Encoding("vocabulary", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return encoding.encode_ordinary, encoding.encode_ordinary_batch


def seconds(job: Callable[[Any], Any], engine: Any) -> float:
    start = time.perf_counter()
    job(engine)
    return time.perf_counter() - start


def main() -> None:
    """Read the command line, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vocabulary", type=Path)
    parser.add_argument("--text", action="append", default=[], metavar="NAME=FILE", help="a text to encode; repeatable")
    parser.add_argument(
        "--pattern", choices=["gpt2", "cl100k"], default="gpt2", help="how text is split (default gpt2)"
    )
    parser.add_argument("--megabytes", type=float, default=10, help="of each text (default 10)")
    parser.add_argument("--small-megabytes", type=float, default=1, help="of each text that is one thing (default 1)")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the results there")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as made:
        if arguments.pattern == "cl100k":
            arguments.vocabulary = with_pattern(arguments.vocabulary, CL100K, Path(made))
        measure(arguments)


def measure(arguments: argparse.Namespace) -> None:
    """Measure, print and write."""
    ours = ByteLevelBPE.from_dir(arguments.vocabulary)
    engines = {"nvg": (ours.encode, ours.encode_batch)}
    for name, make in (
        ("tokenizers", lambda: hugging_face(arguments.vocabulary)),
        ("tiktoken", lambda: tiktoken_of(ours, arguments.pattern)),
    ):
        try:
            engines[name] = make()
        except ImportError as error:
            print(f"{name}: missing: {error}")
    results: dict[str, Any] = {}
    for text_name, text in texts(arguments).items():
        lines = text.splitlines(keepends=True)
        jobs = {f"{text_name}": lambda engine, text=text: engine[0](text)}
        if len(lines) > 1:
            jobs[f"{text_name}, batch"] = lambda engine, lines=lines: engine[1](lines)
        for job_name, job in jobs.items():
            megabytes = len(text.encode()) / 1e6
            engines["nvg"][0](text[:1000])
            rates: dict[str, list[float]] = {name: [] for name in engines}
            job(engines["nvg"])  # compiles, loads
            for _ in range(arguments.repetitions):
                for name, engine in engines.items():
                    rates[name].append(megabytes / seconds(job, engine))
            results[job_name] = {"megabytes": megabytes, "mb_s": rates}
            print(job_name, {name: round(Spread.of(values).median, 2) for name, values in rates.items()}, flush=True)
    rows = [
        ("TEXT", "MB", *(f"{name} MB/s" for name in engines), *(f"nvg / {name}" for name in engines if name != "nvg"))
    ]
    for name, result in results.items():
        rates = result["mb_s"]
        ratios = [Spread.of_ratios(rates["nvg"], rates[other]).text(2) for other in engines if other != "nvg"]
        rows.append((name, f"{result['megabytes']:.1f}", *(Spread.of(rates[e]).text(1) for e in engines), *ratios))
    machine = facts()
    print_facts(machine)
    print_table(rows)
    if arguments.json:
        write_json(arguments.json, {"machine": machine, "pattern": arguments.pattern, "texts": results})


if __name__ == "__main__":
    main()
