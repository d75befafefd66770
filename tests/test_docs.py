"""The gallery of samplers: up to date, complete, and made for samplers that say less of themselves, too."""

import importlib.util
import inspect
import re
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pytest

from nvg import params
from nvg.cli.options import SHORTCUTS
from nvg.plugins import Entry
from nvg.sampling.options import REQUIRED, options_of, summary

ROOT = Path(__file__).resolve().parents[1]
NUMBER = re.compile(r"\d+\.\d")


@pytest.fixture(scope="module")
def gallery(compiled_kernels):
    spec = importlib.util.spec_from_file_location("make_gallery", ROOT / "docs" / "make_gallery.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_gallery_is_what_the_samplers_make_of_it(gallery):
    files = gallery.build(gallery.built_in())
    assert {*files} == {gallery.PAGE, *(ROOT / "docs" / "samplers").iterdir()}, "run python docs/make_gallery.py"
    for path, made in files.items():
        there = path.read_text(encoding="utf-8")
        if path.suffix == ".svg":  # other machines' last bits are other ones
            assert np.allclose(*([float(n) for n in NUMBER.findall(text)] for text in (made, there)), atol=0.2), path
            made, there = NUMBER.sub("", made), NUMBER.sub("", there)
        assert made == there, f"run python docs/make_gallery.py: {path.name} is out of date"


def test_every_sampler_and_every_option_is_documented(gallery):
    page = gallery.PAGE.read_text(encoding="utf-8")
    sections = {part.split("\n")[0]: part for part in page.split("\n## ")[1:]}
    entries = {entry.name: entry for entry in gallery.built_in()}
    assert set(sections) == set(entries)
    for name, part in sections.items():
        assert summary(entries[name].load()), name
        assert "```text\n" in part, f"{name} has no formula: an indented paragraph of the docstring"
        assert "\n\nUse it " in part, f"{name} does not say when to use it: a paragraph that begins 'Use it'"
        assert f"](samplers/{name}.svg)" in part, f"{name} has no picture: give an example in SETTINGS"
        for option in options_of(entries[name].load()):
            default = "required" if option.default is REQUIRED else f"`{option.default!r}`"
            row = re.search(rf"^\| `{option.name}` \| (.+?) \| {re.escape(default)} \| (.+) \|$", part, re.M)
            assert row, f"{name} has no help for {option.name}: a docstring line '{option.name}: ...'"


def test_every_picture_shows_an_effect(gallery):
    for entry in gallery.built_in():
        for setting in gallery.SETTINGS.get(entry.name, [""]):
            texts = re.split(r" (?=\w+=)", setting) if setting else []
            before, after = gallery.effect(gallery.spec_of(entry, texts))
            assert np.abs(after - before).max() > 0.005, (entry.name, setting)


@dataclass(frozen=True)
class Bare:
    x: int

    def apply(self, logits, token_ids, state): ...


@dataclass(frozen=True)
class Coin:
    """Half the time keep the first (arXiv:1234.56789).

    side: which

        P'(i) = 1/2 < 1

    Use it never.
    """

    side: str = "a|b"

    def apply(self, logits, token_ids, state):
        if state.uniform() < 0.5:
            logits[1:] = -np.inf


def test_a_sampler_that_lacks_text_or_an_example_has_a_section_all_the_same(gallery):
    files = gallery.build([Entry("sampler", "bare", Bare, "x"), Entry("sampler", "coin", Coin, "x")])
    assert [path.name for path in files] == ["coin.svg", "samplers.md"]
    page = files[gallery.PAGE]
    assert (
        "\n## bare\n\n| option | type | default | |\n|---|---|---|---|\n| `x` | int | required | |\n\n## coin\n" in page
    )
    coin = page.split("\n## coin\n")[1]
    assert "[arXiv:1234.56789](https://arxiv.org/abs/1234.56789)" in coin
    assert "```text\nP'(i) = 1/2 < 1\n```\n\nUse it never.\n" in coin
    assert "| `side` | str | `'a\\|b'` | which |" in coin
    before, after = gallery.effect(Coin())
    assert after[0] == pytest.approx((1 + before[0]) / 2, abs=0.05), "of chance the mean is shown"


@pytest.mark.parametrize("options", [params.SamplingParams, params.EngineConfig])
def test_every_parameter_is_documented_where_help_shows_it(options):
    text = inspect.getdoc(options)
    documented = dict(re.findall(r"^(\w+): (.+(?:\n +.+)*)", text, re.MULTILINE))
    assert list(documented) == [field.name for field in fields(options)]
    for field in fields(options):
        if options is params.EngineConfig or field.name not in SHORTCUTS:  # which are unset: said of them together
            assert re.search(rf"default\s+{re.escape(repr(field.default))}(?![\w.])", documented[field.name]), (
                field.name
            )
