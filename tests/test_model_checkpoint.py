"""Checkpoint directories: what is read, bit for bit, and what is refused in one line before anything is computed."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import reference
from checkpoints import TALES, random_tensors, to_stored, write_checkpoint, write_safetensors

from nvg.errors import CheckpointError
from nvg.model.checkpoint import Checkpoint

C_ATTN = "transformer.h.0.attn.c_attn.weight"


def refusal(directory) -> str:
    with pytest.raises(CheckpointError) as caught, Checkpoint(directory):
        pass
    message = str(caught.value)
    assert str(directory) in message
    assert len(message.splitlines()) == 1
    return message


def parts(directory) -> dict:
    """The tensors of model.safetensors in the form that write_safetensors takes."""
    whole = (directory / "model.safetensors").read_bytes()
    data = 8 + int.from_bytes(whole[:8], "little")
    tensors = {}
    for name, entry in json.loads(whole[8:data]).items():
        if name != "__metadata__":
            carrier = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "U8": "u1"}[entry["dtype"]]
            begin, end = entry["data_offsets"]
            array = np.frombuffer(whole[data + begin : data + end], carrier).reshape(entry["shape"]).copy()
            tensors[name] = (entry["dtype"], array.shape, array)
    return tensors


def rewrite(directory, tensors) -> None:
    write_safetensors(directory / "model.safetensors", tensors)


def values_of(directory) -> dict:
    with Checkpoint(directory) as checkpoint:
        assert checkpoint.warnings == []
        return {name: checkpoint.read(name) for name in checkpoint.names}


@pytest.mark.parametrize("prefix", ["", "transformer."])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("tie", [True, False])
def test_every_tensor_is_read_exactly(tmp_path, prefix, dtype, tie):
    write_checkpoint(tmp_path, prefix=prefix, dtype=dtype, tie=tie, with_masks=True)
    values = values_of(tmp_path)
    expected = reference.load(tmp_path, np.float32).tensors
    masks = {name for name in expected if "masked_bias" in name}
    assert set(values) == set(expected) - masks
    assert ("lm_head.weight" in values) == (not tie)
    for name, array in values.items():
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
        assert array.shape == expected[name].shape
        assert array.tobytes() == expected[name].tobytes()


def test_names_and_shapes(tmp_path):
    write_checkpoint(tmp_path, n_layer=1, n_embd=32, n_inner=50, n_positions=16, vocab_size=300)
    with Checkpoint(tmp_path) as checkpoint:
        assert {name: checkpoint.shape(name) for name in checkpoint.names} == {
            "wte.weight": (300, 32),
            "wpe.weight": (16, 32),
            "h.0.ln_1.weight": (32,),
            "h.0.ln_1.bias": (32,),
            "h.0.attn.c_attn.weight": (32, 96),
            "h.0.attn.c_attn.bias": (96,),
            "h.0.attn.c_proj.weight": (32, 32),
            "h.0.attn.c_proj.bias": (32,),
            "h.0.ln_2.weight": (32,),
            "h.0.ln_2.bias": (32,),
            "h.0.mlp.c_fc.weight": (32, 50),
            "h.0.mlp.c_fc.bias": (50,),
            "h.0.mlp.c_proj.weight": (50, 32),
            "h.0.mlp.c_proj.bias": (32,),
            "ln_f.weight": (32,),
            "ln_f.bias": (32,),
        }


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_a_tensor_of_many_chunks(tmp_path, dtype):
    write_checkpoint(tmp_path, n_layer=1, n_embd=512, n_head=8, vocab_size=3001, dtype=dtype)
    values = values_of(tmp_path)
    assert values["wte.weight"].nbytes > 4 * 2**20
    expected = reference.load(tmp_path, np.float32).tensors
    assert all(array.tobytes() == expected[name].tobytes() for name, array in values.items())


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_every_finite_16_bit_value_is_converted_exactly(tmp_path, dtype):
    config = json.loads((write_checkpoint(tmp_path, n_layer=1) / "config.json").read_text())
    tensors = {
        name: (dtype, array.shape, to_stored(array, dtype))
        for name, array in random_tensors(config | {"vocab_size": 2048}, 0, lambda *_: 1.0).items()
    }
    bits = np.arange(2**16, dtype="<u2").reshape(2048, 32)
    with np.errstate(invalid="ignore"):
        f16 = bits.view("<f2").astype(np.float32)
    numbers = f16 if dtype == "F16" else (bits.astype(np.uint32) << 16).view(np.float32)
    bits = np.where(np.isfinite(numbers), bits, 0).astype("<u2")
    tensors["wte.weight"] = (dtype, (2048, 32), bits)
    rewrite(tmp_path, tensors)
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 2048}))
    expected = np.where(np.isfinite(numbers), numbers, 0).astype(np.float32)
    assert values_of(tmp_path)["wte.weight"].tobytes() == expected.tobytes()


def test_read_into_an_array(tmp_path):
    write_checkpoint(tmp_path)
    with Checkpoint(tmp_path) as checkpoint:
        out = np.zeros(checkpoint.shape("wpe.weight"), np.float32)
        assert checkpoint.read("wpe.weight", out) is out
        assert (out == checkpoint.read("wpe.weight")).all()
        rows = np.zeros((200, 32), np.float32)  # a slice of a larger buffer
        checkpoint.read("wpe.weight", rows[10:74])
        assert (rows[10:74] == out).all()
        assert not rows[:10].any()
        assert not rows[74:].any()
        for bad in (np.zeros((64, 33), np.float32), np.zeros((64, 32)), np.zeros((32, 64), np.float32).T):
            with pytest.raises(ValueError, match=r"out for wpe\.weight must be float32, C-contiguous"):
                checkpoint.read("wpe.weight", bad)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("preadv", [True, False])
def test_rows_are_those_of_the_whole_matrix_for_every_thread(tmp_path, dtype, preadv, monkeypatch):
    if not preadv:
        monkeypatch.delattr(os, "preadv")
    write_checkpoint(tmp_path, n_layer=1, n_embd=512, n_head=8, vocab_size=9001, dtype=dtype)
    with Checkpoint(tmp_path) as checkpoint, ThreadPoolExecutor(4) as pool:
        for name in ("wte.weight", "h.0.attn.c_proj.weight"):
            whole = checkpoint.read(name)

            def is_right(first, name=name, whole=whole):
                rows = np.empty((min(900, len(whole) - first), 512), np.float32)
                checkpoint.read_rows(name, first, rows)
                return (rows == whole[first : first + len(rows)]).all()

            assert all(pool.map(is_right, range(0, len(whole), 100)))


def test_the_fingerprint_is_that_of_the_files_and_follows_every_change(tmp_path, monkeypatch):
    directory = write_checkpoint(tmp_path / "model")

    def fingerprint(path=directory):
        with Checkpoint(path) as checkpoint:
            return checkpoint.fingerprint

    seen = {fingerprint()}
    assert seen == {fingerprint(directory / ".." / "model")}

    def changed():
        seen.add(fingerprint())
        return len(seen)

    weights = directory / "model.safetensors"
    before = weights.stat()
    with open(weights, "r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\0\0\0\0")
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert changed() == 2, "the same size and time of writing"
    os.utime(weights)
    assert changed() == 3
    shutil.copy2(weights, tmp_path / "copy")
    os.replace(tmp_path / "copy", weights)
    assert changed() == 4
    rewrite(directory, parts(directory) | {"spare": ("F32", (1,), np.zeros(1, "<f4"))})
    assert changed() == 5
    config = directory / "config.json"
    config.write_text(config.read_text().replace('"gelu_new"', '"gelu"'))
    assert changed() == 6
    with Checkpoint(directory) as checkpoint:
        opened = checkpoint.fingerprint
        os.utime(weights)
        assert checkpoint.fingerprint != opened, "while it is read"
    with monkeypatch.context() as patch:
        fixed = os.stat(weights)
        patch.setattr(os, "fstat", lambda file: fixed)
        before = fingerprint()
        data = weights.read_bytes()
        weights.write_bytes(data.replace(b'"pt"', b'"np"', 1))
        assert fingerprint() != before, "the header alone"


def test_tales():
    values = values_of(TALES)
    assert sum(array.size for array in values.values()) == 5_918_720


@pytest.mark.parametrize("dtype", ["F32", "F16"])
def test_a_duplicated_tied_head_is_ignored(tmp_path, dtype):
    tensors = parts(write_checkpoint(tmp_path, vocab_size=300, n_embd=1024, n_head=8, n_layer=1))
    shape, array = tensors["transformer.wte.weight"][1:]
    tensors["transformer.wte.weight"] = ("F16", shape, to_stored(array, "F16"))
    tensors["lm_head.weight"] = (dtype, shape, to_stored(to_stored(array, "F16"), dtype))
    rewrite(tmp_path, tensors)
    assert "lm_head.weight" not in values_of(tmp_path)


@pytest.mark.parametrize("index", [0, -1])
def test_a_head_that_is_not_the_embedding_is_used_whatever_the_config_says(tmp_path, index):
    tensors = parts(write_checkpoint(tmp_path, vocab_size=300, n_embd=1024, n_head=8, n_layer=1))
    tensors["lm_head.weight"] = ("F32", (300, 1024), tensors["transformer.wte.weight"][2].copy())
    tensors["lm_head.weight"][2].flat[index] += 1
    rewrite(tmp_path, tensors)
    with Checkpoint(tmp_path) as checkpoint:
        assert not checkpoint.config.tie_word_embeddings
        assert (checkpoint.read("lm_head.weight") == tensors["lm_head.weight"][2]).all()
        (warning,) = checkpoint.warnings
    assert "tie_word_embeddings true, but lm_head.weight is not wte.weight" in warning


def test_a_tied_embedding_may_go_by_the_heads_name(tmp_path):
    tensors = parts(write_checkpoint(tmp_path))
    expected = values_of(tmp_path)
    tensors["lm_head.weight"] = tensors.pop("transformer.wte.weight")
    rewrite(tmp_path, tensors)
    values = values_of(tmp_path)
    assert list(values) == list(expected)
    assert all((values[name] == expected[name]).all() for name in values)


def test_a_head_of_another_shape_is_refused_even_if_it_is_tied(tmp_path):
    tensors = parts(write_checkpoint(tmp_path))
    tensors["lm_head.weight"] = ("F32", (3, 32), np.zeros((3, 32), "<f4"))
    rewrite(tmp_path, tensors)
    assert "the tensor lm_head.weight has shape (3, 32); config.json asks for (277, 32)" in refusal(tmp_path)


def test_an_untied_head_is_needed(tmp_path):
    write_checkpoint(tmp_path, config={"tie_word_embeddings": False})
    assert "no tensor lm_head.weight, which config.json asks for" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["h.1.attn.c_attn.bias", "h.0.ln_1.weight", "wte.weight", "wpe.weight", "ln_f.bias"])
def test_a_missing_tensor(tmp_path, name):
    tensors = parts(write_checkpoint(tmp_path))
    del tensors[f"transformer.{name}"]
    rewrite(tmp_path, tensors)
    assert f"the weights have no tensor {name}, which config.json asks for" in refusal(tmp_path)


def test_missing_layers(tmp_path):
    write_checkpoint(tmp_path, config={"n_layer": 3})
    message = refusal(tmp_path)
    assert "no tensor h.2.ln_1.weight (and 11 more), which config.json asks for (n_layer 3" in message


def test_layers_beyond_n_layer(tmp_path):
    write_checkpoint(tmp_path, config={"n_layer": 1})
    message = refusal(tmp_path)
    assert "'h.1." in message
    assert "config.json has n_layer 1: layers must be 0 to 0" in message


def test_a_transposed_tensor(tmp_path):
    tensors = parts(write_checkpoint(tmp_path))
    tensors[C_ATTN] = ("F32", (96, 32), np.ascontiguousarray(tensors[C_ATTN][2].T))
    rewrite(tmp_path, tensors)
    message = refusal(tmp_path)
    assert (
        "h.0.attn.c_attn.weight has shape (96, 32); config.json asks for (32, 96) (n_embd 32, 3 n_embd 96)" in message
    )
    assert "it looks transposed" in message


@pytest.mark.parametrize(
    ("change", "name", "shape"),
    [
        ({"vocab_size": 50257}, "wte.weight", "(vocab_size 50257, n_embd 32)"),
        ({"n_positions": 65}, "wpe.weight", "(n_positions 65, n_embd 32)"),
        ({"n_embd": 64}, "wte.weight", "n_embd 64)"),
        ({"n_inner": 127}, "h.0.mlp.c_fc.weight", "(n_embd 32, n_inner 127)"),
    ],
)
def test_a_config_that_disagrees(tmp_path, change, name, shape):
    write_checkpoint(tmp_path, config=change)
    message = refusal(tmp_path)
    assert f"the tensor {name} has shape " in message
    assert shape in message
    assert "transposed" not in message


@pytest.mark.parametrize(
    ("dtype", "carrier"), [("F64", "<f8"), ("I8", "i1"), ("F8_E4M3", "u1"), ("I32", "<i4"), ("BOOL", "?")]
)
def test_other_dtypes(tmp_path, dtype, carrier):
    tensors = parts(write_checkpoint(tmp_path))
    tensors[C_ATTN] = (dtype, (32, 96), np.zeros((32, 96), carrier))
    rewrite(tmp_path, tensors)
    assert f"h.0.attn.c_attn.weight has dtype {dtype}; it must be one of F32, F16, BF16" in refusal(tmp_path)


def test_other_tensors_make_one_warning(tmp_path):
    tensors = parts(write_checkpoint(tmp_path))
    for name in ("score.weight", "h.x.attn.bias", "a\nb", "c" * 500):
        tensors[name] = ("I64", (1,), np.zeros(1, "<i8"))
    rewrite(tmp_path, tensors)
    with Checkpoint(tmp_path) as checkpoint:
        (warning,) = checkpoint.warnings
    assert "4 tensors that GPT-2 does not use, ignored: " in warning
    assert len(warning.splitlines()) == 1
    assert len(warning) < 500


def test_a_name_with_and_without_prefix(tmp_path):
    tensors = parts(write_checkpoint(tmp_path))
    tensors["ln_f.bias"] = tensors["transformer.ln_f.bias"]
    rewrite(tmp_path, tensors)
    assert "the tensor 'ln_f.bias' is there twice" in refusal(tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("index", [0, -1])
def test_values_that_are_not_finite(tmp_path, value, dtype, index):
    tensors = parts(write_checkpoint(tmp_path, vocab_size=300_000, n_embd=4, n_layer=1))
    array = tensors["transformer.wte.weight"][2]
    array.flat[index] = value
    tensors["transformer.wte.weight"] = (dtype, array.shape, to_stored(array, dtype))
    rewrite(tmp_path, tensors)
    with (
        Checkpoint(tmp_path) as checkpoint,
        pytest.raises(CheckpointError, match=r"wte\.weight has values that are not"),
    ):
        checkpoint.read("wte.weight")


def test_a_signalling_nan_is_refused(tmp_path):
    tensors = parts(write_checkpoint(tmp_path))
    tensors["transformer.ln_f.bias"] = ("F16", (32,), np.full(32, 0x7D01, "<u2"))
    rewrite(tmp_path, tensors)
    with Checkpoint(tmp_path) as checkpoint, pytest.raises(CheckpointError, match=r"ln_f\.bias has values"):
        checkpoint.read("ln_f.bias")


def test_a_file_that_shrinks_while_it_is_open(tmp_path):
    write_checkpoint(tmp_path)
    with Checkpoint(tmp_path) as checkpoint:
        os.truncate(tmp_path / "model.safetensors", 20_000)
        with pytest.raises(CheckpointError, match=r"became shorter while the tensor ln_f\.bias was read"):
            checkpoint.read("ln_f.bias")


def test_a_file_that_is_written_to_while_it_is_open(tmp_path):
    write_checkpoint(tmp_path)
    with Checkpoint(tmp_path) as checkpoint:
        checkpoint.check_unchanged()
        os.utime(tmp_path / "model.safetensors", ns=(0, 1))
        with pytest.raises(CheckpointError, match=r"model\.safetensors was changed while it was read: load"):
            checkpoint.check_unchanged()


def test_all_problems_on_demand(tmp_path):
    tensors = parts(write_checkpoint(tmp_path))
    del tensors["transformer.ln_f.bias"], tensors["transformer.wpe.weight"]
    tensors[C_ATTN] = ("F32", (96, 32), tensors[C_ATTN][2])
    tensors["transformer.ln_f.weight"] = ("I8", (32,), np.zeros(32, "i1"))
    tensors["transformer.h.2.ln_1.bias"] = ("F32", (32,), np.zeros(32, "<f4"))
    rewrite(tmp_path, tensors)
    problems = []
    with Checkpoint(tmp_path, problems=problems) as checkpoint:
        assert len(checkpoint.names) == 2 + 2 * 12 + 2 - 4
    assert [line.split(": ", 1)[1].split(";")[0].split(",")[0] for line in problems] == [
        "the weights have no tensor wpe.weight (and 1 more)",
        "the tensor h.0.attn.c_attn.weight has shape (96",
        "the tensor ln_f.weight has dtype I8",
        "the weights have a tensor 'h.2.ln_1.bias'",
    ]
    assert refusal(tmp_path) == problems[0]


def test_a_replaced_file_does_not_mix_with_the_open_one(tmp_path):
    write_checkpoint(tmp_path / "a", seed=1)
    write_checkpoint(tmp_path / "b", seed=2)
    expected = values_of(tmp_path / "a")
    with Checkpoint(tmp_path / "a") as checkpoint:
        os.replace(tmp_path / "b" / "model.safetensors", tmp_path / "a" / "model.safetensors")
        assert all((checkpoint.read(name) == expected[name]).all() for name in checkpoint.names)


def test_a_git_lfs_pointer(tmp_path):
    write_checkpoint(tmp_path)
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 498\n"
    (tmp_path / "model.safetensors").write_text(text)
    assert "is a Git LFS pointer, not the weights: run `git lfs pull`" in refusal(tmp_path)


def test_no_weights(tmp_path):
    write_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert "has no model.safetensors" in refusal(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")
    message = refusal(tmp_path)
    assert "nvg never opens pickle files" in message
    assert "save_pretrained(DIR, safe_serialization=True)" in message


def shard(directory) -> dict:
    """Split model.safetensors in two files with an index, which is returned."""
    tensors = parts(directory)
    (directory / "model.safetensors").unlink()
    names = list(tensors)
    files = {
        "model-00001-of-00002.safetensors": names[: len(names) // 2],
        "model-00002-of-00002.safetensors": names[len(names) // 2 :],
    }
    for file, inside in files.items():
        write_safetensors(directory / file, {name: tensors[name] for name in inside})
    index = {"metadata": {}, "weight_map": {name: file for file, inside in files.items() for name in inside}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


def test_shards(tmp_path):
    expected = values_of(write_checkpoint(tmp_path))
    shard(tmp_path)
    values = values_of(tmp_path)
    assert list(values) == list(expected)
    assert all((values[name] == expected[name]).all() for name in values)


def test_a_missing_shard(tmp_path):
    shard(write_checkpoint(tmp_path))
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors is missing; model.safetensors.index.json names it" in refusal(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "x.bin",
        "",
        ".safetensors",
        3,
        None,
        ["a"],
        "a\0b",
        "a.safetensors/../b",
        "a.safetensors\n",
    ],
)
def test_an_index_that_names_other_files(tmp_path, name):
    index = shard(write_checkpoint(tmp_path))
    index["weight_map"][C_ATTN] = name
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "it must be the plain name of a .safetensors file" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "weight_map must be an object of tensor names and file names"),
        ('{"weight_map": []}', "weight_map must be an object"),
        ('{"weight_map": {}}', "weight_map must be an object"),
        ("[]", "holds a JSON list"),
        ("{", "is not valid JSON"),
    ],
)
def test_an_index_that_is_none(tmp_path, content, message):
    shard(write_checkpoint(tmp_path))
    (tmp_path / "model.safetensors.index.json").write_text(content)
    assert message in refusal(tmp_path)


def test_files_are_closed(tmp_path):
    write_checkpoint(tmp_path)
    with Checkpoint(tmp_path) as checkpoint:
        pass
    with pytest.raises(ValueError, match="closed file"):
        checkpoint.read("wte.weight")
    shutil.rmtree(tmp_path)
