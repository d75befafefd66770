"""Headers of safetensors files that are damaged or hostile: one line each, before anything is sized by them."""

import json
import os
import random
import tracemalloc

import pytest
from checkpoints import write_checkpoint

from nvg.errors import CheckpointError
from nvg.files import MAX_JSON_BYTES
from nvg.model.checkpoint import Checkpoint

C_ATTN, LN_F = "transformer.h.0.attn.c_attn.weight", "transformer.ln_f.weight"


@pytest.fixture
def model(tmp_path):
    return write_checkpoint(tmp_path, n_layer=1)


def refusal(model) -> str:
    with pytest.raises(CheckpointError) as caught, Checkpoint(model):
        pass
    message = str(caught.value)
    assert str(model) in message
    assert message.isprintable()
    assert len(message) < 400 + len(str(model))
    return message


def split(model) -> tuple[dict, bytes]:
    """The weights' header, parsed, and the bytes behind it."""
    whole = (model / "model.safetensors").read_bytes()
    size = int.from_bytes(whole[:8], "little")
    return json.loads(whole[8 : 8 + size]), whole[8 + size :]


def write(model, header, data=b"", length=None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(text) if length is None else length
    (model / "model.safetensors").write_bytes(length.to_bytes(8, "little") + text + data)


def change(model, name, **entries) -> None:
    header, data = split(model)
    header[name] |= entries
    write(model, header, data)


def test_a_file_that_is_cut_short(model):
    path = model / "model.safetensors"
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    rng = random.Random(0)
    boundaries = {0, 1, 7, 8, 9, 15, 16, 17, header - 1, header, header + 1, len(whole) - 1}
    for size in sorted(boundaries | {rng.randrange(len(whole)) for _ in range(200)}):
        path.write_bytes(whole[:size])
        message = refusal(model)
        assert f"{path} has {size} bytes, too few" in message or f"{path} ({size} bytes) is cut short" in message
        assert ("too few" in message) == (size < 8)


def test_cut_at_every_byte_of_the_header(model):
    header, _ = split(model)
    write(model, {name: header[name] for name in (LN_F, C_ATTN)})
    path = model / "model.safetensors"
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        refusal(model)


@pytest.mark.parametrize("length", [0, 1, 10**5, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1])
def test_lengths_of_a_header(model, length):
    write(model, *split(model), length=length)
    refusal(model)


@pytest.mark.parametrize("length", [MAX_JSON_BYTES + 1, 100_000_001])
def test_a_header_that_fills_a_large_file(model, length):
    path = model / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{")
    os.truncate(path, 2**30)  # it takes no room
    tracemalloc.start()
    try:
        assert f"its header has {length} bytes; no GPT-2 needs more than {MAX_JSON_BYTES}" in refusal(model)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"", "begins with b''"),
        (b"\0" * 64, "no JSON object"),
        (b"null", "no JSON object"),
        (b"[]", "no JSON object"),
        (b" {}", "no JSON object"),
        (b"{}", "no tensor wte.weight"),
        (b'{"wte.weight": "xyz"', "delimiter"),
        (b"{\xff\xff}", "can't decode byte 0xff"),
        (b'{"\xed\xa0\x80": 1}', "can't decode byte 0xed"),
        (b'{"a": ' * 50_000, "nested too deeply"),
        (b'{"a": ' + b"[" * 50_000, "nested too deeply"),
        (b'{"a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4], "dtype": "F32"}}', "has 'dtype' twice"),
        (b'{"a": 1, "b": 2, "a": 1}', "has 'a' twice"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "digits"),
        (b'{"a": [NaN, Infinity]}', "it needs a dtype"),
        (b"{}{}", "Extra data"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_header_that_is_none(model, header, reason):
    write(model, header)
    assert reason in refusal(model)


@pytest.mark.parametrize(
    "entry",
    [None, 1, "x", [], {}, {"dtype": "F32"}, {"dtype": "F32", "shape": [1]}, {"shape": [1], "data_offsets": [0, 4]}],
    ids=str,
)
def test_an_entry_that_lacks_something(model, entry):
    header, data = split(model)
    write(model, header | {"a\nb" * 100: entry}, data)
    assert "it needs a dtype, a shape and data_offsets" in refusal(model)


@pytest.mark.parametrize("dtype", [3, None, ["F32"], True])
def test_a_dtype_that_is_no_name(model, dtype):
    change(model, LN_F, dtype=dtype)
    assert "it needs a dtype" in refusal(model)


@pytest.mark.parametrize("dtype", ["F64", "F16", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "U16", "C64"])
def test_a_dtype_that_the_bytes_contradict(model, dtype):
    change(model, LN_F, dtype=dtype)
    assert f"{dtype} (32,), can't have 128 bytes" in refusal(model)


@pytest.mark.parametrize("dtype", ["f32", "", "F32 ", "F8_E4M3\n", "x" * 10_000, "FLOAT", "Q4_K"])
def test_an_unknown_dtype(model, dtype):
    change(model, LN_F, dtype=dtype)
    message = refusal(model)
    assert "ln_f.weight has dtype " in message
    assert "; it must be one of F32, F16, BF16" in message


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "I8", "U8"])
def test_eight_bits_of_the_right_size(model, dtype):
    change(model, LN_F, dtype=dtype, shape=[128])
    assert "the tensor ln_f.weight has shape (128,)" in refusal(model)


