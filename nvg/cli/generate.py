"""`nvg generate`"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from nvg.cli import explain as explain_command
from nvg.cli import options, say
from nvg.cli.choices import Choice, JsonLinesWriter, TextWriter, Writer, print_logprobs
from nvg.cli.interrupt import interruptible
from nvg.errors import ParameterError
from nvg.params import EngineConfig, SamplingParams

if TYPE_CHECKING:
    from nvg.cli.live import LiveView
    from nvg.explain.trace import TraceWriter
    from nvg.llm import LLM
    from nvg.model.generation import GenerationDefaults

DEFAULT_PROMPT = "Once upon a time"
_BRANCHES_AT_ONCE = 16
_PARAMS = ("n", "max_tokens", "stop", "seed", "logprobs", "on_full", *options.SHORTCUTS)
_CONFIG = ("model", "dtype", "kv_dtype", "kv_memory", "tokenizer", "threads")
_GUIDANCE = ("negative_prompt", "guidance_scale")


@click.command(cls=options.SamplingCommand)
@click.argument("prompt", required=False, type=options.TEXT)
@options.model
@click.option(
    "--max-tokens",
    type=int,
    metavar="N",
    default=SamplingParams.max_tokens,
    show_default=True,
    help="Most tokens to generate.",
)
@options.on_full
@click.option("--stop", type=options.TEXT, multiple=True, help="End before this text; repeatable.")
@click.option("--seed", type=int, metavar="N", help="0 to 2^64 - 1: the same text again.  [default: drawn]")
@click.option(
    "-n", type=int, metavar="N", default=SamplingParams.n, show_default=True, help="How many choices, 1 or more."
)
@options.sampling
@click.option(
    "--negative-prompt",
    type=options.TEXT,
    metavar="TEXT",
    help="With --guidance-scale: steer away from what would follow TEXT.  [default: the prompt's last token]",
)
@click.option(
    "--guidance-scale",
    type=float,
    metavar="S",
    help="Classifier-free guidance, 0 to 1000: above 1 away from the negative prompt, 1 means off, 0 follows it.",
)
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["text", "json", "jsonl"]),
    default="text",
    show_default=True,
    help="jsonl: a line for each choice.",
)
@click.option("--chat", is_flag=True, help="PROMPT is a user's message: put it into the model's chat template.")
@click.option("--system", type=options.TEXT, metavar="TEXT", help="With --chat: the system message before it.")
@click.option("--echo", is_flag=True, help="Begin the text with the prompt.")
@click.option("--logprobs", type=int, metavar="K", help="Report log-probabilities: each token's and the K highest.")
@click.option("--stats", is_flag=True, help="Report times, tok/s and what each sampler takes on stderr.")
@explain_command.generate_options
@options.dtype
@options.kv_dtype
@options.kv_memory
@options.tokenizer
@click.option(
    "--threads", type=int, metavar="N", help="Compute threads, 1 to 256.  [default: the physical cores allowed]"
)
def generate(
    prompt: str | None,
    preset: str | None,
    samplers: tuple[str, ...],
    sampler_options: tuple[str, ...],
    output_format: str,
    chat: bool,
    system: str | None,
    echo: bool,
    stats: bool,
    explain: tuple[str, ...],
    branches: int,
    branch_tokens: int,
    **given: Any,
) -> None:
    """Continue PROMPT with a model, by default the embedded one.

    \b
    nvg generate "Once upon a time" --max-tokens 200 --temperature 0.7
    nvg generate -m ./gpt2 --sampler topk -o k=5 < prompt.txt
    nvg generate "The king" --preset creative --min-p 0.1

    Without PROMPT, stdin is the prompt if something is piped into it (less one newline at its end), else a default.
    An empty prompt begins a new text; one that begins with "-" goes after "--". stdout has the continuation only.
    Unless --sampler or --preset is given, the sampling chain is topk(40), topp(0.95), temperature(0.8), with what the
    model's generation_config.json, or its config.json, says instead (nvg models verify shows it). Flags such as
    --top-p set an option of their stage, and add it unless --sampler is given. --explain FILE writes what each stage
    did to each token, and nvg explain makes a page of it.
    """
    source = click.get_current_context().get_parameter_source("branch_tokens")
    if not branches and source is ParameterSource.COMMANDLINE:
        raise click.UsageError(f"--branch-tokens is {branch_tokens}, and there is no --branches N to follow")
    files, prompt = explain_command.files_and_prompt(explain, prompt)
    if branches and not files:
        raise click.UsageError(f"--branches is {branches}, and there is no --explain FILE.jsonl to write them into")
    if system is not None and not chat:
        raise click.UsageError("--system is for --chat")
    with options.flags_in_errors(), contextlib.ExitStack() as stack:
        defaults = _defaults_of(given["model"])
        values = {name: given[name] for name in (*_PARAMS, *_GUIDANCE)} | _not_given(defaults)
        params = SamplingParams(sampler=samplers or None, explain=bool(explain), **values)
        if params.num_seqs > (most := EngineConfig.max_num_batched_tokens):  # a step has a token of each
            of_each = most // (params.num_seqs // params.n)
            raise ParameterError(f"n is {params.n}; it must be an integer from 1 to {of_each}")
        num_seqs = max(params.num_seqs, _BRANCHES_AT_ONCE if branches else 1)
        config = EngineConfig(max_num_seqs=num_seqs, **{name: given[name] for name in _CONFIG})
        if prompt is None:
            prompt = options.piped_stdin()
        trace = stack.enter_context(_open_trace(files[0])) if files else None
        llm, params = interruptible(lambda: _load(config, params, preset, sampler_options, defaults))
        with llm:
            if prompt is None:
                prompt = DEFAULT_PROMPT
                say(f"no prompt given; continuing {prompt!r}")
            prompt_token_ids = None
            if chat:
                prompt, prompt_token_ids = _chat_prompt(llm, config.model, system, prompt)
            run = _Run(
                llm, prompt, prompt_token_ids, params, trace, is_live=any(value not in files for value in explain)
            )
            prefix = prompt if echo else ""
            interrupted = run.write(output_format, prefix)
            if stats:
                for line in (*run.summary(), *_told(defaults)):
                    say(line)
            if branches and not interrupted:
                run.write_branches(branches, branch_tokens)
    errors = [choice.error for choice in run.choices if choice.error]
    for error in errors:
        say(f"error: {error}")
    if interrupted:
        raise KeyboardInterrupt
    if errors:
        click.get_current_context().exit(1)
    if not any(choice.token_ids for choice in run.choices) and params.max_tokens:
        say(f"the prompt fills the context of {llm.max_model_len} tokens: there is no room for output")


def _defaults_of(model: str) -> GenerationDefaults:
    from nvg.hub import resolve_model
    from nvg.model.generation import read_generation_defaults

    return read_generation_defaults(resolve_model(model))


def _not_given(defaults: GenerationDefaults) -> dict[str, Any]:
    """The model's own defaults, but for the chain's and for what the command line says."""
    source = click.get_current_context().get_parameter_source
    in_chain = options.SHORTCUTS
    return {
        name: value
        for name, value in defaults.params.items()
        if name not in in_chain and source(name) in (None, ParameterSource.DEFAULT)
    }


def _told(defaults: GenerationDefaults) -> list[str]:
    """A line about the model's own defaults, if it has any."""
    if not defaults.origins:
        return []
    return [f"the model's own defaults: {', '.join(f'{key} ({name})' for key, name in defaults.origins.items())}"]


