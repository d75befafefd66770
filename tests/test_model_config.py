"""config.json: what is taken from it, and what is refused in one line."""

import dataclasses
import json

import pytest
from checkpoints import TALES, write_checkpoint

from nvg.errors import CheckpointError
from nvg.model.config import ACTIVATIONS, ModelConfig, read_config

SIZES = {"vocab_size": 1000, "n_positions": 64, "n_embd": 48, "n_layer": 2, "n_head": 4}
GPT2 = {"model_type": "gpt2", **SIZES}


def refusal(data) -> str:
    with pytest.raises(CheckpointError) as caught:
        ModelConfig.from_dict(data, "config.json")
    message = str(caught.value)
    assert message.startswith("config.json: ")
    assert len(message.splitlines()) == 1
    assert len(message) < 400
    return message


def test_tales():
    config = read_config(TALES)
    assert dataclasses.asdict(config) == {
        "vocab_size": 4096,
        "n_positions": 512,
        "n_embd": 256,
        "n_layer": 6,
        "n_head": 8,
        "n_inner": 1024,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "tie_word_embeddings": True,
        "eos_token_ids": (0,),
        "model_type": "gpt2",
    }
    assert config.head_size == 32


def test_defaults_are_those_of_gpt2():
    config = ModelConfig.from_dict(GPT2, "config.json")
    assert (config.n_inner, config.activation_function, config.layer_norm_epsilon) == (192, "gelu_new", 1e-5)
    assert (config.scale_attn_weights, config.scale_attn_by_inverse_layer_idx) == (True, False)
    assert config.tie_word_embeddings


def test_n_inner():
    assert ModelConfig.from_dict(GPT2 | {"n_inner": None, "intermediate_size": 7}, "").n_inner == 192
    assert ModelConfig.from_dict(GPT2 | {"n_inner": 50}, "").n_inner == 50


def test_context_is_n_positions_never_n_ctx():
    assert ModelConfig.from_dict(GPT2 | {"n_ctx": 7}, "").n_positions == 64
    assert ModelConfig.from_dict({"model_type": "gpt2", "n_ctx": 7}, "").n_positions == 1024


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation):
    config = ModelConfig.from_dict(GPT2 | {"activation_function": activation}, "")
    assert config.activation_function == activation


def test_old_config_without_model_type():
    config = ModelConfig.from_dict(SIZES | {"architectures": ["GPT2LMHeadModel"]}, "")
    assert config.model_type == "gpt2"


USUAL = {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}
OTHER_NAMES = {
    "max_position_embeddings": "n_positions",
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
}


def test_missing_sizes_are_those_of_gpt2():
    config = ModelConfig.from_dict({"model_type": "gpt2"}, "")
    assert {name: getattr(config, name) for name in USUAL} == USUAL
    assert (config.n_inner, config.eos_token_ids) == (3072, (50256,))


@pytest.mark.parametrize(("other", "name"), [*OTHER_NAMES.items()])
def test_other_names_of_sizes(other, name):
    data = {**GPT2, other: GPT2[name]}
    assert ModelConfig.from_dict(data, "") == ModelConfig.from_dict(GPT2, "")
    del data[name]
    assert ModelConfig.from_dict(data, "") == ModelConfig.from_dict(GPT2, "")
    assert f"{name} is {GPT2[name]} and {other} is 1; they are two names of one size" in refusal({**GPT2, other: 1})
    for value in (None, 0, 2.0, True, "2", [2], 10**9):
        assert f"{other} is {value!r}; it must be an integer from 1" in refusal({**data, other: value})
        assert f"{other} is {value!r}; it must be an integer from 1" in refusal({**GPT2, other: value})


@pytest.mark.parametrize("name", [*SIZES, "n_inner"])
@pytest.mark.parametrize("value", [0, -1, True, 2.0, "12", [2], {}, 10**9, 10**400])
def test_an_impossible_size(name, value):
    message = refusal(GPT2 | {name: value})
    assert f"{name} is {repr(value)[:20]}" in message
    assert "it must be an integer from 1 to " in message


@pytest.mark.parametrize("name", list(SIZES))
def test_a_null_size(name):
    assert f"{name} is None" in refusal(GPT2 | {name: None})


@pytest.mark.parametrize(("n_embd", "n_head"), [(48, 5), (48, 96), (129, 1), (512, 2)])
def test_heads_that_do_not_fit(n_embd, n_head):
    message = refusal(GPT2 | {"n_embd": n_embd, "n_head": n_head})
    assert f"n_head is {n_head}; it must divide n_embd ({n_embd}) into heads of 1 to 128" in message


