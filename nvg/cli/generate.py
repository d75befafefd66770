"""`nvg generate`"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import click

from nvg.cli import INTERRUPTED, options, say
from nvg.params import DTYPES, EngineConfig, Piece, SamplingParams, TokenLogprobs

DEFAULT_PROMPT = "Once upon a time"


@dataclass
class _Choice:
    """A choice as its pieces come."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None
    error: str | None = None

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        self.token_ids += piece.token_ids
        self.logprobs += piece.logprobs or ()
        self.finish_reason, self.error = piece.finish_reason, piece.error

    def record(self, prefix: str, with_logprobs: bool) -> dict[str, Any]:
        record: dict[str, Any] = {
            "text": prefix + self.text,
            "token_ids": self.token_ids,
            "finish_reason": self.finish_reason or "aborted",
        }
        if self.error:
            record["error"] = self.error
        if with_logprobs:
            record["logprobs"] = [asdict(one) for one in self.logprobs]
        return record


class _TextWriter:
    """Streams choice 0 as it comes, then the others, each on lines of its own."""

    def __init__(self, prefix: str, num_choices: int) -> None:
        self._prefix = prefix
        self._num_choices = num_choices
        self._current = 0
        self._written = 0
        self._is_terminal = sys.stdout.isatty()
        # A model can produce what a terminal's encoding can't show, or what would command the terminal.
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")
        self._begin()

    def update(self, choices: Sequence[_Choice]) -> None:
        while self._current < self._num_choices:
            choice = choices[self._current]
            self._write(choice.text[self._written :])
            self._written = len(choice.text)
            if choice.finish_reason is None:
                return
            self._end()
            self._current += 1
            if self._current < self._num_choices:
                self._begin()

    def interrupt(self) -> None:
        self._end()

    def _begin(self) -> None:
        self._written = 0
        if self._num_choices > 1:
            say(f"choice {self._current + 1} of {self._num_choices}:")
        self._write(self._prefix)

    def _end(self) -> None:
        sys.stdout.write("\n")
        sys.stdout.flush()

    def _write(self, text: str) -> None:
        if text:
            sys.stdout.write(text.translate(_CONTROLS) if self._is_terminal else text)
            sys.stdout.flush()


_CONTROLS = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


@click.command()
@click.argument("prompt", required=False)
@options.model
@options.samplers
@click.option(
    "-o", "sampler_options", metavar="NAME=VALUE", multiple=True, help="An option of a stage: k=40, topp.p=0.9."
)
@click.option("--temperature", type=float, help="Divide the logits by this; 0 means greedy.")
@click.option("--top-k", type=int, help="Keep the k most probable tokens; 0 means all.")
@click.option("--top-p", type=float, help="Keep the most probable tokens that reach probability p; 1 means all.")
@click.option("--min-p", type=float, help="Keep tokens at least p times as probable as the first; 0 means all.")
@click.option("--max-tokens", type=int, default=SamplingParams.max_tokens, show_default=True, help="Most tokens.")
@click.option("--stop", multiple=True, help="End before this string; repeatable.")
@click.option("--seed", type=int, help="0 to 2^64 - 1, for the same text again; drawn if not given.")
@click.option("-n", "num_choices", type=int, default=SamplingParams.n, show_default=True, help="How many choices.")
@click.option("--dtype", type=click.Choice(DTYPES), default=EngineConfig.dtype, show_default=True, help="Of weights.")
@click.option("--kv-dtype", type=click.Choice(DTYPES), help="Of keys and values.  [default: as --dtype]")
@options.tokenizer
@click.option("--logprobs", type=int, metavar="K", help="Report log-probabilities, of each token and the K likeliest.")
@click.option("--echo", is_flag=True, help="Begin the text with the prompt.")
@click.option("--threads", type=int, help="Compute threads.  [default: physical cores that are allowed]")
@click.option(
    "--format", "output_format", type=click.Choice(["text", "json", "jsonl"]), default="text", show_default=True
)
@click.option("--stats", is_flag=True, help="Report times and rates on stderr.")
def generate(prompt: str | None, samplers: tuple[str, ...], sampler_options: tuple[str, ...], **given: Any) -> None:
    """Continue PROMPT with a model, by default the embedded one.

    Without PROMPT, stdin is the prompt if something is piped into it (less one newline at its end), else a default.
    stdout has the continuation only. The default sampling chain is topk(40), topp(0.95), temperature(0.8).
    """
    params = SamplingParams(
        sampler=samplers or None,
        n=given["num_choices"],
        **{
            name: given[name]
            for name in ("temperature", "top_k", "top_p", "min_p", "max_tokens", "stop", "seed", "logprobs")
        },
    )
    if prompt is None:
        prompt = options.piped_stdin()
    if prompt is None:
        prompt = DEFAULT_PROMPT
        say(f"no prompt given; continuing {prompt!r}")
    config = EngineConfig(
        model=given["model"],
        dtype=given["dtype"],
        kv_dtype=given["kv_dtype"],
        tokenizer=given["tokenizer"],
        threads=given["threads"],
        max_num_seqs=max(1, min(params.n, EngineConfig.max_num_seqs)),
    )
    output_format: str = given["output_format"]
    prefix = prompt if given["echo"] else ""

    from nvg.llm import LLM
    from nvg.plugins import registry
    from nvg.sampling.compose import DEFAULT_CHAIN, compose

    for line in registry().warnings():
        say(f"warning: {line}")
    params = compose(params, DEFAULT_CHAIN, sampler_options)
    with LLM(**asdict(config), report=say) as llm:
        run = _Run(llm, prompt, params)
        choices = [_Choice() for _ in range(params.n)]
        writer = _TextWriter(prefix, params.n) if output_format == "text" else None
        try:
            with run.pieces(show_progress=output_format != "text") as pieces:
                for piece in pieces:
                    choices[piece.index].add(piece)
                    if writer is not None:
                        writer.update(choices)
                    elif output_format == "jsonl" and piece.finish_reason:
                        record = choices[piece.index].record(prefix, params.logprobs is not None)
                        print(json.dumps({"index": piece.index, **run.header(), **record}), flush=True)
            interrupted = False
        except KeyboardInterrupt:
            interrupted = True
            if writer is not None:
                writer.interrupt()
        if output_format == "json":
            records = [choice.record(prefix, params.logprobs is not None) for choice in choices]
            print(json.dumps({**run.header(), "choices": records, **run.usage(choices)}), flush=True)
        elif output_format == "text" and params.logprobs is not None:
            _print_logprobs(llm, choices)
        if given["stats"]:
            say(run.summary(choices))
    errors = [choice.error for choice in choices if choice.error]
    for error in errors:
        say(f"error: {error}")
    if interrupted or errors:
        raise SystemExit(INTERRUPTED if interrupted else 1)
    if not any(choice.token_ids for choice in choices) and params.max_tokens:
        say(f"the prompt fills the context of {llm.max_model_len} tokens: there is no room for output")


