"""`nvg perplexity`"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from nvg.cli import options, say
from nvg.cli.interrupt import interruptible
from nvg.cli.table import print_table
from nvg.errors import ParameterError
from nvg.params import EngineConfig
from nvg.tokenizers.prompt import encode_whole

if TYPE_CHECKING:
    from nvg.llm import LLM
    from nvg.perplexity import Progress

_STDIN = "-"
_LINE_EVERY_S = 10.0


@click.command()
@click.argument("file", type=click.Path(allow_dash=True))
@options.model
@click.option("--context", type=int, metavar="N", help="Tokens of a window, 2 or more.  [default: the model's most]")
@click.option(
    "--stride",
    type=int,
    metavar="N",
    help="Tokens from window to window, 1 to the context: less makes them overlap.  [default: the context]",
)
@click.option("--max-tokens", type=int, metavar="N", help="Use the text's first N tokens, 2 or more.  [default: all]")
@options.dtype
@options.kv_dtype
@options.tokenizer
@click.option(
    "--threads", type=int, metavar="N", help="Compute threads, 1 to 256.  [default: the physical cores allowed]"
)
@click.option("--format", "output_format", type=click.Choice(["text", "json"]), default="text", show_default=True)
def perplexity(
    file: str,
    model: str,
    context: int | None,
    stride: int | None,
    max_tokens: int | None,
    dtype: str,
    kv_dtype: str | None,
    tokenizer: str | None,
    threads: int | None,
    output_format: str,
) -> None:
    """Measure how well a model predicts the text in FILE (UTF-8; "-" is stdin).

    \b
    nvg perplexity book.txt
    nvg perplexity book.txt -m ./gpt2 --dtype float32 --stride 512 --format json

    The text is cut into windows of the context's length, and each token is predicted from those before it in its
    window. Where windows do not overlap, the first token of each is not predicted; with a --stride below the context
    every token has at least context - stride tokens before it, as in Hugging Face's strided perplexity, and it takes
    longer. The lower the figures, the better: nats a token (-ln p), perplexity (e to it), and bits a byte, which
    compares models with different tokenizers.
    """
    with options.flags_in_errors():
        for name, value, least in (("context", context, 2), ("stride", stride, 1), ("max_tokens", max_tokens, 2)):
            if value is not None and value < least:
                raise ParameterError(f"{name} is {value}; it must be an integer >= {least}")
        config = EngineConfig(
            model=model, dtype=dtype, kv_dtype=kv_dtype, tokenizer=tokenizer, threads=threads, max_num_seqs=1
        )
        context = _context(model, context)
        stride = context if stride is None else stride
        if stride > context:
            raise ParameterError(f"stride is {stride}; it must be from 1 to the context, {context}")
        text = _read(file)
        llm = interruptible(lambda: _load(config))
        with llm:
            token_ids = encode_whole(llm.tokenizer, text)[:max_tokens]
            if len(token_ids) < 2:
                raise ParameterError(
                    f"{_name(file)} has {len(token_ids)} token; one is predicted from another: give it 2 or more"
                )
            from nvg.perplexity import measure

            result = measure(llm, token_ids, context=context, stride=stride, progress=_lines())
    if output_format == "json":
        finite = result.perplexity if math.isfinite(result.perplexity) else None  # JSON has no infinity
        numbers = {**asdict(result), "perplexity": finite, "tok_s": result.tok_s}
        from nvg.model.runner import default_kv_dtype

        header = {"model": model, "file": file, "dtype": dtype, "kv_dtype": kv_dtype or default_kv_dtype(dtype)}
        click.echo(json.dumps({**header, "context": context, "stride": stride, **numbers}))
        return
    print_table(
        [
            ("nats a token", f"{result.nats_per_token:.5f}"),
            ("perplexity", f"{result.perplexity:.4f}"),
            ("bits a byte", f"{result.bits_per_byte:.5f}"),
            ("tokens", f"{result.tokens} predicted in {result.windows} windows of up to {context}"),
            ("tok/s", f"{result.tok_s:.1f}"),
        ]
    )


def _context(model: str, context: int | None) -> int:
    """The windows' length; checked against the model's positions before anything is loaded."""
    from nvg.hub import resolve_model
    from nvg.model.config import read_config

    positions = read_config(resolve_model(model)).n_positions
    if context is not None and context > positions:
        raise ParameterError(f"context is {context}; it must be from 2 to {positions}, the model's positions")
    return context or positions


def _name(file: str) -> str:
    return "stdin" if file == _STDIN else repr(file)


def _read(file: str) -> str:
    """The text, all of it. Raises ParameterError where there is none or it is not UTF-8, OSError for no file."""
    if file == _STDIN and sys.stdin is None:
        raise ParameterError("stdin is closed; give a file's name")
    with options.named_in_errors(_name(file)), contextlib.ExitStack() as stack:
        data = (sys.stdin.buffer if file == _STDIN else stack.enter_context(open(file, "rb"))).read()
    if not data:
        raise ParameterError(f"{_name(file)} is empty; give a text of 2 tokens or more")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ParameterError(f"{_name(file)} is {options.bad_byte(error)}; convert it first (iconv -t UTF-8)") from None


def _load(config: EngineConfig) -> LLM:
    from nvg.llm import LLM
    from nvg.plugins import registry

    for line in registry().warnings():
        say(f"warning: {line}")
    return LLM(**asdict(config), report=say)


def _lines() -> Progress:
    """Progress as a line on stderr now and then."""
    last = time.perf_counter()

    def show(done: int, total: int, nats: float) -> None:
        nonlocal last
        if time.perf_counter() - last > _LINE_EVERY_S:
            last = time.perf_counter()
            say(f"{done} of {total} windows, {nats:.4f} nats a token so far")

    return show
