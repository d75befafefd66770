"""`nvg models verify`: what it says of sound models, that it names every fault, which models it takes for the same."""

import json
import re

import numpy as np
import pytest
from checkpoints import TALES, to_stored, write_checkpoint, write_safetensors
from cli_runner import run_cli
from test_model_checkpoint import parts, rewrite

from nvg.errors import ParameterError
from nvg.params import DTYPES
from nvg.verify import checks, fingerprint


@pytest.fixture(autouse=True)
def _compiled(compiled_kernels):
    pass


@pytest.fixture
def model(tmp_path):
    return write_checkpoint(tmp_path / "model")


def verified(model, *arguments, code=0) -> dict:
    done = run_cli("models", "verify", model, "--format", "json", *arguments)
    assert done.code == code, done
    found = json.loads(done.stdout)
    assert found["sound"] == (code == 0)
    return found


def states(found) -> dict:
    """check -> its worst state and the lines of that state."""
    worst = {}
    for state in ("ok", "warning", "bad"):
        for one in found["findings"]:
            if one["state"] == state:
                lines = worst[one["check"]][1] if worst.get(one["check"], ("",))[0] == state else []
                worst[one["check"]] = (state, [*lines, one["text"]])
    return worst


def bad(model, check) -> list:
    state, lines = states(verified(model, code=4))[check]
    assert state == "bad"
    assert all(len(line.splitlines()) == 1 for line in lines)
    return lines


def test_tales():
    done = run_cli("models", "verify", "tales")
    assert (done.code, done.stderr) == (0, "")
    rows = [re.split(" {2,}", line, maxsplit=2) for line in done.stdout.splitlines()]
    assert rows[0] == ["CHECK", "STATE", "WHAT"]
    assert [row[:2] for row in rows[1:]] == [
        [check, "ok"] for check in ("config", "defaults", "files", "weights", "values", "tokenizer", "logits")
    ]
    told = {row[0]: row[2] for row in rows}
    assert told["config"].startswith("6 layers, 8 heads of 32, n_embd 256, n_inner 1024, gelu_new, 512 positions, voc")
    assert told["weights"] == "5.9 M parameters in 76 tensors, 76 as F16"
    assert told["tokenizer"] == "4096 ids; a text ends with 0 ('<|endoftext|>')"
    assert "8 positions in float32" in told["logits"]


def test_json(model):
    found = verified(model)
    assert {state for state, _ in states(found).values()} == {"ok"}
    assert found["path"] == str(model)
    assert found["config"]["n_embd"] == 32
    sizes = {file["name"]: file["bytes"] for file in found["files"]}
    assert sizes == {
        name: (model / name).stat().st_size for name in ("config.json", "model.safetensors", "tokenizer.json")
    }
    tensors = {tensor["name"]: tensor for tensor in found["tensors"]}
    assert len(tensors) == 28
    expected = parts(model)["transformer.wpe.weight"][2]
    assert tensors["wpe.weight"] == {
        "name": "wpe.weight",
        "shape": [64, 32],
        "dtype": "F32",
        "largest": float(np.abs(expected).max()),
    }
    assert found["tokenizer"]["vocab_size"] == 277
    assert np.shape(found["fingerprint"]["logits"]) == (8, 64)


def test_every_value_is_looked_at(model, monkeypatch):
    monkeypatch.setattr(checks, "_PIECE", 100)
    expected = {name.removeprefix("transformer."): np.abs(part[2]).max() for name, part in parts(model).items()}
    assert {tensor["name"]: tensor["largest"] for tensor in verified(model)["tensors"]} == expected


def test_the_logits_are_those_of_the_model(model):
    from nvg import LLM

    taken = verified(model)["fingerprint"]
    token_ids, positions, columns = fingerprint._places(277, 64)
    with LLM(str(model)) as llm:
        logits = llm.logits(token_ids)
    assert np.allclose(np.array(taken["logits"]), logits[np.ix_(positions, columns)], rtol=1e-6, atol=0)


