"""The naive reference against golden values of transformers, so that it can be a witness for the engine."""

import numpy as np
import pytest
import reference
from checkpoints import (
    END_OF_TEXT,
    GOLDEN,
    TALES,
    golden,
    golden_directory,
    golden_names,
    vocabulary,
    write_checkpoint,
    write_safetensors,
    write_tokenizer,
)
from safetensors.numpy import load_file

SMALL = [name for name in golden_names() if name != "gpt2_124m"]


def assert_matches(case, logits):
    np.testing.assert_allclose(logits[np.ix_(case.positions, case.columns)], case.logits, rtol=0, atol=1e-4)
    assert logits.argmax(axis=1).tolist() == case.argmax.tolist()
    top = logits.max(axis=1, keepdims=True)
    logsumexp = top[:, 0] + np.log(np.exp(logits - top).sum(axis=1))
    np.testing.assert_allclose(logsumexp, case.logsumexp, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_logits_are_transformers(name, tmp_path):
    case = golden(name)
    assert_matches(case, reference.logits(reference.load(golden_directory(case, tmp_path)), case.token_ids))


def test_logits_of_a_full_size_gpt2_are_transformers(tmp_path):
    case = golden("gpt2_124m")
    model = reference.load(golden_directory(case, tmp_path), np.float32)
    assert_matches(case, reference.logits(model, case.token_ids))


@pytest.mark.parametrize("name", ["tales", "long"])
def test_greedy_tokens_are_transformers(name, tmp_path):
    case = golden(name)
    assert len(case.greedy) == 200
    ids = case.greedy_prompt + case.greedy.tolist()
    best = reference.logits(reference.load(golden_directory(case, tmp_path)), ids[:-1])[len(case.greedy_prompt) - 1 :]
    clear = case.greedy_gap > 1e-3
    assert clear.sum() > 190
    assert (best.argmax(axis=1) == case.greedy)[clear].all()


def test_greedy_continues_from_its_own_tokens(tmp_path):
    case = golden("long")
    model = reference.load(golden_directory(case, tmp_path))
    assert reference.greedy(model, case.greedy_prompt, 5) == case.greedy[:5].tolist()


def test_logits_look_back_only():
    model = reference.load(TALES)
    ids = golden("tales").token_ids[:12]
    np.testing.assert_allclose(reference.logits(model, ids[:7]), reference.logits(model, ids)[:7], rtol=0, atol=1e-10)


def test_the_written_checkpoint_is_the_same_on_every_machine(tmp_path):
    directory = write_checkpoint(tmp_path, n_layer=1, n_embd=4, n_positions=4, seed=1)
    bits = reference.load(directory, np.float32).tensors["wpe.weight"].view(np.uint32)
    assert [f"{b:08x}" for b in bits[0]] == ["3f952b6d", "3fa67816", "bf8ca8b5", "bfc9f0c6"]


@pytest.mark.parametrize("layout", ["tokenizer.json", "vocab.json"])
def test_the_written_tokenizer_is_a_byte_level_bpe(layout, tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="the tokenizers package is not installed")
    write_tokenizer(tmp_path, layout)
    if layout == "tokenizer.json":
        tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / layout))
        assert tokenizer.encode(END_OF_TEXT).ids == [len(vocabulary()) - 1]
    else:
        tokenizer = tokenizers.ByteLevelBPETokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    text = "then the sea and ünïcode \U0001f600\n"
    encoded = tokenizer.encode(text)
    assert "Ġthe" in encoded.tokens
    assert tokenizer.decode(encoded.ids) == text


def test_the_golden_files_are_small():
    assert sum((GOLDEN / name).stat().st_size for name in ("cases.json", "values.npz")) < 400_000


def test_safetensors_of_our_writer_are_read_by_the_library(tmp_path):
    values = np.arange(6, dtype="<f4").reshape(2, 3)
    write_safetensors(tmp_path / "x.safetensors", {"x": ("F32", (2, 3), values)})
    assert (load_file(tmp_path / "x.safetensors")["x"] == values).all()
