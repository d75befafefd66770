"""Options that several commands share, and what they are read from."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

from nvg.errors import NvgError, ParameterError
from nvg.params import DTYPES, KV_DTYPES, ON_FULL, EngineConfig, SamplingParams

if TYPE_CHECKING:
    from nvg.model.generation import GenerationDefaults


class _Text(click.ParamType):  # type: ignore[type-arg]
    """Text from the command line, where bytes that are not UTF-8 arrive as surrogates."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            value.encode()
            return value
        except UnicodeEncodeError:
            pass
        try:  # in a locale that is not UTF-8, text that is
            return os.fsencode(value).decode()
        except UnicodeDecodeError as error:
            self.fail(f"{bad_byte(error)}; pipe it in through iconv -t UTF-8", param, ctx)
        except UnicodeEncodeError:
            return value  # no bytes of the command line: the tokenizer names the surrogate


class _Bytes(click.ParamType):  # type: ignore[type-arg]
    """A number of bytes, with a unit or without."""

    name = "size"
    _UNITS = MappingProxyType(
        {"": 1, **{u: 1000**n for n, u in enumerate("KMGT", 1)}, **{f"{u}i": 1024**n for n, u in enumerate("KMGT", 1)}}
    )

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]i?)?B?", value.strip())
        if match is None:
            self.fail(f"{value!r} is no size; give bytes, or a number and K, M, G (1000) or Ki, Mi, Gi (1024), as 1.5G")
        return int(float(match[1]) * self._UNITS[match[2] or ""])


TEXT = _Text()


def bad_byte(error: UnicodeDecodeError) -> str:
    """What is wrong with bytes that should be UTF-8."""
    return f"not UTF-8: byte {error.object[error.start]:#04x} at {error.start}"


@contextlib.contextmanager
def flags_in_errors() -> Iterator[None]:
    """In a ParameterError, call the running command's parameters by their flags: --top-k for top_k."""
    try:
        yield
    except ParameterError as error:
        params = click.get_current_context().command.params
        flags = {param.name: max(param.opts, key=len) for param in params if isinstance(param, click.Option)}
        words = str(error).split(" ")
        # A word like "temperature" is also a sampler's name; the first of a message is the parameter.
        words = [flags.get(word, word) if i == 0 or "_" in word else word for i, word in enumerate(words)]
        raise type(error)(" ".join(words)) from error


@contextlib.contextmanager
def named_in_errors(name: str) -> Iterator[None]:
    """In an OSError, say that it is of reading `name`: one of a read does not know, and could be one of a write."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise NvgError(f"{name} can't be read: {error.strerror}") from error


def complete_samplers(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from nvg.plugins import registry

    return [name for name in registry().samplers.names() if name.startswith(incomplete)]


def complete_presets(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from nvg.sampling.presets import preset_names

    return [name for name in preset_names() if name.startswith(incomplete)]


def _complete_tokenizers(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from nvg.plugins import registry

    return [name for name in registry().tokenizers.names() if name.startswith(incomplete)]


def _complete_models(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    from click.shell_completion import CompletionItem

    from nvg.hub import BUILT_IN
    from nvg.hub_cache import cached_models

    known = BUILT_IN | {str(model.name): "from the hub" for model in cached_models()}
    names = [CompletionItem(name, help=text) for name, text in known.items() if name.startswith(incomplete)]
    return [CompletionItem(incomplete, type="dir"), *names]  # bash forgets what comes before a directory


model = click.option(
    "-m",
    "--model",
    default=EngineConfig.model,
    show_default=True,
    shell_complete=_complete_models,
    help="A built-in model's name, or the path of a Hugging Face GPT-2 directory.",
)
tokenizer = click.option(
    "--tokenizer",
    metavar="NAME",
    shell_complete=_complete_tokenizers,
    help="A tokenizer plugin, instead of the checkpoint's own.",
)
dtype = click.option(
    "--dtype", type=click.Choice(DTYPES), default=EngineConfig.dtype, show_default=True, help="How weights are stored."
)
kv_dtype = click.option(
    "--kv-dtype",
    type=click.Choice(KV_DTYPES),
    help="How keys and values are stored.  [default: float32 with float32 weights, else bfloat16]",
)
kv_memory = click.option(
    "--kv-memory",
    type=_Bytes(),
    metavar="SIZE",
    help="Most bytes for keys and values, as 2G or 512Mi.  [default: what the sequences can use, at most half of the "
    "free memory]",
)
on_full = click.option(
    "--on-full",
    type=click.Choice(ON_FULL),
    default=SamplingParams.on_full,
    show_default=True,
    help="When the context is full: stop; error refuses a prompt whose --max-tokens might fill it; slide goes on with "
    "the last half of it, computed anew.",
)
output_format = click.option(
    "--format", "output_format", type=click.Choice(["text", "json"]), default="text", show_default=True
)
samplers = click.option(
    "--sampler",
    "samplers",
    metavar="NAME",
    multiple=True,
    shell_complete=complete_samplers,
    help="A stage of the sampling chain (nvg samplers lists them), instead of the default chain; repeatable, in order. "
    "Also FILE.py:NAME.",
)
_PLACES = "nvg.places"
"""Key in a context's `meta`: for each -o the index of the --sampler before it, or None."""


