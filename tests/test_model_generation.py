"""A model's own defaults: what is taken from its files, in which order, what is refused, and that whoever asks wins."""

import json
from itertools import pairwise

import pytest
from checkpoints import TALES, write_checkpoint
from cli_runner import run_cli

from nvg import LLM, SamplingParams
from nvg.errors import CheckpointError, ParameterError
from nvg.model.generation import read_generation_defaults
from nvg.sampling.compose import DEFAULT_CHAIN, own_chain

EVERYTHING = {
    "do_sample": True,
    "temperature": 0.7,
    "top_k": 30,
    "top_p": 0.9,
    "min_p": 0.02,
    "typical_p": 0.95,
    "repetition_penalty": 1.3,
    "no_repeat_ngram_size": 3,
    "epsilon_cutoff": 3e-4,
    "eta_cutoff": 1e-3,
    "bad_words_ids": [[5, 6], [7]],
    "max_new_tokens": 12,
    "min_new_tokens": 2,
    "stop_strings": ["\n\n"],
    "guidance_scale": 1.5,
}
# config.json as transformers 2 wrote it: every key, with the values that it has anyway
OLD_CONFIG = {
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "max_length": 20,
    "min_length": 0,
    "num_beams": 1,
    "num_return_sequences": 1,
    "length_penalty": 1.0,
}


@pytest.fixture
def model(tmp_path):
    return write_checkpoint(tmp_path / "model", n_layer=1)


def say(model, generation=None, config=None):
    if generation is not None:
        (model / "generation_config.json").write_text(json.dumps(generation))
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | (config or {})))
    return read_generation_defaults(model)


def test_most_models_say_nothing(model):
    for defaults in (read_generation_defaults(TALES), read_generation_defaults(model), say(model, {}, OLD_CONFIG)):
        assert (defaults.params, defaults.stages, defaults.origins, defaults.unused) == ({}, (), {}, {})


def test_every_key(model):
    defaults = say(model, EVERYTHING)
    assert defaults.params == {
        "temperature": 0.7,
        "top_k": 30,
        "top_p": 0.9,
        "min_p": 0.02,
        "typical_p": 0.95,
        "max_tokens": 12,
        "min_tokens": 2,
        "stop": ["\n\n"],
        "guidance_scale": 1.5,
    }
    assert defaults.origins == dict.fromkeys(EVERYTHING, "generation_config.json")
    chain = own_chain(defaults.params, defaults.stages, DEFAULT_CHAIN)
    assert [stage.name for stage in chain] == [
        *("banned", "norepeatngram", "penalties", "topk", "typical", "topp", "minp", "epsilon", "eta", "temperature")
    ]
    spec = {stage.name: stage.spec for stage in chain}
    assert spec["banned"].sequences == ((5, 6), (7,))
    assert (spec["norepeatngram"].n, spec["epsilon"].epsilon, spec["eta"].epsilon) == (3, 3e-4, 1e-3)
    assert (spec["penalties"].repetition, spec["penalties"].last_n) == (1.3, -1)
    assert (spec["topk"].k, spec["topp"].p, spec["temperature"].t) == (30, 0.9, 0.7)


def test_generation_config_comes_before_config(model):
    defaults = say(model, {"temperature": 0.5, "top_p": None}, {"temperature": 0.6, "top_p": 0.8})
    assert defaults.params == {"temperature": 0.5, "top_p": 0.8}
    assert defaults.origins == {"temperature": "generation_config.json", "top_p": "config.json"}


def test_the_values_of_transformers_are_a_choice_in_generation_config_only(model):
    usual = {"temperature": 1.0, "top_k": 50, "top_p": 1.0}
    assert say(model, usual).params == usual
    (model / "generation_config.json").unlink()
    assert say(model, None, {"temperature": 1.0, "top_k": 50, "top_p": 0.5}).params == {"top_p": 0.5}


@pytest.mark.parametrize("temperature", [0.7, None])
def test_without_do_sample_the_most_probable_token_is_taken(model, temperature):
    defaults = say(model, {"do_sample": False, "temperature": temperature})
    assert defaults.params["temperature"] == 0
    assert defaults.origins["do_sample"] == "generation_config.json"


def test_what_is_not_used_is_known(model):
    defaults = say(model, {"num_beams": 4, "max_length": 100, "length_penalty": 1.0}, {"num_beams": 2, "min_length": 9})
    assert defaults.unused == {"num_beams": 4, "max_length": 100, "min_length": 9}


@pytest.mark.parametrize("value", ["hot", [], {}, -1, True, float("nan"), float("inf"), 10**400, "x" * 100])
@pytest.mark.parametrize("key", [*EVERYTHING])
def test_impossible_values(model, key, value):
    if (key, value) == ("do_sample", True) or (key == "stop_strings" and isinstance(value, (str, list))):
        return
    for generation, config in (({key: value}, None), ({}, {key: value})):
        with pytest.raises(CheckpointError) as caught:
            say(model, generation, config)
        message = str(caught.value)
        name = "config.json" if config else "generation_config.json"
        assert message.startswith(f"{model / name}: {key} is {str(value)[:9] if isinstance(value, int) else ''}")
        assert "; it must be " in message
        assert message.isprintable()


@pytest.mark.parametrize("value", [[""], [3], [None], "\ud800", ["a\udc00b"]])
def test_impossible_stop_strings(model, value):
    with pytest.raises(CheckpointError, match="it must be a text or a list of texts that are not empty"):
        say(model, {"stop_strings": value})