def test_the_places_are_the_same_for_ever():
    token_ids, positions, columns = fingerprint._places(50257, 1024)
    assert token_ids[:5] == [40503, 2038, 9754, 21546, 29262]
    assert positions == [0, 6, 13, 20, 26, 33, 40, 47]
    assert columns[:4] == [0, 785, 1570, 2355]
    assert fingerprint._places(1, 1) == ([0], [0], [0])
    assert fingerprint._places(3, 2) == ([0, 1], [0, 1], [0, 1, 2])


def save(model, path, *arguments):
    path.write_text(json.dumps(verified(model, *arguments)))
    return path


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_model_is_known_again_in_every_precision(model, tmp_path, dtype):
    saved = save(model, tmp_path / "saved.json")
    compared = verified(model, "--compare", saved, "--dtype", dtype)["comparison"]
    assert compared["same"]
    assert (compared["distance"] == 0) == (dtype == "float32")
    assert compared["tolerance"] == {"float32": 1e-3, "bfloat16": 0.03, "int8": 0.06, "int4": 0.5}[dtype]
    other = save(model, tmp_path / "other.json", "--dtype", dtype)
    assert verified(model, "--compare", other)["comparison"] == compared


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_a_model_is_known_again_however_it_is_stored(model, tmp_path, dtype):
    saved = save(model, tmp_path / "saved.json")
    tensors = {name: (dtype, shape, to_stored(array, dtype)) for name, (_, shape, array) in parts(model).items()}
    rewrite(model, tensors)
    compared = verified(model, "--compare", saved)["comparison"]
    assert 0 < compared["distance"] < compared["tolerance"] < 0.05


def test_another_model_is_not_taken_for_the_same(model, tmp_path):
    saved = save(model, tmp_path / "saved.json")
    write_checkpoint(model, seed=1)
    found = verified(model, "--compare", saved, code=4)
    assert found["comparison"]["distance"] > 1
    (line,) = states(found)["logits"][1]
    assert line.startswith("another model: ")
    tensors = parts(write_checkpoint(model))
    tensors["transformer.h.0.mlp.c_fc.bias"][2][:] += 0.05
    rewrite(model, tensors)
    assert 2e-3 < verified(model, "--compare", saved, code=4)["comparison"]["distance"] < 0.3
    write_checkpoint(model, vocab_size=300)
    assert bad_comparison(model, saved) == "not those of the fingerprint: vocab_size is 300, that of the saved " + (
        "fingerprint 277"
    )


def bad_comparison(model, saved):
    return states(verified(model, "--compare", saved, code=4))["logits"][1][0]


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"logits": []},
        {"logits": [[1.0]]},
        {"logits": [["x"] * 64] * 8},
        {"logits": [[float("nan")] * 64] * 8},
        {"logits": [[10**400] * 64] * 8},
        {"dtype": "float16"},
        {"stored_as": []},
        {"stored_as": ["Q4"]},
        {"stored_as": [["F32"]]},
        {"vocab_size": 0},
        {"n_positions": -1},
        {"vocab_size": None},
    ],
    ids=str,
)
def test_a_fingerprint_that_is_none(tmp_path, change):
    good = {
        "version": 1,
        "vocab_size": 277,
        "n_positions": 64,
        "stored_as": ["F32"],
        "dtype": "float32",
        "logits": [[0.5] * 64] * 8,
    }
    path = tmp_path / "saved.json"
    path.write_text(json.dumps(good))
    assert fingerprint.load(str(path)).logits[7] == (0.5,) * 64
    path.write_text(json.dumps(good | change))
    with pytest.raises(ParameterError, match="is no fingerprint of version 1: save one with nvg models verify"):
        fingerprint.load(str(path))


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b"[]", b"{}", b"null"])
def test_a_file_that_is_no_fingerprint(model, tmp_path, content):
    path = tmp_path / "saved.json"
    path.write_bytes(content)
    done = run_cli("models", "verify", model, "--compare", path)
    assert done.code == 2
    assert str(path) in done.error
    assert run_cli("models", "verify", model, "--compare", tmp_path / "none").code == 2


def test_no_model(tmp_path):
    done = run_cli("models", "verify", tmp_path / "none")
    assert done.code == 4
    assert "no model" in done.error


