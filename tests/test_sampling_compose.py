import math
from dataclasses import dataclass
from types import ModuleType

import pytest

from nvg.errors import ParameterError, PluginError, UnknownNameError
from nvg.hookspecs import hookimpl
from nvg.params import SamplingParams
from nvg.plugins import Registry, registry
from nvg.sampling.banned import Banned
from nvg.sampling.compose import _ORDER, DEFAULT_CHAIN, SHORTCUTS, OptionText, compose, resolve
from nvg.sampling.dry import DRY
from nvg.sampling.greedy import Greedy
from nvg.sampling.minp import MinP
from nvg.sampling.mirostat2 import Mirostat2
from nvg.sampling.penalties import Penalties
from nvg.sampling.temperature import Temperature
from nvg.sampling.topk import TopK
from nvg.sampling.topnsigma import TopNSigma
from nvg.sampling.topp import TopP
from nvg.sampling.typical import Typical
from nvg.sampling.xtc import XTC


@dataclass(frozen=True)
class Favour:
    """A sampler with an option that has no default."""

    token: int
    bias: float = 1.0

    def apply(self, logits, token_ids, state):
        logits[token_ids == self.token] += self.bias


@pytest.fixture
def _favour():
    @hookimpl
    def nvg_register_samplers(register):
        register("favour", Favour)

    plugin = ModuleType("test_favour")
    plugin.nvg_register_samplers = nvg_register_samplers
    registry().register(plugin, "test-favour")
    yield
    registry().unregister("test-favour")


def specs(base=(), options=(), **params) -> list:
    return [stage.spec for stage in resolve(SamplingParams(**params), base, options)]


def test_nothing_asked_is_the_empty_chain():
    assert specs() == []
    assert specs(sampler=()) == []


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        ("topp", [TopP()]),
        (("topp", {"p": 0.8}), [TopP(0.8)]),
        ({"name": "topp"}, [TopP()]),
        ({"name": "topp", "options": {"p": 0.8}}, [TopP(0.8)]),
        (TopP(0.8), [TopP(0.8)]),
        (["topk", "topp"], [TopK(), TopP()]),
        (("topk", "topp"), [TopK(), TopP()]),
        (["topk", {"name": "topp", "options": {"p": 0.5}}], [TopK(), TopP(0.5)]),
        (("topk", {"name": "topp"}), [TopK(), TopP()]),
        ([("topk", {"k": 3}), MinP(0.2), "greedy"], [TopK(3), MinP(0.2), Greedy()]),
        (["topk", "topk"], [TopK(), TopK()]),
    ],
)
def test_the_forms_of_a_chain(sampler, expected):
    assert specs(sampler=sampler) == expected


def test_stages_know_their_name_and_origin():
    class Own:
        def apply(self, logits, token_ids, state): ...

    named, spec, own = resolve(SamplingParams(sampler=["topk", TopP(), Own()]))
    assert (named.name, named.origin) == ("topk", "nvg (built in)")
    assert (spec.name, spec.origin) == ("topp", "nvg (built in)")
    assert (own.name, own.origin) == ("Own", __name__)
    assert resolve(SamplingParams(sampler=(named, spec))) == (named, spec)
    assert resolve(SamplingParams(sampler=named)) == (named,)


@pytest.mark.parametrize(
    ("shortcuts", "expected"),
    [
        ({"temperature": 0.7}, [Temperature(0.7)]),
        ({"temperature": 0}, [Temperature(0.0)]),
        (
            {"temperature": 0.7, "min_p": 0.1, "top_p": 0.9, "top_k": 5},
            [TopK(5), TopP(0.9), MinP(0.1), Temperature(0.7)],
        ),
        ({"top_k": 0, "top_p": 1}, [TopK(0), TopP(1.0)]),
    ],
)
def test_shortcuts_insert_stages_in_order(shortcuts, expected):
    assert specs(**shortcuts) == expected


def test_the_default_chain():
    assert specs(DEFAULT_CHAIN) == [TopK(40), TopP(0.95), Temperature(0.8)]
    assert specs(DEFAULT_CHAIN, top_p=0.5) == [TopK(40), TopP(0.5), Temperature(0.8)]
    assert specs(DEFAULT_CHAIN, min_p=0.1) == [TopK(40), TopP(0.95), MinP(0.1), Temperature(0.8)]
    assert specs(DEFAULT_CHAIN, temperature=0) == [TopK(40), TopP(0.95), Temperature(0.0)]
    assert specs(DEFAULT_CHAIN, sampler="greedy") == [Greedy()]


