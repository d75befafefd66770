"""Writes the gallery of nvg's own samplers: docs/samplers.md and a picture for each, from the samplers themselves.

    python docs/make_gallery.py

The text is the class docstrings', the options are the dataclass fields, and the pictures show what `apply` does to one
distribution. A docstring's first paragraph says what the sampler does and where it is from; lines "option: help" become
the table; an indented paragraph is a formula; any other is printed as it is.
"""

from __future__ import annotations

import inspect
import os
import re
import shlex
import sys
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

from nvg import SamplingParams
from nvg.plugins import Entry, Registry
from nvg.sampling.contract import SamplerRequest
from nvg.sampling.options import REQUIRED, make_spec, options_of, parse_option, summary
from nvg.sampling.random import uniform

HERE = Path(__file__).resolve().parent
PAGE = HERE / "samplers.md"

PROMPT = "the king was sad, the queen was sad, the king was"
PERCENT = {
    "sad": 24, "angry": 14, "old": 11, "happy": 8, "not": 7, "very": 6, "so": 5, "rich": 4.5, "<end>": 4, "dead": 3.5,
    "glad": 2.5, "ill": 2, "young": 1.8, "weary": 1.4, "the": 1.2, ",": 1.1, "king": 0.9, "queen": 0.6, "was": 0.4,
}  # fmt: skip
"""What might come next; a token's id is its place."""
NUM_ROLLS = 1000
"""Of a sampler that draws random numbers the mean of so many is shown."""

SETTINGS = {
    "banned": ['words=["sad", "old"]'],
    "dry": ["allowed_length=1", "allowed_length=1 multiplier=0.2"],
    "dyntemp": ["t=1 range=0.8", "t=1 range=0.8 exponent=10"],
    "epsilon": ["epsilon=0.02", "epsilon=0.05"],
    "eta": ["epsilon=0.02", "epsilon=0.1"],
    "forcedprefix": ["text=old"],
    "logitbias": ['words={"happy": 1.5, "sad": -1.5}'],
    "minlength": ["n=5"],
    "minp": ["p=0.1", "p=0.4"],
    "mirostat": ["tau=1.5", "tau=2.5"],
    "mirostat2": ["tau=1.5", "tau=2.5"],
    "norepeatngram": ["n=2", "n=1"],
    "penalties": ["presence=1", "frequency=1"],
    "tailfree": ["z=0.7", "z=0.95"],
    "temperature": ["t=0.5", "t=2"],
    "topa": ["a=0.2", "a=0.8"],
    "topk": ["k=3", "k=10"],
    "topnsigma": ["n=0.7", "n=1.5"],
    "topp": ["p=0.5", "p=0.9"],
    "typical": ["p=0.3", "p=0.7"],
    "xtc": ["probability=1", "probability=0.5"],
}
"""Options that show what a sampler does; one that is not here is shown with its defaults."""

INTRODUCTION = f"""\
# Samplers

What nvg can do to the distribution of the next token. `nvg generate --sampler topk -o k=50 --sampler topp` chains two
of these stages, in the order given; in Python that is `SamplingParams(sampler=[("topk", {{"k": 50}}), "topp"])`.
`nvg samplers` lists all that are installed, other people's included.

Each picture shows the same distribution, of {len(PERCENT)} tokens that may follow
"{PROMPT}": grey before the stage, blue after it, what it
removed struck out; where chance decides, the mean. P and P' are the probabilities before and after, l and l' the
logits, H is the entropy. The page is made by `python docs/make_gallery.py` from what the samplers say of themselves.

**Guidance** is no stage, it comes before the first one: `--guidance-scale s` with `--negative-prompt TEXT` replaces the
logits by n + s (p - n), where p and n are the log-probabilities after the prompt and after the negative prompt, each
with the same output behind it (Sanchez et al. 2023, [arXiv:2306.17806](https://arxiv.org/abs/2306.17806))."""