def _placed(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> tuple[Any, ...]:
    """Each -o as a `nvg.sampling.compose.OptionText`."""
    if not texts:
        return ()
    from nvg.sampling.compose import OptionText

    return tuple(map(OptionText, texts, ctx.meta.get(_PLACES, [None] * len(texts))))


sampler_options = click.option(
    "-o",
    "sampler_options",
    metavar="NAME=VALUE",
    multiple=True,
    callback=_placed,
    help="An option of the stage before it, or else of any: k=40, or topk.k=40. Lists are written a,b,c or as JSON "
    "where a text has a comma; maps are JSON.",
)
preset = click.option(
    "--preset",
    metavar="NAME",
    shell_complete=complete_presets,
    help="A chain with a name (nvg presets lists them), instead of the default chain. Also FILE.toml.",
)
_SHORTCUTS = (
    ("--repetition-penalty", float, "R", "Divide the logits of the last 64 tokens by R, above 0; 1 means off."),
    ("--presence-penalty", float, "A", "Subtract A from the logits of the last 64 tokens; 0 means off."),
    ("--frequency-penalty", float, "A", "The same, once for each time that they came."),
    ("--dry-multiplier", float, "M", "Penalise what would prolong a repetition; 0 means off, 0.8 is usual."),
    ("--top-n-sigma", float, "N", "Keep logits within N deviations of the largest; 0 means all."),
    ("--top-k", int, "K", "Keep the K most probable tokens; 0 means all."),
    ("--typical-p", float, "P", "Keep tokens of typical surprise that together reach probability P; 1 means all."),
    ("--top-p", float, "P", "Keep the most probable tokens that together reach probability P; 1 means all."),
    ("--min-p", float, "P", "Keep tokens at least P times as probable as the most probable; 0 means all."),
    ("--xtc-probability", float, "P", "How often to exclude all but the last of the top choices; 0 means never."),
    ("--xtc-threshold", float, "P", "How probable a top choice is at least.  [default: 0.1]"),
    ("--temperature", float, "T", "Divide the logits by T, 0 or more; 0 means greedy."),
)
SHORTCUTS = tuple(flag[2:].replace("-", "_") for flag, *_ in _SHORTCUTS)
"""The parameters of `sampling`'s flags: the shortcuts of SamplingParams, in the order of the chain."""


def sampling(command: Callable[..., Any]) -> Callable[..., Any]:
    """All options that make a chain: --preset, --sampler, -o and a flag for each shortcut."""
    for flag, kind, metavar, text in reversed(_SHORTCUTS):
        command = click.option(flag, type=kind, metavar=metavar, help=text)(command)
    return preset(samplers(sampler_options(command)))


def base_chain(
    preset_name: str | None, sampler_names: Sequence[str], defaults: GenerationDefaults | None = None
) -> Any:
    """The chain that flags and -o apply to where no --sampler is given: the preset's, or else the command line's with
    a model's own defaults."""
    from nvg.sampling.compose import DEFAULT_CHAIN, own_chain
    from nvg.sampling.presets import find_preset

    if preset_name is None:
        return own_chain(defaults.params, defaults.stages, DEFAULT_CHAIN) if defaults else DEFAULT_CHAIN
    if sampler_names:
        raise ParameterError("--preset and --sampler both give a chain; give one of them")
    return find_preset(preset_name).stages


class SamplingCommand(click.Command):
    """A command with the options of `sampling`: its help lists them apart from the others, and an -o is for the
    --sampler before it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given: list[click.Parameter] = []
        with contextlib.suppress(click.UsageError):  # which is raised again below
            _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        names = [param.name for param in given]
        for param in given:
            twice = names.count(param.name) > 1 and param.name in ("preset", *SHORTCUTS)
            if twice and not ctx.resilient_parsing:
                raise click.UsageError(f"{param.opts[0]} is given {names.count(param.name)} times; give it once", ctx)
        ctx.meta[_PLACES] = [
            names[:place].count("samplers") - 1 if "samplers" in names[:place] else None
            for place, name in enumerate(names)
            if name == "sampler_options"
        ]
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        named = {"preset", "samplers", "sampler_options", *SHORTCUTS}
        sections: dict[str, list[tuple[str, str]]] = {"Options": [], "Sampling": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                sections["Sampling" if param.name in named else "Options"].append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def piped_stdin() -> str | None:
    """All of stdin if something is piped or redirected into it, else None; one newline at its end is not text.

    Raises ParameterError for what is not UTF-8.
    """
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError, AttributeError):  # no stdin at all
        return None
    if not (stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)):
        return None
    with named_in_errors("stdin"):
        data = sys.stdin.buffer.read()
    try:
        return data.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise ParameterError(f"stdin is {bad_byte(error)}; convert it first (iconv -t UTF-8)") from None