@pytest.mark.parametrize(
    "shape",
    [
        [2**32, 2**32, 2**32],
        [2**62, 4],
        [2**63 - 1] * 64,
        [2**61 + 8],  # times 4, in 64 bits, the right number of bytes
        [31],
        [],
        [0],
        [32, 0],
        [10**400],
        [-32],
        [-1, -32],
        [32.0],
        ["32"],
        [True] * 2,
        [None],
        [[32]],
        [1] * 100_000,
        "32",
        32,
    ],
    ids=lambda shape: str(shape)[:30],
)
def test_shapes(model, shape):
    change(model, LN_F, shape=shape)
    refusal(model)


@pytest.mark.parametrize("shape", [[-1, -32], [32, True], [32, 2**63, 0], [1] * 64 + [32]], ids=lambda s: str(s)[:20])
def test_sizes_that_are_none(model, shape):
    change(model, LN_F, shape=shape, data_offsets=split(model)[0][LN_F]["data_offsets"])
    assert "it needs a dtype, a shape and data_offsets" in refusal(model)


def test_a_shape_of_the_same_size(model):
    change(model, LN_F, shape=[1, 32])
    assert "ln_f.weight has shape (1, 32); config.json asks for (32,)" in refusal(model)


@pytest.mark.parametrize(
    "offsets",
    [[4, 0], [-4, 124], [0], [0, 4, 8], [0.0, 128.0], ["0", "128"], [True, 128], None, {}, [2**64, 2**64 + 128], []],
    ids=str,
)
def test_offsets_that_are_none(model, offsets):
    change(model, LN_F, data_offsets=offsets)
    refusal(model)


def moved(entry, by):
    return entry | {"data_offsets": [offset + by for offset in entry["data_offsets"]]}


def test_tensors_that_overlap(model):
    header, data = split(model)
    for by in (-4, -128):
        write(model, header | {LN_F: moved(header[LN_F], by)}, data)
        assert "overlaps with another" in refusal(model)
    begin, end = header[C_ATTN]["data_offsets"]
    change(model, C_ATTN, data_offsets=[0, end - begin])
    assert "overlaps with another" in refusal(model)


def test_all_tensors_at_one_place(model):
    header, data = split(model)
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    write(model, header | {f"empty {i}": entry for i in range(1000)}, data)
    with Checkpoint(model) as checkpoint:  # of no bytes: that is no overlap
        assert "1000 tensors that GPT-2 does not use" in checkpoint.warnings[0]


def test_a_gap(model):
    header, data = split(model)
    begin = header[LN_F]["data_offsets"][0]
    later = {name: moved(entry, 4) for name, entry in header.items() if entry.get("data_offsets", [0])[0] >= begin}
    write(model, header | later, data[:begin] + b"gap!" + data[begin:])
    assert "has a gap before it" in refusal(model)
    first = {name: moved(entry, 4) for name, entry in header.items() if "data_offsets" in entry}
    write(model, first, b"gap!" + data)
    assert "has a gap before it" in refusal(model)


def test_what_follows_the_tensors(model):
    header, data = split(model)
    write(model, header, data + b"x")
    assert "1 bytes follow its tensors" in refusal(model)


def test_metadata_may_say_anything(model):
    header, data = split(model)
    write(model, header | {"__metadata__": {"format": "pt", "note": "x"}}, data)
    with Checkpoint(model) as checkpoint:
        assert checkpoint.warnings == []


def test_what_only_the_library_minds(model):
    header, data = split(model)
    write(model, header | {"__metadata__": {"note": ["texts alone are allowed"]}}, data)
    assert "is not a safetensors file: " in refusal(model)


def test_a_header_may_end_in_spaces(model):
    header, data = split(model)
    write(model, json.dumps(header).encode() + b" " * 100_000, data)
    with Checkpoint(model):
        pass


def test_hundreds_of_bits_that_flipped(model):
    """Whatever one bit of the header is, it is refused, or in a name that nobody asks for, or changes no tensor."""
    path = model / "model.safetensors"
    whole = path.read_bytes()
    size = 8 + int.from_bytes(whole[:8], "little")
    rng = random.Random(1)
    with Checkpoint(model) as checkpoint:
        expected = {name: checkpoint.read(name).tobytes() for name in checkpoint.names}
    refused = []
    for _ in range(300):
        at, bit = rng.randrange(size), rng.randrange(8)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        try:
            with Checkpoint(model) as checkpoint:
                assert {name: checkpoint.read(name).tobytes() for name in checkpoint.names} == expected
        except CheckpointError as error:
            refused.append(str(error))
    assert len(refused) > 200
    assert all(line.isprintable() for line in refused)