class WordTokenizer:
    """Words and commas of the gallery's vocabulary."""

    eos_token_ids = (list(PERCENT).index("<end>"),)
    special_tokens = {"<end>": eos_token_ids[0]}  # noqa: RUF012
    vocab_size = len(PERCENT)
    fingerprint = "gallery"

    def encode(self, text, *, allow_special=False):
        return [list(PERCENT).index(word) for word in re.findall(r"\w+|,", text)]

    def encode_batch(self, texts, *, allow_special=False):
        return [self.encode(text) for text in texts]

    def token_bytes(self, token_id):
        word = list(PERCENT)[token_id]
        return (word if word == "," else f" {word}").encode()

    def decode_bytes(self, token_ids):
        return b"".join(map(self.token_bytes, token_ids))

    def decode(self, token_ids):
        return self.decode_bytes(token_ids).decode()


class Beginning:
    """The `nvg.sampling.contract.State` at the first output token."""

    step = 0
    output_token_ids = np.empty(0, np.int32)

    def __init__(self, prompt, seed):
        self.prompt_token_ids = prompt
        self.num_drawn = 0
        self._seed = seed

    def uniform(self):
        self.num_drawn += 1
        return uniform(self._seed, 0, 0, 0, self.num_drawn - 1)


def probabilities(logits):
    """Softmax, float64."""
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


def effect(spec):
    """(probabilities before, after) of a spec: (n,) each."""
    tokenizer = WordTokenizer()
    prompt = np.array(tokenizer.encode(PROMPT), np.int32)
    logits = np.log(np.array(list(PERCENT.values())) / sum(PERCENT.values())).astype(np.float32)
    ids = np.arange(logits.size, dtype=np.int32)
    params = SamplingParams()
    request = SamplerRequest(tokenizer, logits.size, tokenizer.eos_token_ids, prompt, params)
    total = np.zeros(logits.size)
    for seed in range(NUM_ROLLS):
        state, row = Beginning(prompt, seed), logits.copy()
        sampler = spec.start(request) if hasattr(spec, "start") else spec
        sampler.apply(row, ids, state)
        if not state.num_drawn:
            return probabilities(logits), probabilities(row)
        total += probabilities(row)
    return probabilities(logits), total / NUM_ROLLS


_SLOT, _LEFT, _TOP, _HEIGHT, _BOTTOM = 19, 34, 30, 130, 50
_WIDTH = _LEFT + _SLOT * len(PERCENT) + 12


def picture(panels):
    """An SVG of panels (title, probabilities before, after), side by side."""
    highest = max(max(before.max(), after.max()) for _, before, after in panels)
    grid = 0.2 if highest > 0.5 else 0.1
    top = grid * np.ceil(highest / grid - 1e-6)
    parts = []
    for number, (title, before, after) in enumerate(panels):
        parts.append(f'<g transform="translate({number * _WIDTH},0)">')
        parts.append(f'<text x="{_LEFT}" y="16" font-size="12" font-weight="bold">{escape(title)}</text>')
        left = f"{np.count_nonzero(after)} of {after.size} left"
        parts.append(f'<text x="{_WIDTH - 12}" y="16" font-size="11" text-anchor="end">{left}</text>')
        for line in range(round(top / grid) + 1):
            y = _TOP + _HEIGHT * (1 - line * grid / top)
            parts.append(f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - 12}" stroke="#ddd"/>')
            parts.append(
                f'<text x="{_LEFT - 5}" y="{y + 3.5:.1f}" font-size="10" text-anchor="end">{line * grid:.1f}</text>'
            )
        for place, word in enumerate(PERCENT):
            x = _LEFT + place * _SLOT
            for value, colour, inset in ((before[place], "#c8c8c8", 2), (after[place], "#2468b0", 5)):
                height = _HEIGHT * value / top
                parts.append(
                    f'<rect x="{x + inset}" y="{_TOP + _HEIGHT - height:.1f}" width="{_SLOT - 2 * inset}" '
                    f'height="{height:.1f}" fill="{colour}"/>'
                )
            style = "" if after[place] else ' fill="#999" text-decoration="line-through"'
            at = f"{x + _SLOT // 2 + 3} {_TOP + _HEIGHT + 9}"
            parts.append(
                f'<text transform="translate({at}) rotate(-55)" font-size="10.5" text-anchor="end"{style}>'
                f"{escape(word)}</text>"
            )
        parts.append("</g>")
    width, height = _WIDTH * len(panels), _TOP + _HEIGHT + _BOTTOM
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif">'
    return "\n".join([head, f'<rect width="{width}" height="{height}" fill="white"/>', *parts, "</svg>", ""])