def test_shortcuts_set_stages_of_a_given_chain():
    assert specs(sampler=["temperature", "topp"], top_p=0.5) == [Temperature(), TopP(0.5)]
    assert specs(sampler=[Temperature(2.0), TopP(0.3)], temperature=0.5) == [Temperature(0.5), TopP(0.3)]


def test_a_shortcut_without_a_stage_to_set():
    with pytest.raises(ParameterError) as caught:
        specs(sampler=["greedy", "topk"], top_p=0.5)
    assert str(caught.value) == (
        "top_p is 0.5, but the chain (greedy, topk) has no 'topp' stage to set; add 'topp' to it, or leave top_p out"
    )
    with pytest.raises(ParameterError, match=r"but the chain \(empty\) has no 'topk' stage"):
        specs(sampler=(), top_k=3)
    with pytest.raises(ParameterError, match=r"the chain \(topk, topk\) has 2 'topk' stages"):
        specs(sampler=["topk", "topk"], top_k=3)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["p=0.9"], [TopK(40), TopP(0.9), Temperature(0.8)]),
        (["topp.p=0.9", "k=3", "temperature.t=1"], [TopK(3), TopP(0.9), Temperature(1.0)]),
    ],
)
def test_options_from_text(options, expected):
    assert specs(DEFAULT_CHAIN, options) == expected


def test_options_from_text_reach_specs_and_do_not_contradict_shortcuts():
    assert specs(options=["p=0.5"], sampler=TopP(0.2)) == [TopP(0.5)]
    with pytest.raises(ParameterError, match=r"^min_p and the option 'minp.p=0.3' set the same, minp\.p; give one"):
        specs(options=["minp.p=0.3"], top_p=0.9, min_p=0.1)


def test_an_option_is_for_the_stage_before_it():
    chain = ["temperature", "minp", "temperature"]
    options = [OptionText("t=2", 0), OptionText("t=0.5", 2), OptionText("p=0.2", 2)]
    assert specs(options=options, sampler=chain) == [Temperature(2.0), MinP(0.2), Temperature(0.5)]
    assert specs(options=[OptionText("temperature.t=3", 2)], sampler=chain)[2] == Temperature(3.0)
    with pytest.raises(ParameterError, match=r"fits 2 stages .*; write -o after the --sampler that is meant"):
        specs(options=[OptionText("t=2", 1)], sampler=chain)
    with pytest.raises(ParameterError, match=r"^option 'temperature.t=4' and option 't=2' set the same, temperature.t"):
        specs(options=["t=2", "temperature.t=4"], sampler="temperature")


def test_the_default_chain_is_nvg_s_own_where_a_plugin_claims_a_name(monkeypatch):
    plugin = ModuleType("claims")
    plugin.nvg_register_samplers = hookimpl(claim_topk)
    names = Registry("")
    names.register(plugin, "claims")
    monkeypatch.setattr("nvg.plugins._registry", names)
    assert specs(DEFAULT_CHAIN, top_k=3)[0] == TopK(3)
    with pytest.raises(PluginError, match="'topk' is registered twice"):
        specs(sampler="topk")


def claim_topk(register):
    register("topk", MinP)


@pytest.mark.usefixtures("_favour")
def test_an_option_without_default_may_come_from_text():
    assert specs(options=["token=5"], sampler="favour") == [Favour(5)]
    with pytest.raises(ParameterError, match="sampler 'favour' needs a value for its option 'token'"):
        specs(sampler="favour")