class _Run:
    """One prompt's run, and the numbers about it."""

    def __init__(self, llm: Any, prompt: str, params: SamplingParams) -> None:
        self._llm = llm
        self._prompt = prompt
        self._params = params

    @contextlib.contextmanager
    def pieces(self, show_progress: bool) -> Iterator[Iterator[Piece]]:
        import time

        start = time.perf_counter()
        stream = self._llm.stream(self._prompt, self._params)
        self.stream = stream
        self.first_token_s: float | None = None

        def timed() -> Iterator[Piece]:
            from nvg.progress import token_bar

            with token_bar(self._params.n * self._params.max_tokens, enabled=show_progress) as bar:
                for piece in stream:
                    if self.first_token_s is None and piece.token_ids:
                        self.first_token_s = time.perf_counter() - start
                    bar.update(len(piece.token_ids))
                    yield piece

        with contextlib.closing(timed()) as pieces:
            yield pieces

    def header(self) -> dict[str, Any]:
        return {"model": self._llm.config.model, "prompt": self._prompt, "seed": self.stream.seed}

    def usage(self, choices: Sequence[_Choice]) -> dict[str, Any]:
        stats = self._llm.stats
        return {
            "usage": {
                "prompt_tokens": len(self.stream.prompt_token_ids),
                "completion_tokens": sum(len(choice.token_ids) for choice in choices),
            },
            "timing": {
                "load_s": self._llm.load_s,
                "first_token_s": self.first_token_s,
                "prefill_tok_s": stats.prefill_tok_s,
                "decode_tok_s": stats.decode_tok_s,
            },
        }

    def summary(self, choices: Sequence[_Choice]) -> str:
        stats, usage = self._llm.stats, self.usage(choices)["usage"]
        parts = [f"load {self._llm.load_s:.2f} s"]
        if self.first_token_s is not None:
            parts.append(f"first token {self.first_token_s:.3f} s")
        if stats.prefill_tok_s:
            parts.append(f"prefill {stats.prefill_tok_s:.0f} tok/s ({usage['prompt_tokens']} tokens)")
        if stats.decode_tok_s:
            parts.append(f"decode {stats.decode_tok_s:.0f} tok/s ({usage['completion_tokens']} tokens)")
        reasons = ", ".join(choice.finish_reason or "aborted" for choice in choices)
        return "; ".join([*parts, f"seed {self.stream.seed}", f"ended by {reasons}"])


def _print_logprobs(llm: Any, choices: Sequence[_Choice]) -> None:
    """A line for each token on stderr: its log-probability and the likeliest tokens."""

    def shown(token_id: int) -> str:
        return repr(llm.tokenizer.decode([token_id]))

    for index, choice in enumerate(choices):
        for one in choice.logprobs:
            top = "  ".join(f"{shown(i)} {value:.3f}" for i, value in one.top.items())
            number = f"{index + 1}: " if len(choices) > 1 else ""
            click.echo(f"{number}{one.logprob:9.4f} {shown(one.token_id):<16} {top}".rstrip(), err=True)
