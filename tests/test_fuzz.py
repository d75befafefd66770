"""Files of a model that are changed at random: each is read, or refused in one line; nothing else ever happens.

`pytest` tries fifty of each kind, always the same; `pytest --fuzz 100000 tests/test_fuzz.py` goes on for longer.
"""

import contextlib
import copy
import io
import json
from pathlib import Path

import pytest
import tokenizers
from checkpoints import write_checkpoint
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nvg.errors import CheckpointError, ParameterError
from nvg.files import weight_files
from nvg.model.checkpoint import tensor_shapes
from nvg.model.config import read_config
from nvg.model.generation import read_generation_defaults
from nvg.model.safetensors_header import read_header
from nvg.params import SamplingParams
from nvg.sampling.compose import DEFAULT_CHAIN, own_chain
from nvg.tokenizers.bpe import ByteLevelBPE
from nvg.tokenizers.prompt import encode_whole

CORPUS = Path(__file__).parent / "corpus"
IS_SHORT = settings.default.max_examples <= 100
VALUES = (
    *(None, True, False, 0, 1, -1, 2, 255, 256, 2**31 - 1, 2**31, 2**63, 2**64, 10**400, 0.5, -0.0, 1e308),
    *(float("nan"), float("inf"), "", "a", "a\nb", "\0", "\ud800", "日本", "x" * 300, "../x.safetensors"),
    *([], {}, [[]], [{}], [0], [None], ["a"], [-1, 0], {"a": 1}, [0] * 100, {"type": "BPE"}, {"type": "x"}),
)
PIECES = (
    *(b"", b"\0", b"\xff", b'"', b"{", b"}", b",", b"[" * 2000, b'{"a":' * 2000, b"1e999", b"9" * 5000, b"\r\n"),
    b"\xed\xa0\x80",
)


def corpus(kind) -> list[bytes]:
    return [path.read_bytes() for path in sorted((CORPUS / kind).iterdir())]


def packed(text: bytes, data: bytes = b"") -> bytes:
    return len(text).to_bytes(8, "little") + text + data


def unpacked(data: bytes) -> tuple[bytes, bytes]:
    size = int.from_bytes(data[:8], "little")
    return data[8 : 8 + size], data[8 + size :]


def places(value, path=()):
    """The paths of all values in a JSON value, but for most of those in long lists and objects."""
    yield path
    items = [*value.items()] if isinstance(value, dict) else [*enumerate(value)] if isinstance(value, list) else []
    for key, inner in items[:40] + items[40:][-3:]:
        yield from places(inner, (*path, key))


def at(value, path):
    for key in path:
        value = value[key]
    return value