@pytest.mark.parametrize(
    ("options", "params", "message"),
    [
        (["p"], {}, r"option 'p' is not NAME=VALUE or SAMPLER.NAME=VALUE"),
        (["=3"], {}, r"option '=3' is not NAME=VALUE"),
        (["p=1"], {"min_p": 0.1}, r"option 'p=1' fits 2 stages \(topp.p, minp.p\); write which, as SAMPLER.NAME=VALUE"),
        (["topk.k=1"], {"sampler": ["topk", "topk"]}, r"fits 2 stages \(topk.k, topk.k\)"),
        (["q=1"], {}, r"no option of this chain is called 'q'. There are: temperature.t, topk.k, topp.p"),
        (["tpp.p=1"], {}, r"no stage of this chain is called 'tpp'; did you mean 'topp'\?"),
        (["topp.q=1"], {}, r"no option of sampler 'topp' is called 'q'. There are: p"),
        (["k=many"], {}, r"sampler 'topk': k is 'many'; it must be int"),
        (["p=7"], {}, r"sampler 'topp': p is 7.0; it must be a number above 0 and at most 1"),
    ],
)
def test_bad_options_from_text(options, params, message):
    with pytest.raises(ParameterError, match=message):
        specs(DEFAULT_CHAIN, options, **params)


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (
            "topq",
            r"no sampler is called 'topq'; did you mean 'topp'\? There are: .*topk, topnsigma, topp",
        ),
        (("topp", {"q": 1}), "no option of sampler 'topp' is called 'q'"),
        ({"nam": "topp"}, r"sampler has {'nam': 'topp'}; an item of a chain is a name"),
        ({"name": "topp", "p": 1}, "an item of a chain is a name"),
        ({"name": "topp", "options": 3}, "an item of a chain is a name"),
        (["topp", {"p": 0.9}], r"sampler has {'p': 0.9}; an item of a chain is"),
        (7, "sampler has 7; an item of a chain is"),
        ([None], "sampler has None; an item of a chain is"),
        (TopP, r"sampler TopP is a class; give an object of it, TopP\(\)"),
        ([TopP], r"sampler TopP is a class; give an object of it, TopP\(\)"),
    ],
)
def test_bad_items(sampler, message):
    with pytest.raises(ParameterError, match=message):
        specs(sampler=sampler)


def test_misspelt_names_are_unknown_names():
    with pytest.raises(UnknownNameError):
        specs(sampler="tpoK")


def test_compose_moves_everything_into_the_sampler():
    params = SamplingParams(temperature=0.5, seed=3, max_tokens=9)
    composed = compose(params, DEFAULT_CHAIN, ["k=7"])
    assert [stage.spec for stage in composed.sampler] == [TopK(7), TopP(0.95), Temperature(0.5)]
    assert (composed.temperature, composed.seed, composed.max_tokens) == (None, 3, 9)
    assert resolve(composed) == composed.sampler


ALL_SHORTCUTS = {
    "temperature": 0.7,
    "xtc_threshold": 0.2,
    "xtc_probability": 0.3,
    "min_p": 0.1,
    "top_p": 0.9,
    "typical_p": 0.8,
    "top_k": 5,
    "top_n_sigma": 1.5,
    "dry_multiplier": 0.5,
    "frequency_penalty": 0.1,
    "presence_penalty": 0.2,
    "repetition_penalty": 1.2,
}


def test_all_shortcuts_make_llama_cpp_s_order():
    assert set(ALL_SHORTCUTS) == set(SHORTCUTS)
    chain = [
        Penalties(1.2, 0.2, 0.1),
        DRY(0.5),
        TopNSigma(1.5),
        TopK(5),
        Typical(0.8),
        TopP(0.9),
        MinP(0.1),
        XTC(0.3, 0.2),
        Temperature(0.7),
    ]
    assert specs(**ALL_SHORTCUTS) == chain
    assert specs(DEFAULT_CHAIN, **ALL_SHORTCUTS) == chain
    assert specs(("mirostat2",), repetition_penalty=1.1, temperature=0.5) == [
        Penalties(1.1),
        Temperature(0.5),
        Mirostat2(),
    ]
    assert specs(("banned", "greedy"), top_p=0.3) == [Banned(), TopP(0.3), Greedy()]
    in_canonical_order = specs(tuple(reversed(_ORDER)), temperature=0.5)
    assert len(in_canonical_order) == len(_ORDER) == len(Registry("").samplers), "a built-in has no place in the order"
    composed = compose(SamplingParams(**ALL_SHORTCUTS))
    assert all(getattr(composed, name) is None for name in SHORTCUTS)
    assert resolve(composed) == composed.sampler


@pytest.mark.parametrize(
    ("shortcut", "value"),
    [
        ("repetition_penalty", 0),
        ("presence_penalty", math.inf),
        ("frequency_penalty", "x"),
        ("dry_multiplier", -1),
        ("top_n_sigma", -0.5),
        ("typical_p", 0),
        ("xtc_probability", 1.5),
        ("xtc_threshold", -0.1),
    ],
)
def test_shortcuts_have_the_ranges_of_their_options(shortcut, value):
    kind = "finite number" if value == math.inf else "number"
    with pytest.raises(ParameterError, match=f"{shortcut} is {value!r}; it must be a {kind}") as caught:
        SamplingParams(**{shortcut: value})
    sampler, option = SHORTCUTS[shortcut]
    with pytest.raises(ParameterError) as of_option:
        resolve(SamplingParams(sampler=[(sampler, {option: value})]))
    if not isinstance(value, str):
        allowed = str(caught.value).partition("; ")[2]
        assert str(of_option.value).endswith(allowed), "two ranges for one thing"