def test_every_fault_is_named_at_once(model):
    tensors = parts(model)
    tensors["transformer.wpe.weight"][2][3, 4] = np.nan
    tensors["transformer.h.1.ln_2.bias"][2][0] = -np.inf
    tensors["transformer.ln_f.bias"] = ("F64", (32,), np.zeros(32))
    del tensors["transformer.h.0.ln_1.bias"]
    tensors["v_head.weight"] = ("F32", (1,), np.zeros(1, "<f4"))
    rewrite(model, tensors)
    (model / "tokenizer.json").write_text("{}")
    (model / "generation_config.json").write_text('{"top_p": 2, "eos_token_id": 3}')
    found = verified(model, code=4)
    worst = states(found)
    assert {check: (state, len(lines)) for check, (state, lines) in worst.items()} == {
        "config": ("ok", 1),
        "defaults": ("bad", 1),
        "files": ("ok", 1),
        "weights": ("bad", 2),
        "values": ("bad", 2),
        "tokenizer": ("bad", 1),
        "logits": ("warning", 1),
    }
    assert "wpe.weight has values that are not finite" in worst["values"][1][0]
    assert "h.1.ln_2.bias has values that are not finite" in worst["values"][1][1]
    assert [tensor["largest"] for tensor in found["tensors"] if tensor["name"] == "wpe.weight"] == [None]
    warnings = [one["text"] for one in found["findings"] if one["state"] == "warning"]
    assert any("'v_head.weight'" in line for line in warnings)


def test_a_config_that_is_none_does_not_hide_the_tokenizer(model):
    (model / "config.json").write_text("{}")
    (model / "tokenizer.json").write_text("")
    worst = states(verified(model, code=4))
    assert worst["config"][0] == worst["tokenizer"][0] == "bad"
    assert worst["weights"] == ("warning", ["not read, because a config.json without faults says which there must be"])


def test_a_chat_template_is_looked_at(model):
    assert "chat" not in states(verified(model))
    (model / "tokenizer_config.json").write_text('{"chat_template": "{{ messages[0].content }}"}')
    assert states(verified(model))["chat"] == ("ok", ["a template of 25 characters (tokenizer_config.json)"])
    (model / "tokenizer_config.json").write_text('{"a":')
    assert "tokenizer_config.json is not valid JSON" in bad(model, "chat")[0]
    (model / "tokenizer_config.json").unlink()
    (model / "chat_template.jinja").mkdir()
    assert bad(model, "chat")[0].endswith("chat_template.jinja can't be read: Is a directory")


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_an_end_that_the_vocabulary_lacks_is_told(model, file):
    path = model / file
    data = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**data, "eos_token_id": [3, 9999]}))
    worst = states(verified(model))
    assert worst["config"][0] == "warning"
    assert "eos_token_id 9999 is beyond the vocabulary of 277: ignored" in worst["config"][1]


@pytest.mark.parametrize("content", [b"", b"\0" * 7, b"\0" * 8, b"\xff" * 100])
def test_weights_that_are_none(model, content):
    (model / "model.safetensors").write_bytes(content)
    (line,) = bad(model, "weights")
    assert str(model / "model.safetensors") in line


def test_generation_defaults_are_shown(model):
    (model / "generation_config.json").write_text('{"temperature": 0.7, "no_repeat_ngram_size": 3, "num_beams": 4}')
    found = verified(model)
    assert found["generation"] == {
        "params": {"temperature": 0.7},
        "stages": {"norepeatngram": {"n": 3}},
        "origins": {"temperature": "generation_config.json", "no_repeat_ngram_size": "generation_config.json"},
        "unused": {"num_beams": 4},
    }
    assert [one["text"] for one in found["findings"] if one["check"] == "defaults"] == [
        "temperature 0.7, norepeatngram.n 3 (from generation_config.json)",
        "not used by nvg: num_beams 4",
    ]


def test_a_tokenizer_of_another_model(model):
    write_checkpoint(model, vocab_size=276, tokenizer=None)
    assert bad(model, "tokenizer") == ["277 ids, but the weights have rows for 276: they belong to different models"]