@st.composite
def other_json(draw, data):
    """One value of it replaced, removed, or put somewhere else."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return data
    path = draw(st.sampled_from([*places(value)]))
    new = draw(st.sampled_from(VALUES))
    if draw(st.booleans()):
        new = copy.deepcopy(at(value, draw(st.sampled_from([*places(value)]))))
    if not path:
        return json.dumps(new).encode()
    inside = at(value, path[:-1])
    if draw(st.booleans()):
        inside[path[-1]] = new
    else:
        del inside[path[-1]]
    return json.dumps(value).encode()


@st.composite
def other_bytes(draw, data):
    """A piece of it replaced."""
    begin = draw(st.integers(0, len(data)))
    end = min(len(data), begin + draw(st.sampled_from([0, 1, 2, 8, 100, len(data)])))
    piece = draw(st.one_of(st.sampled_from(PIECES), st.binary(max_size=9)))
    return data[:begin] + piece + data[end:]


@st.composite
def changed(draw, kind):
    data = draw(st.sampled_from(corpus(kind)))
    for _ in range(draw(st.integers(1, 3))):
        if draw(st.booleans()):
            data = draw(other_bytes(data))
        elif kind == "header":
            text, rest = unpacked(data)
            data = packed(draw(other_json(text)), rest)
        else:
            data = draw(other_json(data))
    return data


def fuzzed(kind):
    """The test takes `data`: every file of the corpus, then what is made of them."""

    def decorate(test):
        test = given(data=changed(kind))(test)
        for data in corpus(kind):
            test = example(data=data)(test)
        fixtures = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
        short = {"derandomize": True, "max_examples": 50} if IS_SHORT else {}
        return settings(suppress_health_check=fixtures, **short)(test)

    return decorate


@contextlib.contextmanager
def refused_or_read(most=1000):
    message = ""
    try:
        yield
    except CheckpointError as error:
        message = str(error)
    assert len(message.splitlines()) <= 1, message
    assert len(message) < most, f"{message[:200]}..."


@fuzzed("header")
def test_header(data):
    try:
        text, tensors = read_header(io.BytesIO(data), len(data))
    except ValueError as error:
        message = str(error)
    else:
        message = ""
        check_places(text, tensors, len(data))
    assert len(message) < 300


def check_places(text, tensors, size):
    end = 8 + len(text)
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.offset, tensor.num_bytes)):
        assert tensor.offset == end
        end += tensor.num_bytes
    assert end == size


@fuzzed("config")
def test_config(tmp_path, data):
    (tmp_path / "config.json").write_bytes(data)
    with refused_or_read():
        config = read_config(tmp_path)
        assert len(tensor_shapes(config)) <= 12 * 1024 + 5
        assert 1 <= config.head_size <= 128
        assert all(0 <= token_id < config.vocab_size for token_id in config.eos_token_ids)
    with refused_or_read():
        use(read_generation_defaults(tmp_path))


def use(defaults):
    """What was not refused can be used."""
    own_chain(defaults.params, defaults.stages, DEFAULT_CHAIN)
    SamplingParams(**defaults.params)


@fuzzed("generation")
def test_generation_config(tmp_path, data):
    (tmp_path / "config.json").write_text(json.dumps({"temperature": 0.5, **CONFIG}))
    (tmp_path / "generation_config.json").write_bytes(data)
    with refused_or_read():
        read_config(tmp_path)
    with refused_or_read():
        use(read_generation_defaults(tmp_path))


CONFIG = json.loads((CORPUS / "config" / "all_flags.json").read_text())


@fuzzed("index")
def test_index(tmp_path, data):
    (tmp_path / "model.safetensors.index.json").write_bytes(data)
    for number in (1, 2):
        (tmp_path / f"model-0000{number}-of-00002.safetensors").touch()
    with refused_or_read():
        for path in weight_files(tmp_path):
            assert path.parent == tmp_path
            assert path.exists()


@fuzzed("tokenizer")
def test_tokenizer(tmp_path, data):
    (tmp_path / "tokenizer.json").write_bytes(data)
    with refused_or_read(most=100_000):
        tokenizer = ByteLevelBPE.from_dir(tmp_path)
        for text in ("the he\n<|endoftext|> é日\0", "abba the AB'S 12345 [É]  word words .!? xx   x\n\n", ""):
            with contextlib.suppress(ParameterError):
                token_ids = encode_whole(tokenizer, text, allow_special=True)
                assert all(0 <= token_id < tokenizer.vocab_size for token_id in token_ids)
                tokenizer.decode(token_ids)
                assert token_ids == library_ids(data, text, token_ids)


def library_ids(data, text, default):
    """What Hugging Face tokenizers makes of the file; the default where it refuses it, or fails."""
    try:
        return tokenizers.Tokenizer.from_str(data.decode()).encode(text).ids
    except BaseException as error:  # its panics are no Exceptions
        if isinstance(error, KeyboardInterrupt):
            raise
        return default


@pytest.mark.parametrize("kind", ["header", "config", "generation", "index", "tokenizer"])
def test_the_corpus_is_small(kind):
    files = corpus(kind)
    assert files
    assert sum(map(len, files)) < 20_000


def test_a_sound_model_is_read(tmp_path):
    """What the targets call is what a model's files go through."""
    write_checkpoint(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    assert len(read_header(io.BytesIO(whole), len(whole))[1]) == 28
    assert read_config(tmp_path).n_layer == 2
    assert ByteLevelBPE.from_dir(tmp_path).vocab_size == 277
