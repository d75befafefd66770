import base64
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nvg_tiktoken_plugin
import pytest
from nvg_tiktoken import TiktokenTokenizer

from nvg import hub
from nvg.errors import CheckpointError
from nvg.plugins import Registry
from nvg.testing import check_tokenizer
from nvg.testing.tokenizers import TEXTS
from nvg.tokenizers.bpe import ByteLevelBPE

TALES = hub.resolve_model("tales")
GPT2 = Path(__file__).resolve().parents[4] / "shared" / "gpt2-tokenizer"


def test_it_keeps_the_contract():
    check_tokenizer(TiktokenTokenizer)


@pytest.mark.parametrize("directory", [TALES, GPT2], ids=["tales", "gpt2"])
def test_the_ids_of_nvg_s_own(directory):
    if not directory.exists():
        pytest.skip(f"there is no {directory}")
    mine, own = TiktokenTokenizer.from_dir(directory), ByteLevelBPE.from_dir(directory)
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    for text in (*TEXTS, readme, "a<|endoftext|>b"):
        assert mine.encode(text) == own.encode(text)
        assert mine.encode(text, allow_special=True) == own.encode(text, allow_special=True)
    assert [mine.token_bytes(i) for i in range(mine.vocab_size)] == [own.token_bytes(i) for i in range(own.vocab_size)]
    assert mine.eos_token_ids == own.eos_token_ids
    assert mine.special_tokens == own.special_tokens


@pytest.fixture
def ranks_file(tmp_path):
    """A *.tiktoken file with the bytes and two tokens more, and an id left out."""
    tokens = {bytes([byte]): byte for byte in range(256)} | {b"ab": 256, b"abc": 258}
    lines = [f"{base64.b64encode(token).decode()} {rank}" for token, rank in tokens.items()]
    (tmp_path / "mine.tiktoken").write_text("\n".join(lines))
    (tmp_path / "tiktoken.json").write_text(
        json.dumps({"special_tokens": {"<|end|>": 259}, "pat_str": r"\p{L}+|\P{L}"})
    )
    (tmp_path / "config.json").write_text('{"eos_token_id": 259}')
    return tmp_path


def test_a_tiktoken_file(ranks_file):
    tokenizer = TiktokenTokenizer.from_dir(ranks_file)
    assert tokenizer.encode("abcab c") == [258, 256, 32, 99]
    assert tokenizer.encode("<|end|>", allow_special=True) == [259]
    assert (tokenizer.vocab_size, tokenizer.eos_token_ids, tokenizer.token_bytes(257)) == (260, (259,), b"")
    check_tokenizer(TiktokenTokenizer, ranks_file)


def test_files_that_do_not_fit(ranks_file, tmp_path_factory):
    (ranks_file / "tiktoken.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tiktoken.json: not JSON"):
        TiktokenTokenizer.from_dir(ranks_file)
    (ranks_file / "other.tiktoken").write_text("")
    with pytest.raises(CheckpointError, match=r"2 files end in \.tiktoken; leave one"):
        TiktokenTokenizer.from_dir(ranks_file)
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(CheckpointError, match="no tokenizer here for tiktoken"):
        TiktokenTokenizer.from_dir(empty)
    shutil.copy(TALES / "tokenizer.json", empty)
    settings = json.loads((empty / "tokenizer.json").read_text())
    settings["model"]["merges"].reverse()
    (empty / "tokenizer.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="its merges are not in the order of ids"):
        TiktokenTokenizer.from_dir(empty)
    settings["model"]["type"] = "WordPiece"
    (empty / "tokenizer.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="not GPT-2's byte-level BPE; the tokenizer hf reads other kinds"):
        TiktokenTokenizer.from_dir(empty)


def test_what_a_post_processor_adds(tmp_path):
    settings = json.loads((TALES / "tokenizer.json").read_text())
    settings["post_processor"] = {"type": "BertProcessing", "sep": ["x", 7], "cls": ["y", 5]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(settings))
    tokenizer = TiktokenTokenizer.from_dir(tmp_path)
    assert tokenizer.affixes == ByteLevelBPE.from_dir(tmp_path).affixes == ((5,), (7,))
    assert tokenizer.fingerprint != TiktokenTokenizer.from_dir(TALES).fingerprint
    settings["post_processor"] = {"type": "x"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="post_processor 'x' as it is here is not supported"):
        TiktokenTokenizer.from_dir(tmp_path)


def test_it_registers_without_tiktoken():
    registry = Registry("")
    registry.register(nvg_tiktoken_plugin, "nvg-tiktoken")
    assert registry.tokenizers.load("tiktoken") is TiktokenTokenizer
    directory = Path(nvg_tiktoken_plugin.__file__).parent
    program = "import nvg_tiktoken_plugin, sys; assert 'tiktoken' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=directory, check=True)
