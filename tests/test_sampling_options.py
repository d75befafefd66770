from __future__ import annotations  # so that the specs below have annotations that are text

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Optional

import numpy as np
import pytest

from nvg.errors import ParameterError, PluginError, UnknownNameError
from nvg.sampling.options import REQUIRED, make_spec, options_of, parse_option, summary
from nvg.sampling.topk import TopK
from nvg.sampling.topp import TopP

if TYPE_CHECKING:
    from decimal import Decimal


@dataclass(frozen=True)
class Rich:
    """Has an option of each kind,
    over two lines.

    token: the favourite
    bias: added to its logit,
      in nats
    """

    token: int
    bias: float = 1.0
    on: bool = False
    label: str = "x"
    limit: int | None = None
    floor: Optional[float] = None  # noqa: UP045
    mode: Literal["soft", "hard"] = "soft"
    width: float | Literal["auto"] = "auto"
    ids: list[int] = field(default_factory=list)

    needs_vocab = True

    def apply(self, logits, token_ids, state):
        logits[token_ids == self.token] += self.bias


@dataclass(frozen=True)
class Bare:
    a: float = 0.2

    def apply(self, logits, token_ids, state): ...


@dataclass(frozen=True)
class Unresolvable:
    a: int = 3
    b: Decimal = None  # type: ignore[assignment]

    def apply(self, logits, token_ids, state): ...


def test_options_are_the_fields():
    listed = [(option.name, option.type_name, option.default, option.help) for option in options_of(Rich)]
    assert listed == [
        ("token", "int", REQUIRED, "the favourite"),
        ("bias", "float", 1.0, "added to its logit, in nats"),
        ("on", "bool", False, ""),
        ("label", "str", "x", ""),
        ("limit", "none or int", None, ""),
        ("floor", "none or float", None, ""),
        ("mode", "'soft' or 'hard'", "soft", ""),
        ("width", "'auto' or float", "auto", ""),
        ("ids", "object", [], ""),
    ]
    assert summary(Rich) == "Has an option of each kind, over two lines."


def test_a_bare_annotated_field_is_enough():
    (option,) = options_of(Bare)
    assert (option.name, option.type_name, option.default, option.help) == ("a", "float", 0.2, "")
    assert summary(Bare) == ""


def test_types_that_exist_for_type_checkers_only():
    assert parse_option("u", Unresolvable, "a", "7") == 7
    with pytest.raises(ParameterError, match="option 'b' can't be given as text; use Python or JSON"):
        parse_option("u", Unresolvable, "b", "7")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("token", "12", 12),
        ("bias", "-1e3", -1000.0),
        ("bias", "2", 2.0),
        ("on", "True", True),
        ("on", "0", False),
        ("label", " a=b ", " a=b "),
        ("limit", "none", None),
        ("limit", "3", 3),
        ("floor", "0.5", 0.5),
        ("mode", "hard", "hard"),
        ("width", "auto", "auto"),
        ("width", "1.5", 1.5),
    ],
)
def test_text_is_read_by_type(name, text, value):
    parsed = parse_option("rich", Rich, name, text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "allowed"),
    [
        ("token", "1.5", "int"),
        ("token", "", "int"),
        ("bias", "much", "float"),
        ("on", "2", "bool"),
        ("limit", "all", "none or int"),
        ("mode", "Hard", "'soft' or 'hard'"),
    ],
)
def test_bad_text_names_sampler_option_value_and_type(name, text, allowed):
    with pytest.raises(ParameterError) as caught:
        parse_option("rich", Rich, name, text)
    message = f"sampler 'rich': {name} is {text!r}; it must be {allowed}"
    assert str(caught.value).startswith(message)
    help_text = next(option.help for option in options_of(Rich) if option.name == name)
    assert str(caught.value).removeprefix(message).removeprefix(", ") == help_text


def test_unknown_options_are_told_the_right_ones():
    with pytest.raises(UnknownNameError) as caught:
        make_spec("topk", "nvg", TopK, {"kk": 3})
    assert str(caught.value) == "no option of sampler 'topk' is called 'kk'; did you mean 'k'? There are: k"
    with pytest.raises(UnknownNameError, match="no option of sampler 'rich' is called 'needs_vocab'"):
        parse_option("rich", Rich, "needs_vocab", "no")


def test_values_are_checked_by_type():
    assert make_spec("topp", "nvg", TopP, {"p": 1}) == TopP(1.0)
    assert make_spec("topk", "nvg", TopK, {"k": np.int64(3)}) == TopK(3)
    assert make_spec("rich", "nvg", Rich, {"token": 1, "ids": [1, 2]}).ids == [1, 2]
    for name, value in (("token", "1"), ("token", True), ("token", 1.0), ("bias", None), ("on", 1), ("label", 3)):
        with pytest.raises(ParameterError, match=f"sampler 'rich': {name} is {value!r}; it must be "):
            make_spec("rich", "nvg", Rich, {"token": 1} | {name: value})