def linked(text):
    """A paragraph on one line, its arXiv numbers and DOIs as links."""
    text = " ".join(text.split()).replace("<", "&lt;")
    text = re.sub(r"arXiv:(\d+\.\d+)", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)
    return re.sub(r"doi:(10\.[^\s);,]+)", r"[doi:\1](https://doi.org/\1)", text)


def option_table(options):
    """The options of a sampler as Markdown."""
    rows = ["| option | type | default | |", "|---|---|---|---|"]
    for option in options:
        default = "required" if option.default is REQUIRED else f"`{option.default!r}`"
        cells = f"`{option.name}`", option.type_name, default, option.help.replace("<", "&lt;")
        rows.append("".join(f"| {cell}".rstrip() + " " for cell in (text.replace("|", "\\|") for text in cells)) + "|")
    return "\n".join(rows)


def section(entry: Entry, file: str, titles) -> str:
    """A sampler's part of the page."""
    spec_class = entry.load()
    options = options_of(spec_class)
    is_option = re.compile("|".join([r"(?!)", *(rf"{option.name}:" for option in options)])).match
    parts = [f"## {entry.name}"]
    for paragraph in inspect.cleandoc(spec_class.__doc__ or "").split("\n\n") if summary(spec_class) else ():
        if all(line.startswith("    ") for line in paragraph.splitlines()):
            parts.append(f"```text\n{inspect.cleandoc(paragraph)}\n```")
        elif not is_option(paragraph):
            parts.append(linked(paragraph))
    if options:
        parts.append(option_table(options))
    if titles:
        parts.append(f"![Probabilities before and after {' and '.join(titles)}]({file})")
    return "\n\n".join(parts)


def build(entries) -> dict[Path, str]:
    """All files of the gallery of these samplers: path -> text."""
    files, sections, index = {}, [], ["| sampler | |", "|---|---|"]
    for entry in entries:
        name, panels = entry.name, []
        required = [option for option in options_of(entry.load()) if option.default is REQUIRED]
        settings = SETTINGS.get(name, [] if required else [""])
        for setting in settings:
            texts = re.split(r" (?=\w+=)", setting) if setting else []
            title = " ".join([name, *(f"-o {shlex.quote(text)}" for text in texts)])
            panels.append((title, *effect(spec_of(entry, texts))))
        path = HERE / "samplers" / f"{name}.svg"
        if panels:
            files[path] = picture(panels)
        sections.append(section(entry, f"samplers/{name}.svg", [title for title, *_ in panels]))
        promise = re.split(r" \(|: |\.$", linked(summary(entry.load())))[0]
        index.append(f"| [{name}](#{name}) | {promise} |")
    files[PAGE] = "\n\n".join([INTRODUCTION, "\n".join(index), *sections]) + "\n"
    return files


def spec_of(entry: Entry, texts):
    """The sampler with options as the command line takes them, "name=value"."""
    pairs = [text.split("=", 1) for text in texts]
    spec_class = entry.load()
    values = {name: parse_option(entry.name, spec_class, name, value) for name, value in pairs}
    return make_spec(entry.name, entry.origin, spec_class, values)


def built_in() -> list[Entry]:
    """nvg's own samplers, without those of plugins."""
    return Registry(load_plugins="").samplers.entries()


def main() -> None:
    files = build(built_in())
    PAGE.parent.joinpath("samplers").mkdir(exist_ok=True)
    for old in HERE.glob("samplers/*.svg"):
        if old not in files:
            old.unlink()
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    print(f"{len(files)} files in {os.path.relpath(HERE)}", file=sys.stderr)


if __name__ == "__main__":
    main()
