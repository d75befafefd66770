"""What holds for every built-in sampler: found through the hook, documented, sound on any row."""

import ast
import inspect
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rows import State, WordTokenizer, read_only, request

import nvg.sampling
from nvg.plugins import Registry
from nvg.sampling.chain import Chain, Stage
from nvg.sampling.options import REQUIRED, options_of, summary

ENTRIES = Registry("").samplers.entries()
NAMES = [entry.name for entry in ENTRIES]
SPECS = {entry.name: entry.load() for entry in ENTRIES}
# Options with which a sampler of no effect by default has one.
MORE = {
    "penalties": {"repetition": 1.3, "presence": 0.5, "frequency": 0.2},
    "banned": {"words": ("ab",), "ids": (1,), "sequences": ((0, 2),)},
    "logitbias": {"ids": {0: -3.0, 2: 1.5}, "words": {"ab": 2.0}},
    "forcedprefix": {"text": "ba"},
    "minlength": {"n": 3},
    "xtc": {"probability": 0.7, "threshold": 0.02},
    "temperature": {"t": 0.6},
    "norepeatngram": {"n": 1},
    "dry": {"allowed_length": 1},
}
SOURCE = re.compile(r"arXiv:\d{4}\.\d{4,5}|doi:10\.\S+|https://\S+|transformers|llama\.cpp")
TOKENIZER = WordTokenizer(["a", "b", "ab", "\n", " ", *(f"<{i}>" for i in range(5, 5000))], (3,))


def started(spec, prompt=()):
    asked = request(TOKENIZER.vocab_size, prompt, TOKENIZER, (3,))
    return spec.start(asked) if hasattr(spec, "start") else spec


def applied(spec, logits, ids, prompt, output, number=0.25):
    sampler = started(spec, prompt)
    for token_id in output if hasattr(sampler, "accept") else ():
        sampler.accept(token_id, -1.5)
    edited = logits.copy()
    assert sampler.apply(edited, read_only(ids), State(prompt, output, [number] * 3)) is None
    return edited


def test_the_known_strategies_are_there():
    assert set(NAMES) == {
        "greedy", "temperature", "topk", "topp", "minp", "typical", "epsilon", "eta", "topnsigma", "tailfree", "topa",
        "xtc", "dry", "mirostat", "mirostat2", "dyntemp", "penalties", "norepeatngram", "logitbias", "banned",
        "minlength", "forcedprefix",
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_each_has_a_source_and_help_for_every_option(name):
    spec_class = SPECS[name]
    assert SOURCE.search(summary(spec_class)), "no paper, address or implementation is named"
    for option in options_of(spec_class):
        assert option.help, f"{option.name} has no help"
        assert option.types, f"{option.name} can't be given as text"
        assert option.default is not REQUIRED, "a name alone must do"
    spec_class()


def test_each_is_a_file_of_its_own_of_a_size_to_read():
    files = [inspect.getfile(spec_class) for spec_class in SPECS.values()]
    assert len(set(files)) == len(files)
    for file in files:
        assert len(Path(file).read_text().splitlines()) < 200, file


def test_every_class_with_apply_and_options_is_registered():
    """A sampler's file that nobody registers would be dead."""
    found = set()
    for path in Path(nvg.sampling.__file__).parent.glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and path.stem in NAMES and not node.name.startswith("_"):
                found.add(node.name)
    assert found - {"Surprise"} == {spec_class.__name__ for spec_class in SPECS.values()}


logits_rows = hnp.arrays(
    np.float32,
    st.integers(1, 40),
    elements=st.one_of(st.sampled_from([-np.inf, 0.0, -0.0, 5.0, 3e38, -3e38]), st.floats(-60, 60, width=32)),
).filter(lambda row: (row > -np.inf).any())
histories = st.lists(st.integers(0, 6), max_size=12)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(logits_rows, histories, histories, st.data())
def test_any_row_stays_sound(name, logits, prompt, output, data):
    """No NaN or +inf, nothing comes back, something is left (or what must come is no candidate), each time the same."""
    ids = np.sort(data.draw(st.permutations(range(45)).map(lambda order: order[: logits.size])))
    for options in ({}, MORE.get(name, {})):
        spec = SPECS[name](**options)
        try:
            edited = applied(spec, logits, ids, prompt, output)
        except ValueError:
            assert name == "forcedprefix"
            continue
        assert not np.isnan(edited).any()
        assert (edited < np.inf).all()
        assert (edited[logits == -np.inf] == -np.inf).all()
        if name == "banned" and options:
            candidates = set(ids[logits > -np.inf].tolist())
            assert (edited > -np.inf).any() or candidates <= {1, 2}
        else:
            assert (edited > -np.inf).any()
        assert applied(spec, logits, ids, prompt, output).tobytes() == edited.tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_holes_and_compacted_rows_give_the_same(name):
    """What is removed has no say: the engine may compact before a stage or not."""
    rng = np.random.default_rng(11)
    spec = SPECS[name](**MORE.get(name, {}))
    for size in (1, 2, 7, 40, 4700):
        for _ in range(6):
            logits = (rng.standard_normal(5000) * 3).astype(np.float32)
            stays = np.zeros(5000, bool)
            stays[rng.choice(np.arange(5), 1)] = True
            stays[rng.choice(5000, size, replace=False)] = True
            if name == "forcedprefix":
                stays[:3] = True
            logits[~stays] = -np.inf
            prompt, output = rng.integers(0, 5, 9).tolist(), rng.integers(0, 5, 4).tolist()
            ids = np.arange(5000)
            try:
                whole = applied(spec, logits, ids, prompt, output)
            except ValueError:
                continue
            compacted = applied(spec, logits[stays], ids[stays], prompt, output)
            np.testing.assert_allclose(whole[stays], compacted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_all_equal_logits(name):
    for size in (1, 3, 400):
        edited = applied(SPECS[name](), np.full(size, 2.5, np.float32), np.arange(size) + 10, [1, 2], [3])
        left = edited[edited > -np.inf]
        assert left.size
        assert (left == left[0]).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_choice_does_not_depend_on_another_that_runs_beside_it(name):
    """Two sequences in turns, on one spec, and each alone: the same tokens."""
    spec = SPECS[name](**MORE.get(name, {}))
    rows = np.random.default_rng(12).standard_normal((2, 12, 300)).astype(np.float32) * 3

    def chain(seed):
        return Chain([Stage(name, spec, "nvg")], request(300, (4, 5, 4), TOKENIZER_300, (3,)), seed)

    def step(one, number, text):
        token_id, _ = one.sample(rows[number, len(text)].copy(), read_only([4, 5, 4]), np.array(text, np.int32))
        return [*text, token_id]

    together, texts = [chain(1), chain(2)], [[], []]
    for _ in range(12):
        texts = [step(one, number, text) for number, (one, text) in enumerate(zip(together, texts, strict=True))]
    for number, text in enumerate(texts):
        alone, again = chain(number + 1), []
        for _ in range(12):
            again = step(alone, number, again)
        assert again == text


TOKENIZER_300 = WordTokenizer(["a", "b", "ab", "\n", " ", *(f"<{i}>" for i in range(5, 300))], (3,))