def test_a_missing_value_is_named():
    with pytest.raises(ParameterError, match="sampler 'rich' needs a value for its option 'token'"):
        make_spec("rich", "nvg", Rich, {})


def test_a_value_out_of_range_names_the_sampler():
    with pytest.raises(ParameterError, match=r"^sampler 'topp': p is 2.0; it must be a number above 0 and at most 1"):
        make_spec("topp", "nvg", TopP, {"p": 2})


def test_a_class_that_fails_otherwise_is_the_plugin_s_fault():
    @dataclass(frozen=True)
    class Faulty:
        def __post_init__(self):
            raise KeyError("weights")

        def apply(self, logits, token_ids, state): ...

    with pytest.raises(PluginError, match=r"sampler 'faulty' of nvg-faulty 1.0 could not be made: KeyError: 'weights'"):
        make_spec("faulty", "nvg-faulty 1.0", Faulty, {})


def test_what_is_no_spec_class():
    class Plain:
        def apply(self, logits, token_ids, state): ...

    @dataclass
    class Idle:
        p: float = 1.0

    with pytest.raises(PluginError, match="Plain is no sampler: it is not a dataclass; write @dataclass"):
        options_of(Plain)
    with pytest.raises(PluginError, match=r"Idle is no sampler: it has no method apply\(logits, token_ids, state\)"):
        options_of(Idle)
    with pytest.raises(PluginError, match=r"TopK\(k=40\) is no sampler: it is not a class"):
        options_of(TopK())


@dataclass(frozen=True)
class Listed:
    """Has options that hold several values."""

    words: tuple[str, ...] = ()
    rows: tuple[tuple[int, ...], ...] = ()
    bias: Mapping[int, float] = field(default_factory=dict)
    pair: tuple[int, int] = (1, 2)

    def apply(self, logits, token_ids, state): ...


@dataclass(frozen=True)
class Lists:
    words: tuple[str, ...] = ()
    ids: tuple[int, ...] = ()
    biases: Mapping[str, float] = field(default_factory=dict)

    def apply(self, logits, token_ids, state):
        pass


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("words", "was,had", ("was", "had")),
        ("words", '["was,had"]', ("was,had",)),
        ("ids", "5,17", (5, 17)),
        ("biases", '{" inf": -inf, "a": inf, "b": "-inf"}', {" inf": -math.inf, "a": math.inf, "b": -math.inf}),
    ],
)
def test_lists_are_split_at_commas_and_numbers_may_be_infinite(name, text, value):
    assert parse_option("lists", Lists, name, text) == value


@pytest.mark.parametrize(("name", "text"), [("words", "was,,had"), ("ids", "5,x"), ("biases", '{"a": "inf-"}')])
def test_bad_text_for_a_list_or_map(name, text):
    with pytest.raises(ParameterError, match=f"{name} is "):
        parse_option("lists", Lists, name, text)


def test_lists_and_maps():
    listed = [(option.name, option.type_name) for option in options_of(Listed)]
    assert listed == [
        ("words", "list of str"),
        ("rows", "list of list of int"),
        ("bias", "map of int to float"),
        ("pair", "object"),
    ]
    for name, text, value in (
        ("words", '["a", "b\\n"]', ("a", "b\n")),
        ("words", " king", (" king",)),
        ("words", '"', ('"',)),
        ("words", "[]", ()),
        ("rows", "[[1, 2], []]", ((1, 2), ())),
        ("bias", '{"5": -1, "7": -Infinity}', {5: -1.0, 7: -math.inf}),
    ):
        assert parse_option("listed", Listed, name, text) == value
    assert make_spec("listed", "nvg", Listed, {"words": ["a"], "rows": [[1]], "bias": {3: 1, "4": 2.5}}) == Listed(
        ("a",), ((1,),), {3: 1.0, 4: 2.5}
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [("words", '["a", 3]'), ("words", "[a"), ("rows", "[[1.5]]"), ("bias", "5"), ("bias", '{"x": 1}'), ("bias", "[1]")],
)
def test_bad_lists_and_maps(name, value):
    with pytest.raises(ParameterError, match=f"sampler 'listed': {name} is .*; it must be (list|map) of "):
        parse_option("listed", Listed, name, value)
    with pytest.raises(ParameterError, match=f"sampler 'listed': {name} is .*; it must be (list|map) of "):
        make_spec("listed", "nvg", Listed, {name: value})
