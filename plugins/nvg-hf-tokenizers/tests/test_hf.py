import json
import os
import subprocess
import sys
from pathlib import Path

import nvg_hf_tokenizers_plugin
import pytest
from nvg_hf_tokenizers import HFTokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from nvg import LLM, SamplingParams, hub
from nvg.errors import CheckpointError
from nvg.plugins import Registry, registry
from nvg.testing import check_tokenizer
from nvg.testing.tokenizers import TEXTS
from nvg.tokenizers.bpe import ByteLevelBPE
from nvg.tokenizers.prompt import encode_whole

TALES = hub.resolve_model("tales")
CORPUS = [
    "Once upon a time there was a king who had a daughter.",
    "The king's daughter was beautiful, über alles.",
] * 20


def trained(model, trainer_class, special, **parts):
    tokenizer = Tokenizer(model)
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    options = {"unk_token": special[0]} if trainer_class is trainers.UnigramTrainer else {}
    trainer = trainer_class(vocab_size=400, special_tokens=special, show_progress=False, **options)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def word_piece():
    return trained(
        models.WordPiece(unk_token="[UNK]"),
        trainers.WordPieceTrainer,
        ["[UNK]", "[SEP]"],
        normalizer=normalizers.BertNormalizer(lowercase=True),
        pre_tokenizer=pre_tokenizers.BertPreTokenizer(),
        decoder=decoders.WordPiece(),
    )


def unigram():
    return trained(
        models.Unigram(),
        trainers.UnigramTrainer,
        ["<unk>", "</s>"],
        pre_tokenizer=pre_tokenizers.Metaspace(),
        decoder=decoders.Metaspace(),
    )


def llama_like():
    """SentencePiece's BPE with bytes for what is unknown, and the decoder that Llama's file has."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{byte:02X}>": 3 + byte for byte in range(256)}}
    for piece in ("\u2581", "t", "h", "e", "\u2581t", "he", "\u2581the", "k", "i", "n", "g"):
        vocab[piece] = len(vocab)
    merges = [("\u2581", "t"), ("h", "e"), ("\u2581t", "he")]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def bpe_with_suffix():
    return trained(
        models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"),
        lambda **options: trainers.BpeTrainer(end_of_word_suffix="</w>", **options),
        ["<unk>"],
        pre_tokenizer=pre_tokenizers.Whitespace(),
        decoder=decoders.BPEDecoder(),
    )


KINDS = {"WordPiece": word_piece, "Unigram": unigram, "Llama": llama_like, "suffix": bpe_with_suffix}


@pytest.fixture(params=KINDS, scope="module")
def made(request):
    return KINDS[request.param]()


def test_it_keeps_the_contract():
    check_tokenizer(HFTokenizer)


def test_other_kinds_keep_it_too(made, tmp_path):
    made.save(str(tmp_path / "tokenizer.json"))
    check_tokenizer(HFTokenizer, tmp_path, lossless=False)


def test_ids_and_text_are_the_library_s(made):
    mine = HFTokenizer(made.to_str())
    for text in ("the king", "Once upon a time there was a king.", "über the king"):
        ids = mine.encode(text)
        assert ids == made.encode(text, add_special_tokens=False).ids
        assert mine.decode(ids).strip() == made.decode(ids, skip_special_tokens=False).strip()


def test_bytes_of_a_part_of_a_character():
    mine = HFTokenizer(llama_like().to_str())
    ids = mine.encode("\u4f60")
    assert [mine.token_bytes(token_id) for token_id in ids] == [b" ", b"\xe4", b"\xbd", b"\xa0"]
    assert mine.decode(ids) == " \u4f60"


def test_a_gpt2_file_gives_nvg_s_own_ids_and_bytes():
    mine, own = HFTokenizer.from_dir(TALES), ByteLevelBPE.from_dir(TALES)
    for text in (*TEXTS, "a<|endoftext|>b"):
        assert mine.encode(text) == own.encode(text)
        assert mine.encode(text, allow_special=True) == own.encode(text, allow_special=True)
    assert [mine.token_bytes(i) for i in range(mine.vocab_size)] == [own.token_bytes(i) for i in range(own.vocab_size)]
    assert (mine.eos_token_ids, dict(mine.special_tokens)) == (own.eos_token_ids, dict(own.special_tokens))


def test_truncation_padding_and_gaps():
    tokenizer = word_piece()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=50)
    tokenizer.add_tokens([AddedToken("king'sdaughter", normalized=False)])
    mine = HFTokenizer(tokenizer.to_str())
    assert (
        len(mine.encode("once upon a time there was")) == len(word_piece().encode("once upon a time there was").ids) > 2
    )
    assert mine.decode(mine.encode("king'sdaughter")) == "king'sdaughter"
    settings = json.loads(tokenizer.to_str())
    settings["model"]["vocab"]["zzz"] = 1000
    mine = HFTokenizer(json.dumps(settings))
    assert (mine.vocab_size, mine.token_bytes(999), mine.token_bytes(1000)) == (1001, b"", b" zzz")


def test_what_is_added_to_a_prompt(made):
    for single in ("$A", "[SEP] $A", "[SEP] $A [SEP] [SEP]"):
        made.add_special_tokens(["[SEP]"])
        made.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[("[SEP]", made.token_to_id("[SEP]"))]
        )
        mine = HFTokenizer(made.to_str())
        for text in ("the king", "", "über the king"):
            assert encode_whole(mine, text) == made.encode(text).ids
            assert mine.encode(text) == made.encode(text, add_special_tokens=False).ids


def test_a_model_with_another_kind_of_tokenizer(tmp_path):
    from checkpoints import write_checkpoint

    directory = write_checkpoint(tmp_path)
    with LLM(str(directory)) as llm:
        num_ids = llm.tokenizer.vocab_size
    trainer = trainers.WordPieceTrainer(vocab_size=num_ids, special_tokens=["[UNK]", "[SEP]"], show_progress=False)
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    made.train_from_iterator(CORPUS, trainer)
    made.save(str(directory / "tokenizer.json"))
    with pytest.raises(CheckpointError, match=r"nvg-hf-tokenizers \(--tokenizer hf\)"):
        LLM(str(directory))
    if "hf" not in registry().tokenizers:
        registry().register(nvg_hf_tokenizers_plugin, "nvg-hf-tokenizers")
    with LLM(str(directory), tokenizer="hf") as llm:
        (output,) = llm.generate("the king", SamplingParams(max_tokens=5, seed=1, ignore_eos=True))
        assert output.prompt_token_ids == made.encode("the king", add_special_tokens=False).ids
        assert output.text == llm.tokenizer.decode(output.token_ids)


def test_files_that_do_not_fit(tmp_path):
    with pytest.raises(CheckpointError, match=r"tokenizer.json: not there"):
        HFTokenizer.from_dir(tmp_path)
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(CheckpointError, match=r"tokenizer.json is not a regular file"):
        HFTokenizer.from_dir(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer.json: not a tokenizer.json: "):
        HFTokenizer.from_dir(tmp_path)
    made = unigram()
    made.decoder = decoders.CTC()
    with pytest.raises(CheckpointError, match="CTC, depends on neighbouring tokens"):
        HFTokenizer(made.to_str())


def test_it_registers_without_the_library():
    registry = Registry("")
    registry.register(nvg_hf_tokenizers_plugin, "nvg-hf-tokenizers")
    assert registry.tokenizers.load("hf") is HFTokenizer
    directory = Path(nvg_hf_tokenizers_plugin.__file__).parent
    program = "import nvg_hf_tokenizers_plugin, sys; assert 'tokenizers' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=directory, check=True)