def test_endless_stop_strings(model):
    assert say(model, {"stop_strings": ["x" * 1000] * 100}).params["stop"]
    with pytest.raises(CheckpointError, match=r"stop_strings is .*; it must be at most 100000 characters in all"):
        say(model, {"stop_strings": ["x" * 1000] * 101})


def test_bad_words_of_another_vocabulary(model):
    assert say(model, {"bad_words_ids": [[3], [276]]}).stages == (("banned", {"sequences": [[3], [276]]}),)
    with pytest.raises(CheckpointError, match=r"bad_words_ids has the token id 277; config\.json has vocab_size 277"):
        say(model, {"bad_words_ids": [[3], [1, 277]]})
    assert say(model, {}, {"vocab_size": -5}).stages == ()


@pytest.mark.parametrize("value", [[[]], [3], [["a"]], [[-1]], [[True]]])
def test_impossible_bad_words(model, value):
    with pytest.raises(CheckpointError, match="it must be a list of lists of token ids"):
        say(model, {"bad_words_ids": value})


class TestCommandLine:
    @pytest.fixture(autouse=True)
    def _compiled(self, compiled_kernels):
        pass

    def generate(self, model, *arguments):
        done = run_cli("generate", "the", "-m", model, "--seed", 3, "--format", "json", *arguments)
        assert done.code == 0, done.stderr
        return json.loads(done.stdout)["choices"][0]["token_ids"]

    def test_they_are_used(self, model):
        usual = self.generate(model)
        assert len(usual) == SamplingParams.max_tokens or usual[-1] == 276
        greedy = self.generate(model, "--temperature", 0)
        say(model, {"do_sample": False, "max_new_tokens": 7})
        assert self.generate(model) == greedy[:7]
        assert self.generate(model, "--max-tokens", 9) == greedy[:9]
        assert self.generate(model, "--temperature", 0.8) == usual[:7]
        assert self.generate(model, "--preset", "balanced", "--max-tokens", 20) == usual[:20]
        assert self.generate(model, "--sampler", "temperature", "-o", "t=0") == greedy[:7]

    def test_they_set_options_of_the_default_chain(self, model):
        said = self.generate(model, "--top-p", 0.5, "--repetition-penalty", 1.5, "-o", "penalties.last_n=-1")
        say(model, {"top_p": 0.5, "repetition_penalty": 1.5})
        assert self.generate(model) == said
        assert self.generate(model, "--top-p", 0.95, "--repetition-penalty", 1) == self.generate(
            model, "--preset", "balanced"
        )

    def test_stop_and_guidance(self, model):
        guided = self.generate(model, "--guidance-scale", 3, "--max-tokens", 20)
        say(model, {"guidance_scale": 3, "max_new_tokens": 20})
        assert self.generate(model) == guided
        assert self.generate(model, "--guidance-scale", 1) != guided
        text = run_cli("generate", "the", "-m", model, "--seed", 3).stdout
        say(model, {"stop_strings": text[4], "guidance_scale": 3, "max_new_tokens": 20})
        assert run_cli("generate", "the", "-m", model, "--seed", 3).stdout == text[: text.index(text[4])] + "\n"
        assert run_cli("generate", "the", "-m", model, "--seed", 3, "--stop", "\0never").stdout == text

    def test_stats_tell_of_them(self, model):
        say(model, {"top_k": 5}, {"temperature": 0.5})
        done = run_cli("generate", "the", "-m", model, "--max-tokens", 1, "--stats")
        line = "nvg: the model's own defaults: top_k (generation_config.json), temperature (config.json)"
        assert line in done.stderr.splitlines()
        assert "own defaults" not in run_cli("generate", "the", "-m", model, "--max-tokens", 1).stderr

    def test_impossible_ones(self, model):
        say(model, {})
        (model / "generation_config.json").write_text('{"top_p": 7}')
        done = run_cli("generate", "the", "-m", model)
        assert done.code == 4
        assert done.error == (
            f"{model / 'generation_config.json'}: top_p is 7; it must be a number above 0 and at most 1"
        )


def test_python_uses_them_when_it_is_asked_to(model, compiled_kernels):
    say(model, {"temperature": 0.25, "top_k": 7, "max_new_tokens": 5, "stop_strings": "x"})
    with LLM(str(model)) as llm:
        assert llm.default_params() == SamplingParams(temperature=0.25, top_k=7, max_tokens=5, stop="x")
        assert llm.default_params(top_k=3, seed=1) == SamplingParams(
            temperature=0.25, top_k=3, max_tokens=5, stop="x", seed=1
        )
        assert llm.default_params(sampler="greedy") == SamplingParams(sampler="greedy", max_tokens=5, stop="x")
        with pytest.raises(ParameterError, match="top_p is 7"):
            llm.default_params(top_p=7)
        with pytest.raises(TypeError, match="topp"):
            llm.default_params(topp=0.7)
        say(model, {"no_repeat_ngram_size": 2, "temperature": 0.0})
        params = llm.default_params()
        assert [stage.name for stage in params.sampler] == ["norepeatngram", "temperature"]
        ids = llm.generate("the", params)[0].token_ids
        assert len(set(pairwise(ids))) == len(ids) - 1 > 30
        assert llm.generate("the", SamplingParams(temperature=0))[0].token_ids != ids