@pytest.mark.parametrize(("n_embd", "n_head", "head_size"), [(48, 48, 1), (128, 1, 128), (48, 16, 3)])
def test_head_sizes(n_embd, n_head, head_size):
    assert ModelConfig.from_dict(GPT2 | {"n_embd": n_embd, "n_head": n_head}, "").head_size == head_size


@pytest.mark.parametrize("value", ["gelu_neu", None, 3, ["gelu"], {"a": 1}])
def test_unknown_activation(value):
    message = refusal(GPT2 | {"activation_function": value})
    assert f"activation_function is {value!r}; it must be one of gelu_new, " in message


@pytest.mark.parametrize("value", [0, -1e-5, 2, True, "1e-5", None, float("nan"), float("inf")])
def test_impossible_epsilon(value):
    assert f"layer_norm_epsilon is {value!r}; it must be a number above 0" in refusal(
        GPT2 | {"layer_norm_epsilon": value}
    )


@pytest.mark.parametrize("value", [0, 1, "true", None])
@pytest.mark.parametrize(
    "name", ["scale_attn_weights", "scale_attn_by_inverse_layer_idx", "tie_word_embeddings", "add_cross_attention"]
)
def test_flags_are_true_or_false(name, value):
    assert f"{name} is {value!r}; it must be true or false" in refusal(GPT2 | {name: value})


@pytest.mark.parametrize("model_type", ["gpt_neo", "imagegpt", "", 3, ["gpt2"]])
def test_other_models(model_type):
    message = refusal(GPT2 | {"model_type": model_type})
    assert f"model_type is {model_type!r}; nvg runs GPT-2 models" in message


def test_no_model_type_at_all():
    assert "model_type is missing; nvg runs GPT-2" in refusal(SIZES)
    assert "model_type is missing; nvg runs GPT-2" in refusal(SIZES | {"architectures": ["GPTNeoForCausalLM"]})


def test_what_nvg_does_not_run():
    assert "add_cross_attention is true" in refusal(GPT2 | {"add_cross_attention": True})
    assert "pruned_heads is {'0': [1]}" in refusal(GPT2 | {"pruned_heads": {"0": [1]}})
    message = refusal(GPT2 | {"quantization_config": {"quant_method": "gptq", "bits": 4}})
    assert "quantization_config is set ('gptq')" in message
    assert ModelConfig.from_dict(GPT2 | {"pruned_heads": {}, "quantization_config": None}, "")


@pytest.mark.parametrize(
    ("value", "ids"), [(7, (7,)), ([7, 3, 7], (7, 3)), (None, ()), ([], ()), (50256, ()), ([999, 1000], (999,))]
)
def test_eos(value, ids):
    assert ModelConfig.from_dict(GPT2 | {"eos_token_id": value}, "").eos_token_ids == ids


@pytest.mark.parametrize("value", [-1, 1.0, True, "7", [7, None], [[7]], {}])
def test_impossible_eos(value):
    assert f"eos_token_id is {value!r}; it must be an integer >= 0" in refusal(GPT2 | {"eos_token_id": value})


def test_eos_that_is_not_mentioned_is_that_of_gpt2():
    assert ModelConfig.from_dict(GPT2 | {"vocab_size": 50257}, "").eos_token_ids == (50256,)


@pytest.mark.parametrize(("value", "ids"), [(5, (5,)), ([6, 5], (6, 5)), (None, (7,))])
def test_eos_of_generation_config_comes_first(value, ids, tmp_path):
    write_checkpoint(tmp_path, config={"eos_token_id": 7})
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    assert read_config(tmp_path).eos_token_ids == ids


@pytest.mark.parametrize("text", ['{"eos_token_id": "x"}', "[]", "{"])
def test_bad_generation_config(text, tmp_path):
    write_checkpoint(tmp_path)
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"generation_config\.json") as caught:
        read_config(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not valid JSON"),
        (b"{'a': 1}", "is not valid JSON"),
        (b"\xff\xfe{", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[1]", "holds a JSON list; it must be an object"),
        (b"null", "holds a JSON NoneType; it must be an object"),
    ],
)
def test_files_that_are_no_config(content, message, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_config(tmp_path)
    assert str(caught.value).startswith(f"{path} {message}")
    assert len(str(caught.value).splitlines()) == 1


def test_no_config(tmp_path):
    with pytest.raises(CheckpointError, match="is missing"):
        read_config(tmp_path)
    (tmp_path / "config.json").mkdir()
    with pytest.raises(CheckpointError, match="can't be read"):
        read_config(tmp_path)


def test_a_config_made_by_hand_is_checked_too():
    config = ModelConfig.from_dict(GPT2, "")
    with pytest.raises(CheckpointError, match="n_layer is 0"):
        dataclasses.replace(config, n_layer=0)
    with pytest.raises(CheckpointError, match="eos_token_ids"):
        dataclasses.replace(config, eos_token_ids=(1000,))