def _load(
    config: EngineConfig,
    params: SamplingParams,
    preset: str | None,
    sampler_options: Sequence[str],
    defaults: GenerationDefaults,
) -> tuple[LLM, SamplingParams]:
    """The model, and the parameters with the chain of the command line in them."""
    from nvg.llm import LLM
    from nvg.plugins import registry
    from nvg.sampling.compose import compose

    for line in registry().warnings():
        say(f"warning: {line}")
    base = options.base_chain(preset, params.sampler or (), defaults)
    alone = params.xtc_threshold is not None and params.xtc_probability is None and params.sampler is None
    if alone and preset is None and not sampler_options:
        raise ParameterError(f"xtc_threshold is {params.xtc_threshold} and xtc_probability is not given: give both")
    params = compose(params, base, sampler_options)
    return LLM(**asdict(config), report=say), params


def _chat_prompt(llm: LLM, model: str, system: str | None, message: str) -> tuple[str, list[int]]:
    """The text of a conversation that the message opens, and its ids."""
    from nvg.hub import resolve_model
    from nvg.tokenizers.chat import apply_chat_template

    messages = [] if system is None else [{"role": "system", "content": system}]
    prompt = apply_chat_template(resolve_model(model), [*messages, {"role": "user", "content": message}])
    return prompt, llm.tokenizer.encode(prompt, allow_special=True)


def _open_trace(path: str) -> TraceWriter:
    from nvg.explain.trace import TraceWriter

    return TraceWriter(path)