def test_more_rows_than_ids(model):
    write_checkpoint(model, vocab_size=320, tokenizer=None)
    ((state, (line,)),) = [states(verified(model))["tokenizer"]]
    assert state == "ok"
    assert line.startswith("277 ids, 43 rows of the weights beyond them, which are never drawn; a text ends with 276 (")


def test_logits_that_overflow(model):
    tensors = parts(model)
    tensors["transformer.ln_f.weight"][2][:] = 3e38
    rewrite(model, tensors)
    assert bad(model, "logits") == ["some are not finite: the weights are too large for float32"]


def test_shards(model):
    tensors = parts(model)
    (model / "model.safetensors").unlink()
    names = list(tensors)
    for number in (1, 2):
        inside = {name: tensors[name] for name in names[number - 1 :: 2]}
        write_safetensors(model / f"m{number}.safetensors", inside)
    weight_map = {name: f"m{1 + i % 2}.safetensors" for i, name in enumerate(names)}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    told = states(verified(model))["files"][1][0]
    assert re.search(r"model\.safetensors\.index\.json \d+\.\d kB, .*, 2 shards \d+\.\d (kB|MB)$", told)


def test_the_built_in_model_has_not_changed(tmp_path):
    """Computed when the model was made; whatever computes its logits, and its weights, are still the same."""
    saved = TALES.parents[2] / "tests" / "golden" / "tales_fingerprint.json"
    compared = verified("tales", "--compare", saved)["comparison"]
    assert compared["distance"] < 1e-4


LONG = "é\x1b" * 50_000
LONG_VALUES = (LONG, [0] * 100_000, [LONG], {LONG: 1}, 10**4000, f"{'x' * 100_000}.safetensors")
CONFIG_KEYS = ("model_type", "n_embd", "hidden_size", "n_layer", "n_inner", "activation_function", "layer_norm_epsilon",
               "scale_attn_weights", "add_cross_attention", "pruned_heads", "quantization_config")  # fmt: skip
GENERATION_KEYS = ("eos_token_id", "do_sample", "temperature", "top_k", "min_p", "bad_words_ids", "stop_strings",
                   "guidance_scale")  # fmt: skip


def check_lines(model):
    lines = [one["text"] for one in verified(model, code=4)["findings"]]
    assert max(map(len, lines)) < 1000
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize(
    ("file", "key"),
    [*(("config.json", key) for key in CONFIG_KEYS), *(("generation_config.json", key) for key in GENERATION_KEYS)],
)
def test_what_is_quoted_of_a_config_is_short(model, file, key):
    content = json.loads((model / file).read_text()) if (model / file).exists() else {}
    (model / "tokenizer.json").unlink()  # whatever the value is, something is bad
    for value in LONG_VALUES:
        (model / file).write_text(json.dumps({**content, key: value}))
        check_lines(model)


@pytest.mark.parametrize("value", LONG_VALUES[::5])
def test_what_is_quoted_of_weights_is_short(model, value):
    (model / "model.safetensors").rename(model / "a.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": value}}))
    check_lines(model)
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    for header in (
        {value: entry},
        {value: {**entry, "shape": [2]}},
        {"a": {**entry, "dtype": "F32_" + "A" * 100_000, "shape": [2]}},
        {"a": {**entry, "dtype": value}},
        {"a": {**entry, "shape": [1] * 100_000}},
        {"a": entry, value: {**entry, "data_offsets": [8, 12]}},
    ):
        text = json.dumps(header).encode()
        (model / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 4)
        check_lines(model)


def test_what_is_shown_of_a_sound_model_is_short(model):
    unused = {"length_penalty": float("nan"), "force_words_ids": LONG, "sequence_bias": [LONG, float("inf")]}
    (model / "generation_config.json").write_text(
        json.dumps({**unused, "stop_strings": [LONG], "eos_token_id": [*range(277)]})
    )
    done = run_cli("models", "verify", model, "--format", "json")
    assert done.code == 0
    found = json.loads(done.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert found["generation"]["unused"] == {**unused, "length_penalty": "NaN", "sequence_bias": [LONG, "Infinity"]}
    assert max(len(one["text"]) for one in found["findings"]) < 1000