class _Run:
    """One prompt's run, and the numbers about it."""

    def __init__(
        self,
        llm: LLM,
        prompt: str,
        prompt_token_ids: list[int] | None,
        params: SamplingParams,
        trace: TraceWriter | None,
        *,
        is_live: bool,
    ) -> None:
        self._llm = llm
        self._prompt = prompt
        self._params = params
        self._trace = trace
        self._view = self._make_view() if is_live else None
        self.choices = [Choice(index) for index in range(params.n)]
        self._first_token_s: float | None = None
        self._start = time.perf_counter()
        self._stream = llm.stream(prompt if prompt_token_ids is None else prompt_token_ids, params)
        if trace is not None:
            trace.begin(llm, params, prompt, self._stream.prompt_token_ids, self._stream.seed)

    def _make_view(self) -> LiveView:
        from nvg.cli.live import LiveView

        return LiveView(self._llm.tokenizer, [stage.name for stage in self._params.sampler], self._params.n)

    def write(self, output_format: str, prefix: str) -> bool:
        """Run to the end, writing to stdout; whether it was interrupted, in which case what there is is written."""
        from nvg.progress import token_bar

        with_logprobs = self._params.logprobs is not None
        writer: Writer | None = None
        waits = output_format == "text" and self._view is not None and self._view.shares_terminal
        if output_format == "text":
            writer = None if waits else TextWriter(self.choices, prefix)
        elif output_format == "jsonl":
            writer = JsonLinesWriter(self.choices, prefix, self._header(), with_logprobs)
        num_tokens = self._params.n * self._params.max_tokens
        interrupted = False
        try:
            has_bar = output_format != "text" and self._view is None
            with contextlib.closing(self._stream), token_bar(num_tokens, enabled=has_bar) as bar:
                for piece in self._stream:
                    if self._first_token_s is None and piece.token_ids:
                        self._first_token_s = time.perf_counter() - self._start
                    bar.update(len(piece.token_ids))
                    choice = self.choices[piece.index]
                    choice.add(piece)
                    if self._trace is not None:
                        self._trace.add(piece)
                    if self._view is not None:
                        self._view.add(piece)
                    if writer is not None:
                        writer.update(choice)
        except KeyboardInterrupt:
            interrupted = True
        if waits:
            writer = TextWriter(self.choices, prefix)
        if writer is not None:
            writer.finish()
        else:
            records = [choice.record(prefix, with_logprobs) for choice in self.choices]
            print(json.dumps({**self._header(), "choices": records, **self._numbers()}), flush=True)
        if with_logprobs and output_format == "text":
            print_logprobs(self._llm.tokenizer, self.choices)
        return interrupted

    def write_branches(self, num: int, num_tokens: int) -> None:
        """Add alternatives to each token to the trace. Ctrl-C raises KeyboardInterrupt."""
        from nvg.explain.branches import grow
        from nvg.progress import token_bar

        assert self._trace is not None
        num_places = sum(len(choice.token_ids) for choice in self.choices)
        with token_bar(num_places * num * num_tokens, enabled=True) as bar:
            for choice in self.choices:
                places = self._stream.prompt_token_ids, choice.explanations
                for branches in grow(
                    self._llm, self._params, *places, choice=choice.index, num=num, num_tokens=num_tokens
                ):
                    for branch in branches:
                        self._trace.branch(branch)
                    bar.update(len(branches) * num_tokens)

    def summary(self) -> list[str]:
        """The numbers, in lines."""
        stats, usage = self._llm.stats, self._numbers()["usage"]
        parts = [f"load {self._llm.load_s:.2f} s"]
        if self._first_token_s is not None:
            parts.append(f"first token {self._first_token_s:.3f} s")
        if stats.prefill_tok_s:
            parts.append(f"prefill {stats.prefill_tok_s:.0f} tok/s ({usage['prompt_tokens']} tokens)")
        if stats.decode_tok_s:
            parts.append(f"decode {stats.decode_tok_s:.0f} tok/s ({usage['completion_tokens']} tokens)")
        if stats.stages and usage["completion_tokens"]:
            per_token = {title: time_s.seconds / usage["completion_tokens"] for title, time_s in stats.stages.items()}
            names = {stage.title: stage.name for stage in self._params.sampler}
            shown = ", ".join(f"{names[title]} {_duration(seconds)}" for title, seconds in per_token.items())
            parts.append(f"a token's sampling {_duration(sum(per_token.values()))} ({shown})")
        reasons = ", ".join(choice.finish_reason or "aborted" for choice in self.choices)
        return ["; ".join([*parts, f"seed {self._stream.seed}", f"ended by {reasons}"]), *self._slow_stages()]

    def _slow_stages(self) -> list[str]:
        """A line for a sampler that has not returned, or has taken most of the time."""
        stats, lines = self._llm.stats, []
        total_s = stats.prefill_s + stats.decode_s
        for title, time_s in stats.stages.items():
            since = time_s.since
            if since:
                lines.append(f"{title} has not returned for {time.perf_counter() - since:.1f} s")
            elif time_s.seconds > total_s / 2:
                lines.append(f"{title} took {time_s.seconds:.2f} s of the {total_s:.2f} s that all steps took")
        return lines

    def _header(self) -> dict[str, Any]:
        return {"model": self._llm.config.model, "prompt": self._prompt, "seed": self._stream.seed}

    def _numbers(self) -> dict[str, Any]:
        stats = self._llm.stats
        return {
            "usage": {
                "prompt_tokens": len(self._stream.prompt_token_ids),
                "completion_tokens": sum(len(choice.token_ids) for choice in self.choices),
            },
            "timing": {
                "load_s": self._llm.load_s,
                "first_token_s": self._first_token_s,
                "prefill_tok_s": stats.prefill_tok_s,
                "decode_tok_s": stats.decode_tok_s,
            },
        }


def _duration(seconds: float) -> str:
    """Seconds in the unit that leaves three digits or fewer before the point."""
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.2f} {unit}"
    return f"{seconds * 1e6:.1f} us"
