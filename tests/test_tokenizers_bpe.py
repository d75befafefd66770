"""Byte-level BPE against tiktoken, Hugging Face tokenizers and a naive merge; and its files, whole and damaged."""

import json
import os
import random
import subprocess
import sys
import time
import unicodedata
from itertools import pairwise
from pathlib import Path

import pytest
import tiktoken
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tokenizers_automaton import CL100K, DEEPSEEK, O200K

from nvg.errors import CheckpointError, ParameterError
from nvg.tokenizers import bpe, bpe_compiled
from nvg.tokenizers.automaton import split_tables
from nvg.tokenizers.bpe import ByteLevelBPE
from nvg.tokenizers.bpe_merge import MergeTable
from nvg.tokenizers.byte_alphabet import ByteIds
from nvg.tokenizers.prompt import encode_whole
from nvg.tokenizers.splitting import GPT2_PATTERN, Split

ROOT = Path(__file__).resolve().parents[1]
TALES = ROOT / "nvg" / "data" / "tales"
GPT2 = ROOT.parent / "shared" / "gpt2-tokenizer"
END = "<|endoftext|>"

# Letters and digits that Unicode gained lately are a matter of each library's version: Unicode 3.2 is settled.
SETTLED = [
    chr(code)
    for code in (*range(0x30000), *range(0xE0000, 0xE0200))
    if unicodedata.ucd_3_2_0.category(chr(code)) not in ("Cn", "Cs", "Co") and not 0x4F00 < code < 0x9F00
]
SPACES = "".join(chr(code) for code in (*range(9, 14), *range(0x1C, 0x21), 0x85, 0xA0, 0x1680, *range(0x2000, 0x200C)))
SPACES += "\u2028\u2029\u202f\u205f\u2060\u3000\ufeff"
NASTY = [
    "",
    " ",
    "   ",
    "a",
    "\0",
    "a\0b\0",
    "\ufeffa",
    "\ufeff\ufeff",
    "Once upon a time, there was a King.",
    "it's I'll they've we're he'd I'm don't 'S 'LL ''s 's's ’s can''t",
    " 's 'x ' ' '",
    "a'al a'le a'rl a'vl a'xe 'l 'v 'r",
    "1234567890 3.14159 ½ ² ٣٤ 四 Ⅷ 12ab34",
    "e\u0301 a\u0300\u0301\u0302 \u0301 नमस्ते กำ ष्ण",
    "👩‍👩‍👧‍👦 👍🏽 🇩🇪 😀😀 ❤️ 🏴\U000e0067\U000e0062\U000e007f",
    "Привет мир 你好，世界 こんにちは안녕 مرحبا שלום Ελληνικά mixedСмесь漢字",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐐷 𠀀𠀁 \U000f0000 \U0010ffff \ufffe \uffff \U0001ffff",
    SPACES,
    "".join(f"a{space}" for space in SPACES),
    "".join(f" {space}b" for space in SPACES),
    "".join(f"{space}{space}1{space}\n" for space in SPACES),
    "line\r\nline\n\n\n  indented\t\ttabs   \n ",
    "trailing   ",
    f"{END} a{END}b <|endoftext|",
    "Ġ Ċ Ā ġ Ń \xad",
    "!?.,;:--- ... ---\"'`~@#$%^&*()_+={}[]|\\<>/",
    "x" * 63 + " " + "y" * 64 + " " + "z" * 65,
    "https://example.org/a?b=c&d=%20 f(x)=x**2; // comment",
]
TEXT = st.lists(
    st.one_of(
        st.sampled_from(SETTLED),
        st.sampled_from(
            [*SPACES, "'s", "'ll", "'", " ", "a", "the", "1", "!", "👍🏽", "\u200d", "\u0301", END, "\U000f1234"]
        ),
    ),
    max_size=60,
).map("".join)


GPT2_SPLITS = split_tables([Split(GPT2_PATTERN)])


def bytes_alphabet():
    """The 256 characters of the byte-level alphabet, from another implementation."""
    return sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())


@pytest.fixture(scope="module")
def tales():
    return ByteLevelBPE.from_dir(TALES)


@pytest.fixture(scope="module")
def tales_oracle():
    return tokenizers.Tokenizer.from_file(str(TALES / "tokenizer.json"))


@pytest.fixture(scope="module")
def gpt2():
    if not GPT2.is_dir():
        pytest.skip("GPT-2's vocabulary is not beside the repository")
    return ByteLevelBPE.from_dir(GPT2)


@pytest.fixture(scope="module")
def gpt2_tiktoken(gpt2):
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    byte_of_char = {chr(b): b for b in printable} | {chr(256 + k): b for k, b in enumerate(others)}
    vocab = json.loads((GPT2 / "vocab.json").read_text(encoding="utf-8"))
    end = vocab.pop(END)
    return tiktoken.Encoding(
        "gpt2",
        pat_str=r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s""",
        mergeable_ranks={bytes(byte_of_char[c] for c in token): i for token, i in vocab.items()},
        special_tokens={END: end},
    )


@pytest.fixture(scope="module")
def gpt2_tokenizers(gpt2):
    return tokenizers.ByteLevelBPETokenizer(str(GPT2 / "vocab.json"), str(GPT2 / "merges.txt"))


def plain_ids(oracle, text):
    oracle.encode_special_tokens = True
    ids = oracle.encode(text, add_special_tokens=False).ids
    oracle.encode_special_tokens = False
    return ids


class TestSameIds:
    @pytest.mark.parametrize("text", NASTY)
    def test_nasty_tales(self, tales, tales_oracle, text):
        ids = tales.encode(text)
        assert ids == plain_ids(tales_oracle, text)
        assert tales.encode(text, allow_special=True) == tales_oracle.encode(text).ids
        assert tales.decode(ids) == text

    @pytest.mark.parametrize("text", NASTY)
    def test_nasty_gpt2(self, gpt2, gpt2_tiktoken, gpt2_tokenizers, text):
        ids = gpt2.encode(text)
        assert ids == gpt2_tiktoken.encode_ordinary(text) == gpt2_tokenizers.encode(text).ids
        assert gpt2.encode(text, allow_special=True) == gpt2_tiktoken.encode(text, allowed_special="all")
        assert gpt2.decode_bytes(ids) == text.encode()

    @settings(max_examples=200, deadline=None)
    @given(text=TEXT)
    def test_any_text_tales(self, tales, tales_oracle, text):
        ids = tales.encode(text)
        assert ids == plain_ids(tales_oracle, text)
        assert tales.encode(text, allow_special=True) == tales_oracle.encode(text).ids
        assert tales.decode(ids) == text

    @settings(max_examples=200, deadline=None)
    @given(text=TEXT)
    def test_any_text_gpt2(self, gpt2, gpt2_tiktoken, gpt2_tokenizers, text):
        ids = gpt2.encode(text)
        assert ids == gpt2_tiktoken.encode_ordinary(text) == gpt2_tokenizers.encode(text).ids
        assert gpt2.decode_bytes(ids) == text.encode()

    @pytest.mark.parametrize("before", ["a", "1", "!", "\t"])
    def test_every_settled_character_is_split_alike(self, tales, tales_oracle, before):
        text = "".join(before + char for char in SETTLED[::3])
        assert tales.encode(text) == plain_ids(tales_oracle, text)

    @pytest.mark.parametrize("char", ["a", " ", "😀"])
    def test_a_megabyte_of_one_character(self, tales, tales_oracle, char):
        text = char * (10**6 // len(char.encode()))
        start = time.process_time()
        ids = tales.encode(text)
        assert time.process_time() - start < 10  # what is not O(n log n) would take hours
        assert ids == plain_ids(tales_oracle, text)

    @pytest.mark.parametrize("char", ["a", " ", "😀"])
    def test_a_megabyte_of_one_character_gpt2(self, gpt2, gpt2_tiktoken, char):
        text = char * (10**6 // len(char.encode()))
        assert gpt2.encode(text) == gpt2_tiktoken.encode_ordinary(text)

    def test_long_pieces_of_many_merges(self, gpt2, gpt2_tiktoken):
        rng = random.Random(7)
        for length in (60, 64, 65, 66, 1000, 20_000):
            text = "".join(rng.choices("etaoinshrdlu", k=length))
            assert gpt2.encode(text) == gpt2_tiktoken.encode_ordinary(text)

    def test_text_too_long_for_a_list_of_pieces(self, tales):
        text = "Once upon a time" * 270_000
        ids = tales.encode(text)
        once = tales.encode("Once upon a timeOnce upon")
        assert ids[: len(once)] == once
        assert tales.decode(ids) == text

    def test_the_cache_forgets_and_stays_right(self, tales_oracle, monkeypatch):
        monkeypatch.setattr("nvg.tokenizers.bpe._MAX_CACHED_PIECES", 10)
        tokenizer = ByteLevelBPE.from_dir(TALES)
        text = "the king and the queen and their three little daughters went into the wood to the old witch " * 2
        assert tokenizer.encode(text) == plain_ids(tales_oracle, text)
        assert 0 < len(tokenizer._ids_of_piece) <= 10


@pytest.fixture(scope="class")
def compiled():
    """A tokenizer that encodes whatever comes with compiled code."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_COMPILED_FROM_CHARS", "_LOADED_FROM_CHARS", "_PREPARED_FROM_CHARS"):
            patch.setattr(bpe, name, 0)
        yield ByteLevelBPE.from_dir(TALES)


class TestCompiled:
    """What long texts are encoded with, against the same in Python and against tiktoken."""

    @pytest.mark.parametrize("text", NASTY)
    def test_nasty(self, compiled, tales_oracle, text):
        assert compiled.encode(text) == plain_ids(tales_oracle, text)
        assert compiled._compiled is not None

    @settings(max_examples=300, deadline=None)
    @given(texts=st.lists(TEXT, max_size=4))
    def test_any_text(self, compiled, tales_oracle, texts):
        assert compiled.encode_batch(texts) == [plain_ids(tales_oracle, text) for text in texts]
        allowed = [tales_oracle.encode(text).ids for text in texts]
        assert compiled.encode_batch(texts, allow_special=True) == allowed

    @settings(max_examples=100, deadline=None)
    @given(text=st.text(" '\n\ta1!s\u3000é", max_size=40))
    def test_few_kinds_of_characters(self, compiled, tales_oracle, text):
        assert compiled.encode(text) == plain_ids(tales_oracle, text)

    def test_every_character_between_others(self, compiled, monkeypatch):
        every = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
        for separator in ("a", "1 ", " !"):
            text = separator.join(every[::7])
            assert compiled.encode(text) == compiled._piecewise_ids(text)

    @pytest.mark.parametrize("length", [32, 33, 63, 64, 65, 66, 1000, 50_000])
    def test_long_words(self, compiled, length):
        rng = random.Random(length)
        text = "".join(rng.choices("etaoinshrdlu", k=length))
        assert compiled.encode(text) == compiled._piecewise_ids(text)

    def test_gpt2(self, compiled, gpt2_tiktoken):
        tokenizer = ByteLevelBPE.from_dir(GPT2)
        source = (ROOT / "nvg" / "README.md").read_text(encoding="utf-8") + Path(__file__).read_text(encoding="utf-8")
        assert tokenizer.encode(source) == gpt2_tiktoken.encode_ordinary(source)

    @settings(max_examples=100, deadline=None)
    @given(table=st.data())
    def test_merges_in_any_order(self, table):
        vocab_size, merges = table.draw(TestMerges.tables())
        columns = [[merge[k] for merge in merges] for k in range(3)]
        length = table.draw(st.sampled_from([1, 2, 10, 64, 65, 150]))
        text = "".join(random.Random(table.draw(st.integers(0, 1000))).choices("abc", k=length))
        byte_ids = ByteIds.of_vocab({"a": 0, "b": 1, "c": 2})
        compiled = bpe_compiled.CompiledBPE(GPT2_SPLITS, MergeTable(*columns, vocab_size), byte_ids)
        assert compiled.encode([text]) == [TestMerges.naive([ord(char) - 97 for char in text], merges)]

    def test_threads(self, compiled, monkeypatch):
        monkeypatch.setattr(bpe_compiled, "_BYTES_PER_THREAD", 1)
        monkeypatch.setattr(bpe_compiled, "default_threads", lambda: 5)
        texts = ["a king", "x" * 500, "", "the end", "é" * 40, " ", "once upon a time there was"]
        for number in range(1, len(texts) + 1):
            expected = [compiled._piecewise_ids(text) for text in texts[:number]]
            assert compiled.encode_batch(texts[:number]) == expected

    def test_the_table_of_words_is_overwritten(self, compiled, monkeypatch):
        rng = random.Random(0)
        text = " ".join("".join(rng.choices("abcdefgh", k=5)) for _ in range(60_000))
        assert compiled.encode(text) == compiled._piecewise_ids(text)


def test_short_texts_load_nothing(tales):
    tokenizer = ByteLevelBPE.from_dir(TALES)
    tokenizer.encode("a king " * 1000)
    assert tokenizer._compiled is None


def test_code_that_is_not_compiled_yet_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(bpe_compiled, "is_ready", lambda: False)
    monkeypatch.setattr(bpe, "_LOADED_FROM_CHARS", 1000)
    monkeypatch.setattr(bpe, "_PREPARED_FROM_CHARS", 2000)
    tokenizer = ByteLevelBPE.from_dir(TALES)
    tokenizer.encode("a" * 1500)
    assert tokenizer._compiled is None
    tokenizer.encode("a" * 2000)
    assert tokenizer._compiled is not None


class TestMerges:
    @staticmethod
    def naive(ids, merges):
        """Sennrich's loop, one merge at a time: the lowest rank that is there, where it is leftmost."""
        ranks = {(left, right): rank for rank, (left, right, _) in enumerate(merges)}
        while True:
            best = min(((ranks[pair], i) for i, pair in enumerate(pairwise(ids)) if pair in ranks), default=None)
            if best is None:
                return ids
            rank, i = best
            ids = [*ids[:i], merges[rank][2], *ids[i + 2 :]]

    @staticmethod
    @st.composite
    def tables(draw):
        """Merges in any order, some of which give a token that another gave before: ranks may fall after a merge."""
        tokens = ["a", "b", "c"]
        merges = {}
        for _ in range(draw(st.integers(0, 14))):
            left, right = draw(st.sampled_from(tokens)), draw(st.sampled_from(tokens))
            if len(left + right) <= 6:
                merges[left, right] = left + right
                if left + right not in tokens:
                    tokens.append(left + right)
        order = draw(st.permutations(list(merges)))
        return len(tokens), [(tokens.index(a), tokens.index(b), tokens.index(a + b)) for a, b in order]

    @settings(max_examples=250, deadline=None)
    @given(table=tables(), data=st.data())
    def test_same_as_one_at_a_time(self, table, data):
        vocab_size, merges = table
        length = data.draw(st.sampled_from([0, 1, 2, 3, 10, 64, 65, 90, 150]))
        seed = data.draw(st.integers(0, 1000))
        ids = random.Random(seed).choices(range(3), k=length)
        columns = [[merge[k] for merge in merges] for k in range(3)]
        assert MergeTable(*columns, vocab_size).merge(list(ids)) == self.naive(ids, merges)

    def test_a_merge_may_make_a_lower_rank_possible(self):
        # 0 a, 1 b, 2 c, 3 d, 4 bc, 5 abc, 6 abcd, 7 abca: a + bc comes late and makes abc + d possible, before abc + a.
        merges = [(1, 2, 4), (5, 3, 6), (0, 4, 5), (5, 0, 7)]
        columns = [[merge[k] for merge in merges] for k in range(3)]
        for ids in ([0, 1, 2, 3] * 5, [0, 1, 2, 3] * 40):
            assert MergeTable(*columns, 8).merge(list(ids)) == self.naive(ids, merges) == [6] * (len(ids) // 4)

    def test_pauses_take_no_longer(self):
        merges = [(1, 2, 4), (5, 3, 6), (0, 4, 5)]
        columns = [[merge[k] for merge in merges] for k in range(3)]
        start = time.process_time()
        assert MergeTable(*columns, 7).merge([0, 1, 2, 3] * 50_000) == [6] * 50_000
        assert time.process_time() - start < 5


class TestTokens:
    def test_bytes_of_every_token(self, tales, tales_oracle):
        assert tales.vocab_size == tales_oracle.get_vocab_size() == 4096
        for token_id in range(tales.vocab_size):
            token = tales.token_bytes(token_id)
            assert token.decode("utf-8", "replace") == tales_oracle.decode([token_id], skip_special_tokens=False)
        assert {tales.token_bytes(i) for i in range(1, 257)} == {bytes([byte]) for byte in range(256)}

    def test_bytes_of_every_gpt2_token(self, gpt2, gpt2_tiktoken):
        assert gpt2.vocab_size == 50257
        assert [gpt2.token_bytes(i) for i in range(50256)] == [
            gpt2_tiktoken.decode_single_token_bytes(i) for i in range(50256)
        ]
        assert gpt2.token_bytes(50256) == END.encode()

    @given(ids=st.lists(st.integers(0, 4095), max_size=20))
    def test_decode_replaces_what_is_not_utf8(self, tales, ids):
        assert tales.decode(ids) == b"".join(map(tales.token_bytes, ids)).decode("utf-8", errors="replace")

    @pytest.mark.parametrize("token_id", [-1, 4096, 10**9])
    def test_unknown_id(self, tales, token_id):
        for call in (tales.token_bytes, lambda i: tales.decode([0, i]), lambda i: tales.decode_bytes([i])):
            with pytest.raises(ParameterError, match=f"token id {token_id} .*0 to 4095"):
                call(token_id)

    def test_special_tokens_are_text_unless_asked_for(self, tales):
        assert tales.encode(END, allow_special=True) == [0]
        assert 0 not in tales.encode(END)
        assert tales.decode(tales.encode(END)) == END
        assert tales.special_tokens == {END: 0}
        assert tales.eos_token_ids == (0,)
        with pytest.raises(TypeError):
            tales.special_tokens["x"] = 1

    def test_batch(self, tales):
        texts = ["a b", "", END]
        for allow_special in (False, True):
            expected = [tales.encode(text, allow_special=allow_special) for text in texts]
            assert tales.encode_batch(texts, allow_special=allow_special) == expected


class TestSurrogates:
    @pytest.mark.parametrize("text", ["\ud83d\ude00", "a \ud83d\ude00b\U0001f600", "\ufeff\ud83d\ude00"])
    def test_pairs_are_joined(self, gpt2, gpt2_tiktoken, text):
        assert gpt2.encode(text) == gpt2_tiktoken.encode_ordinary(text)

    @pytest.mark.parametrize(
        ("text", "index"),
        [
            ("\ud800", 0),
            ("ab\udc00", 2),
            ("\U0001f600\ud83d\ude00\ud83d", 3),
            ("\ud83d\ud83d\ude00", 0),
            ("\ud83d\ude00\ude00", 2),
        ],
    )
    def test_a_lone_one_is_an_error(self, tales, text, index):
        with pytest.raises(ParameterError, match=rf"lone surrogate, U\+D[89A-F]\w\w, at index {index};"):
            tales.encode(text)

    def test_text_must_be_str(self, tales):
        with pytest.raises(ParameterError, match="text is bytes; it must be a str"):
            tales.encode(b"a")


def test_imports_neither_numpy_nor_numba():
    code = "import sys, nvg.tokenizers.bpe, nvg.tokenizers.stream; print({'numpy', 'numba'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "set()"


MERGES = [("h", "e"), ("Ġ", "t"), ("Ġt", "he"), ("a", "b"), ("ab", "c"), ("b", "c"), ("a", "bc"), ("'", "s")]


def tiny_vocab():
    vocab = {char: i for i, char in enumerate(bytes_alphabet())}
    for left, right in MERGES:
        vocab.setdefault(left + right, len(vocab))
    return vocab


def write_pair(directory, vocab=None, merges=None):
    """vocab.json and merges.txt."""
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in MERGES), ""]
    (directory / "vocab.json").write_text(json.dumps(tiny_vocab() if vocab is None else vocab), encoding="utf-8")
    (directory / "merges.txt").write_text("\n".join(lines) if merges is None else merges, encoding="utf-8", newline="")


def tiny_settings(**changes):
    """The content of a tokenizer.json; `model__NAME` changes the model, `pre__NAME` the pre-tokenizer."""
    settings = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "vocab": tiny_vocab(),
            "merges": [f"{a} {b}" for a, b in MERGES],
        },
    }
    for name, value in changes.items():
        group, _, option = name.rpartition("__")
        target = {"": settings, "model": settings["model"], "pre": settings["pre_tokenizer"]}[group]
        target[option] = value
    return settings


def write_json(directory, settings):
    (directory / "tokenizer.json").write_text(json.dumps(settings), encoding="utf-8")


def added(content, token_id, **options):
    entry = {"id": token_id, "content": content, "single_word": False, "lstrip": False, "rstrip": False}
    return entry | {"normalized": False, "special": True} | options


LLAMA3 = CL100K.replace(r"]?\p{L}+", r"]?+\p{L}++")
QWEN2 = CL100K.replace(r"\p{N}{1,3}", r"\p{N}")


def split(pattern, behavior="Isolated", invert=False):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}


def sequence(*parts, **options):
    """A pre-tokenizer: the parts, then bytes without GPT-2's pattern."""
    last = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False} | options
    return {"type": "Sequence", "pretokenizers": [*parts, last]}


def nested(key, part, depth):
    """The part within so many sequences."""
    for _ in range(depth):
        part = {"type": "Sequence", key: [part]}
    return part


def replace(pattern, content="x"):
    return {"type": "Replace", "pattern": pattern, "content": content}


KINDS = {
    "cl100k": {"pre_tokenizer": sequence(split(CL100K))},
    "llama3": {"pre_tokenizer": sequence(split(LLAMA3)), "model__ignore_merges": True},
    "qwen2": {"pre_tokenizer": sequence(split(QWEN2)), "normalizer": {"type": "NFC"}},
    "starcoder": {"pre_tokenizer": sequence({"type": "Digits", "individual_digits": True}, use_regex=True)},
    "digits": {"pre_tokenizer": sequence({"type": "Digits", "individual_digits": False}, add_prefix_space=True)},
    "bytes alone": {"pre__use_regex": False, "pre__add_prefix_space": True},
    "deepseek": {
        "pre_tokenizer": sequence(split(r"[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), split(r"\p{N}+"))
    },
    **{
        f"{behavior} {invert}": {"pre_tokenizer": sequence(split(r"[abeé ]|\n+", behavior, invert), split("h"))}
        for behavior in ("Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous")
        for invert in (False, True)
    },
    "punctuation": {"pre_tokenizer": sequence({"type": "Punctuation", "behavior": "Isolated"}, use_regex=True)},
    "more punctuation": {"pre_tokenizer": sequence({"type": "Punctuation", "behavior": "Contiguous"})},
    "words": {"pre_tokenizer": sequence({"type": "Whitespace"})},
    "between spaces": {"pre_tokenizer": sequence({"type": "WhitespaceSplit"}, split(r"\p{Lu}"))},
    "bert": {"pre_tokenizer": sequence({"type": "BertPreTokenizer"})},
    "delimiter": {"pre_tokenizer": sequence({"type": "CharDelimiterSplit", "delimiter": "."})},
    "o200k": {"pre_tokenizer": sequence(split(O200K))},
    "deepseek 3": {"pre_tokenizer": sequence(split(r"\p{N}{1,3}"), split("[一-龥぀-ゟ゠-ヿ]+"), split(DEEPSEEK))},
    "empty matches": {"pre_tokenizer": sequence(split("h*|"))},
    "lines": {"pre_tokenizer": sequence(split("^a|b$"))},
    "string": {
        "pre_tokenizer": sequence(
            {"type": "Split", "pattern": {"String": ". "}, "behavior": "MergedWithPrevious", "invert": False}
        )
    },
    **{kind: {"normalizer": {"type": kind}} for kind in ("NFD", "NFKC", "NFKD", "Lowercase", "StripAccents")},
    "strip": {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}},
    "strip left": {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": False}},
    "prepend": {"normalizer": {"type": "Prepend", "prepend": "the"}},
    "replace": {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "NFD"},
                {"type": "StripAccents"},
                replace({"Regex": " {2,}|b+"}, r"\1<"),
                replace({"String": "."}, "!"),
            ],
        }
    },
}
"""What the files of other models have, and each option by itself."""
NOT_REGULAR = {"empty matches", "lines", "string", "digits", "more punctuation"}
NOT_REGULAR |= {kind for kind in KINDS if kind.startswith(("Merged", "Contiguous"))}


class TestFiles:
    TEXT = "the theabc abcabc he's  the\nabbc bc"

    def test_merges_as_strings_or_pairs_or_in_their_own_file(self, tmp_path):
        made = []
        for name, merges in (("strings", [f"{a} {b}" for a, b in MERGES]), ("pairs", [list(pair) for pair in MERGES])):
            directory = tmp_path / name
            directory.mkdir()
            write_json(directory, tiny_settings(model__merges=merges))
            made.append(ByteLevelBPE.from_dir(str(directory)))
        oracle = tokenizers.Tokenizer.from_file(str(tmp_path / "strings" / "tokenizer.json"))
        write_pair(tmp_path)
        made.append(ByteLevelBPE.from_dir(tmp_path))
        for tokenizer in made:
            assert tokenizer.encode(self.TEXT) == oracle.encode(self.TEXT).ids
            assert tokenizer.fingerprint == made[0].fingerprint

    def test_tokenizer_json_comes_first(self, tmp_path):
        write_pair(tmp_path, merges="")
        write_json(tmp_path, tiny_settings())
        assert len(ByteLevelBPE.from_dir(tmp_path).encode(" the")) == 1

    @pytest.mark.parametrize("end", ["\r\n", "\n\n", "\r\n\r\n"])
    def test_line_ends_and_blank_lines(self, tmp_path, end):
        write_pair(tmp_path)
        expected = ByteLevelBPE.from_dir(tmp_path)
        write_pair(tmp_path, merges=end.join(["\ufeff#version: 0.2", *(f"{a} {b}" for a, b in MERGES), ""]))
        assert ByteLevelBPE.from_dir(tmp_path).fingerprint == expected.fingerprint

    def test_a_merge_of_number_signs_is_no_comment(self, tmp_path):
        vocab = tiny_vocab()
        write_pair(tmp_path, vocab | {"##": len(vocab)}, "# #\n")
        assert ByteLevelBPE.from_dir(tmp_path).encode("##") == [len(vocab)]

    def test_no_merges(self, tmp_path):
        write_pair(tmp_path, {char: i for i, char in enumerate(bytes_alphabet())}, "#version: 0.2\n")
        tokenizer = ByteLevelBPE.from_dir(tmp_path)
        assert tokenizer.decode_bytes(tokenizer.encode("the é")) == "the é".encode()
        assert len(tokenizer.encode("the é")) == 6

    @pytest.mark.parametrize(
        "changes",
        [
            {"pre__add_prefix_space": True},
            {"model__ignore_merges": True},
            {"model__unk_token": "a"},
            {"post_processor": None, "decoder": None},
            {"model__dropout": 0.0},
            {"truncation": {"max_length": 3, "stride": 0, "strategy": "LongestFirst", "direction": "Right"}},
        ],
        ids=lambda changes: next(iter(changes)),
    )
    def test_options_give_the_ids_of_tokenizers(self, tmp_path, changes, monkeypatch):
        vocab = tiny_vocab()
        if "model__ignore_merges" in changes:
            vocab["abbc"] = len(vocab)  # a whole piece that no merge makes
        n = len(vocab)
        tokens = [
            added("<s>", n),
            added("<s>x", n + 1),
            added("→", n + 2, special=False),
            added("[x]", n + 3, special=False, normalized=True),
            added("[x]y", n + 4, special=True, normalized=True),
            added("b c", n + 5),
            added("[x]<s", n + 6, special=False, normalized=True),
        ]
        write_json(tmp_path, tiny_settings(added_tokens=tokens, model__vocab=vocab, **changes))
        ours = ByteLevelBPE.from_dir(tmp_path)
        oracle = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        oracle.no_truncation()
        assert ours.special_tokens == {t["content"]: t["id"] for t in tokens if t["special"]}
        parts = ["a", "ab", " ", "bc", "'s", "é", "<s>", "<s>x", "the", "[x]", "[x]y", "\n", "→", "b c", "abbc"]
        rng = random.Random(3)
        for _ in range(300):
            text = "".join(rng.choices(parts, k=rng.randrange(10)))
            assert ours.encode(text, allow_special=True) == oracle.encode(text).ids
            if "pre__add_prefix_space" not in changes:
                assert ours.decode(ours.encode(text)) == text
            if not any(special in text for special in ours.special_tokens):
                assert ours.encode(text) == oracle.encode(text).ids
        in_python = ours.encode("\n".join(parts))
        for name in ("_COMPILED_FROM_CHARS", "_LOADED_FROM_CHARS", "_PREPARED_FROM_CHARS"):
            monkeypatch.setattr(bpe, name, 0)
        assert ours.encode("\n".join(parts)) == in_python

    @pytest.mark.parametrize("kind", KINDS)
    def test_every_kind_of_file_gives_the_ids_of_tokenizers(self, tmp_path, kind, monkeypatch):
        n = len(tiny_vocab())
        tokens = [
            added("<s>", n),
            added("<L>", n + 1, lstrip=True, special=False),
            added("<R>", n + 2, rstrip=True),
            added("word", n + 3, single_word=True, special=False),
            added("[É]", n + 4, special=False, normalized=True),
            added("[b]", n + 5, special=True, normalized=True, lstrip=True, rstrip=True),
            added("s>", n + 6, special=False),
        ]
        write_json(tmp_path, tiny_settings(added_tokens=tokens, **KINDS[kind]))
        ours = ByteLevelBPE.from_dir(tmp_path)
        oracle = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        parts = [*(token["content"] for token in tokens), "A", "The", "he", "don't", "'S", "12", "3456", "é", "e\u0301"]
        parts += [
            "abbc",
            "b",
            " ",
            "  ",
            "\n",
            "\r\n",
            "\t",
            ".",
            ". ",
            "!?",
            "😀",
            "ΑΣ",
            "İ",
            "ﬁ",
            "½",
            "\u3000",
            "漢字",
        ]
        rng = random.Random(5)
        texts = ["".join(rng.choices(parts, k=rng.randrange(14))) for _ in range(400)]
        for text in texts:
            assert ours.encode(text, allow_special=True) == oracle.encode(text).ids, text
            assert ours.encode(text) == plain_ids(oracle, text), text
        in_python = ours.encode_batch(texts)
        for name in ("_COMPILED_FROM_CHARS", "_LOADED_FROM_CHARS", "_PREPARED_FROM_CHARS"):
            monkeypatch.setattr(bpe, name, 0)
        assert ours.encode_batch(texts) == in_python
        assert (ours._compiled is None) == (kind in NOT_REGULAR)

    @pytest.mark.parametrize("kind", ["gpt2", "cl100k", "llama3", "qwen2"])
    def test_trained_vocabularies_on_random_unicode(self, tmp_path, kind):
        trained = tokenizers.Tokenizer(tokenizers.models.BPE())
        trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=900, initial_alphabet=bytes_alphabet(), special_tokens=[END], show_progress=False
        )
        lines = (ROOT / "nvg" / "README.md").read_text(encoding="utf-8").splitlines()
        trained.train_from_iterator([*lines, *NASTY], trainer)
        settings = json.loads(trained.to_str())
        for name, value in ({} if kind == "gpt2" else KINDS[kind]).items():
            (settings["model"] if name.startswith("model__") else settings)[name.removeprefix("model__")] = value
        write_json(tmp_path, settings)
        ours = ByteLevelBPE.from_dir(tmp_path)
        oracle = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        rng = random.Random(kind)
        for _ in range(150):
            text = "".join(rng.choices([*SETTLED, *SPACES * 40, *"abcdefst'1!" * 400], k=rng.randrange(80)))
            assert ours.encode(text, allow_special=True) == oracle.encode(text).ids, text

    @pytest.mark.parametrize("compile_all", [False, True])
    @pytest.mark.parametrize("unknown", [None, "?", "<unk>", "he"])
    @pytest.mark.parametrize("fuses", [False, True])
    def test_bytes_that_the_vocabulary_lacks(self, tmp_path, monkeypatch, unknown, fuses, compile_all):
        if compile_all:
            for name in ("_COMPILED_FROM_CHARS", "_LOADED_FROM_CHARS", "_PREPARED_FROM_CHARS"):
                monkeypatch.setattr(bpe, name, 0)
        kept = [*"?ab'st<unk>eh", "Ġ"]  # Ġ is the space; no part of é but Ã is there
        kept += ["Ã"]
        vocab = {token: number for number, token in enumerate(dict.fromkeys(kept))}
        merges = [pair for pair in MERGES if "c" not in "".join(pair)]
        merges += [("h", "e"), ("?", "?"), ("u", "n"), ("un", "k"), ("<", "unk"), ("<unk", ">"), ("<unk>", "a")]
        for left, right in merges:
            vocab.setdefault(left + right, len(vocab))
        merges = [f"{left} {right}" for left, right in merges]
        model = {"model__vocab": vocab, "model__merges": merges}
        write_json(tmp_path, tiny_settings(**model, model__unk_token=unknown, model__fuse_unk=fuses))
        ours = ByteLevelBPE.from_dir(tmp_path)
        oracle = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        rng = random.Random(1)
        for _ in range(300):
            text = "".join(rng.choices([*"ab?hec", " the", " ", "é", "日", "xyz", "'s", "z" * 70, "<unk>"], k=8))
            assert ours.encode(text) == oracle.encode(text).ids, text

    @pytest.mark.parametrize("sides", [{"lstrip": True, "rstrip": True}, {"lstrip": True}, {"rstrip": True}])
    def test_added_tokens_of_spaces(self, tmp_path, sides):
        n = len(tiny_vocab())
        write_json(tmp_path, tiny_settings(added_tokens=[added("\n", n, **sides), added("a ", n + 1, **sides)]))
        ours = ByteLevelBPE.from_dir(tmp_path)
        oracle = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        for text in ("\n\n", "a \n \n\n a", " a a  \n", "\n\n\nb"):
            assert ours.encode(text, allow_special=True) == oracle.encode(text).ids, text

    def test_many_added_tokens(self, tmp_path):
        n = len(tiny_vocab())
        contents = sorted({f"<{i}>" for i in range(1500)} | {"<1>2", "<1>23", "<1"})
        tokens = [added(content, n + i) for i, content in enumerate(contents)]
        write_json(tmp_path, tiny_settings(added_tokens=tokens))
        ours = ByteLevelBPE.from_dir(tmp_path)
        oracle = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        rng = random.Random(9)
        for _ in range(100):
            text = "".join(rng.choices(["<", "1", ">", "2", "3", "he", " ", "<77>", "<1499>", "<1500>"], k=30))
            assert ours.encode(text, allow_special=True) == oracle.encode(text).ids, text

    @pytest.mark.slow
    def test_a_million_added_tokens(self, tmp_path):
        vocab = {char: i + 10**6 for i, char in enumerate(bytes_alphabet())}
        tokens = [{"content": f"<{i}>", "id": i} for i in range(10**6)]
        write_json(tmp_path, tiny_settings(added_tokens=tokens, model__vocab=vocab, model__merges=[]))
        start = time.process_time()
        assert ByteLevelBPE.from_dir(tmp_path).encode("<7><999999>") == [7, 999999]
        assert time.process_time() - start < 20

    def test_a_pattern_that_takes_for_ever(self, tmp_path, monkeypatch):
        monkeypatch.setattr("nvg.tokenizers.oniguruma._TIMEOUT_S", 0.2)
        write_json(tmp_path, tiny_settings(pre_tokenizer=sequence(split("(a|aa)+c|b"))))
        with pytest.raises(ParameterError, match="pattern takes too long"):
            ByteLevelBPE.from_dir(tmp_path).encode("a" * 60)

    def test_a_normalizer_that_takes_for_ever_or_all_memory(self, tmp_path, monkeypatch):
        monkeypatch.setattr("nvg.tokenizers.oniguruma._TIMEOUT_S", 0.2)
        write_json(tmp_path, tiny_settings(normalizer=replace({"Regex": "(a|aa)+c|b"})))
        with pytest.raises(ParameterError, match="pattern takes too long"):
            ByteLevelBPE.from_dir(tmp_path).encode("a" * 60)
        doubling = {"type": "Sequence", "normalizers": [replace({"String": "a"}, "aa")] * 40}
        write_json(tmp_path, tiny_settings(normalizer=doubling))
        with pytest.raises(ParameterError, match="normalizer makes the text more than 100 times as long"):
            ByteLevelBPE.from_dir(tmp_path).encode("a" * 60)

    def test_sequences_in_sequences(self, tmp_path):
        parts = {
            "normalizer": nested("normalizers", {"type": "Lowercase"}, 5),
            "pre_tokenizer": sequence(nested("pretokenizers", split("h"), 5), use_regex=True),
            "post_processor": nested("processors", {"type": "BertProcessing", "sep": ["a", 1], "cls": ["b", 2]}, 5),
        }
        write_json(tmp_path, tiny_settings(**parts))
        oracle = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        assert encode_whole(ByteLevelBPE.from_dir(tmp_path), "The hehe THE") == oracle.encode("The hehe THE").ids

    def test_added_tokens_keep_their_own_text(self, tmp_path):
        n = len(tiny_vocab())
        write_json(tmp_path, tiny_settings(added_tokens=[added("ein Ende é", n), added("Ġ", tiny_vocab()["Ġ"])]))
        tokenizer = ByteLevelBPE.from_dir(tmp_path)
        assert tokenizer.token_bytes(n) == "ein Ende é".encode()
        assert tokenizer.token_bytes(tiny_vocab()["Ġ"]) == "Ġ".encode()

    def test_an_early_file_names_no_model_type(self, tmp_path):
        settings = tiny_settings()
        del settings["model"]["type"]
        write_json(tmp_path, settings)
        assert ByteLevelBPE.from_dir(tmp_path).encode("he") == [tiny_vocab()["he"]]

    def test_fingerprints_differ_where_behaviour_does(self, tmp_path):
        n = len(tiny_vocab())
        swapped = tiny_vocab()
        swapped["h"], swapped["e"] = swapped["e"], swapped["h"]
        prints = set()
        variants = [
            {},
            {"model__vocab": swapped},
            {"model__merges": [f"{a} {b}" for a, b in reversed(MERGES)]},
            {"model__merges": [f"{a} {b}" for a, b in MERGES[:-1]]},
            {"model__ignore_merges": True},
            {"pre__add_prefix_space": True},
            {"added_tokens": [added("<s>", n)]},
            {"added_tokens": [added("<s>", n, special=False)]},
            {"added_tokens": [added("<t>", n)]},
        ]
        for changes in variants:
            write_json(tmp_path, tiny_settings(**changes))
            prints.add(ByteLevelBPE.from_dir(tmp_path).fingerprint)
        assert len(prints) == len(variants)
        assert all(len(fingerprint) == 64 for fingerprint in prints)


class TestEndOfText:
    @pytest.mark.parametrize(
        ("generation", "config", "expected"),
        [
            (None, None, (264,)),
            ({"eos_token_id": 3}, {"eos_token_id": 4}, (3,)),
            ({"eos_token_id": [5, 3, 5]}, {"eos_token_id": 4}, (5, 3)),
            ({"eos_token_id": None}, {"eos_token_id": 4}, (4,)),
            ({}, {"eos_token_id": [4]}, (4,)),
            ({"eos_token_id": 50256}, {"eos_token_id": 50256}, (264,)),
            ({"eos_token_id": [50256, 7]}, None, (7,)),
            ({"eos_token_id": []}, {"n_embd": 8}, (264,)),
        ],
    )
    def test_where_it_comes_from(self, tmp_path, generation, config, expected):
        vocab = tiny_vocab()
        assert len(vocab) == 263
        write_pair(tmp_path, vocab | {"<x>": 263, END: 264})
        for name, content in (("generation_config.json", generation), ("config.json", config)):
            if content is not None:
                (tmp_path / name).write_text(json.dumps(content))
        tokenizer = ByteLevelBPE.from_dir(tmp_path)
        assert tokenizer.eos_token_ids == expected
        assert tokenizer.special_tokens == {END: 264}

    def test_none_at_all(self, tmp_path):
        write_pair(tmp_path)
        tokenizer = ByteLevelBPE.from_dir(tmp_path)
        assert tokenizer.eos_token_ids == ()
        assert tokenizer.special_tokens == {}

    @pytest.mark.parametrize("value", ["2", True, -1, [1, "2"], 1.0, {"a": 1}])
    def test_not_an_id(self, tmp_path, value):
        write_pair(tmp_path)
        (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": value}))
        with pytest.raises(CheckpointError, match=r"config\.json: eos_token_id is .*must be an integer"):
            ByteLevelBPE.from_dir(tmp_path)


def refused(directory, pattern):
    """Loading fails with one line that names a file in the directory and matches."""
    with pytest.raises(CheckpointError, match=pattern) as caught:
        ByteLevelBPE.from_dir(directory)
    assert str(caught.value).startswith(str(directory))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(directory)) + 400


class TestDamagedFiles:
    def test_nothing_there(self, tmp_path):
        refused(tmp_path, r"no tokenizer here; looked for tokenizer\.json, and for vocab\.json with merges\.txt")
        refused(tmp_path / "missing", "no tokenizer here")
        (tmp_path / "vocab.json").write_text("{}")
        refused(tmp_path, "no tokenizer here")

    @pytest.mark.parametrize(
        ("content", "pattern"),
        [
            (b"", "tokenizer.json: not JSON"),
            (b'{"model": ', "tokenizer.json: not JSON: .*line 1"),
            (b'{"a": "\xff"}', "tokenizer.json: byte 7 is not UTF-8"),
            (b"[]", "tokenizer.json: holds a JSON list"),
            (b"[" * 200_000, "tokenizer.json: not JSON"),
            (b"{}", "tokenizer.json: there is no 'model'"),
            (b'{"model": ' + b"1" * 5000 + b"}", "tokenizer.json: (not JSON|there is no 'model')"),
        ],
        ids=["empty", "cut", "not utf-8", "list", "deep", "no model", "long number"],
    )
    def test_tokenizer_json(self, tmp_path, content, pattern):
        (tmp_path / "tokenizer.json").write_bytes(content)
        refused(tmp_path, pattern)

    def test_a_directory_of_that_name(self, tmp_path):
        (tmp_path / "tokenizer.json").mkdir()
        refused(tmp_path, "tokenizer.json: can.t be read: Is a directory")

    @pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json", "config.json"])
    def test_a_pipe_or_a_link_that_leads_away(self, tmp_path, name):
        directory = tmp_path / "model"
        directory.mkdir()
        write_pair(directory)
        path = directory / name
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        refused(directory, f"{name} is not a regular file")
        path.unlink()
        (tmp_path / "elsewhere").write_text("{}")
        path.symlink_to(tmp_path / "elsewhere")
        refused(directory, f"{name} is a link to .*elsewhere', outside of the model's directory")
        path.unlink()
        path.symlink_to(tmp_path / "nowhere")
        refused(directory, f"{name} is a link to")

    def test_too_long(self, tmp_path, monkeypatch):
        monkeypatch.setattr("nvg.tokenizers.text_files.MAX_FILE_BYTES", 1000)
        write_json(tmp_path, tiny_settings())
        refused(tmp_path, "tokenizer.json: has more than 1000 bytes")

    @pytest.mark.parametrize(
        ("changes", "pattern"),
        [
            ({"a": "0"}, r"token 'a' has id '0'; an id must be an integer"),
            ({"a": -1}, r"token 'a' has id -1"),
            ({"a": True}, r"token 'a' has id True"),
            ({"a": 1}, r"2 tokens have the id 1"),
            ({"zzz": 10**12}, r"no token has the id 263, and one has 1000000000000; 264 tokens must have ids 0 to 263"),
            ({"x y": 263}, r"token 'x y' is not spelled in byte-level characters"),
            ({"▁the": 263}, r"token '▁the' is not spelled"),
            ({"\ud800": 263}, r"token '\\ud800' is not spelled"),
        ],
        ids=repr,
    )
    def test_vocab(self, tmp_path, changes, pattern):
        write_pair(tmp_path, tiny_vocab() | changes)
        refused(tmp_path, "vocab.json: " + pattern)

    def test_an_empty_vocab(self, tmp_path):
        write_pair(tmp_path, {})
        refused(tmp_path, "vocab.json: the vocabulary is not an object")

    @pytest.mark.parametrize(
        ("changes", "pattern"),
        [
            ({"model__unk_token": "<unk>"}, "the vocabulary lacks a byte's '!', and the unk_token for it, '<unk>'"),
            ({"model__unk_token": ["a"]}, r"the vocabulary lacks a byte's '!', and the unk_token for it, \['a'\]"),
            ({"model__byte_fallback": True}, "byte_fallback is not supported where the vocabulary lacks a byte's '!'"),
        ],
    )
    def test_a_vocab_without_some_bytes(self, tmp_path, changes, pattern):
        write_json(tmp_path, tiny_settings(model__vocab={"a": 0, "b": 1}, model__merges=[], **changes))
        refused(tmp_path, "tokenizer.json: " + pattern)

    @pytest.mark.parametrize(
        ("merges", "pattern"),
        [
            ("h e\nhe\n", "merge 2 is 'he'; it must be two tokens"),
            ("#version: 0.2\n\nh e\nh e y\n", "merge 2 is 'h e y'"),
            ("h  e\n", "merge 1 is 'h  e'"),
            ("h e\nh z\n", "merge 2, 'h z', needs the token 'hz', which the vocabulary lacks"),
            ("qq e\n", "merge 1, 'qq e', needs the token 'qq'"),
            (" he\n", "merge 1, ' he', needs the token ''"),
        ],
    )
    def test_merges(self, tmp_path, merges, pattern):
        write_pair(tmp_path, merges=merges)
        refused(tmp_path, "merges.txt: " + pattern)

    def test_merges_not_utf8(self, tmp_path):
        write_pair(tmp_path)
        (tmp_path / "merges.txt").write_bytes(b"h e\n\xc4 t\n")
        refused(tmp_path, "merges.txt: byte 4 is not UTF-8")

    @pytest.mark.parametrize("merges", [None, {}, "h e", [1], ["h e", ["h", "e"]], [["h", 1]]], ids=repr)
    def test_merges_of_tokenizer_json(self, tmp_path, merges):
        write_json(tmp_path, tiny_settings(model__merges=merges))
        refused(tmp_path, "tokenizer.json: 'merges' must be a list")

    def test_more_tokens_than_vocab_json_has(self, tmp_path):
        write_pair(tmp_path)
        (tmp_path / "added_tokens.json").write_text(json.dumps({"he": tiny_vocab()["he"]}))
        ByteLevelBPE.from_dir(tmp_path)
        (tmp_path / "added_tokens.json").write_text(json.dumps({"<pad>": 263}))
        refused(tmp_path, "added_tokens.json: adds '<pad>' to vocab.json")

    @pytest.mark.parametrize(
        ("entries", "pattern"),
        [
            ({}, None),
            ({"a": 1}, "'added_tokens' is not a list"),
            (["<s>"], "added token '<s>'; it must have a content and an id"),
            ([{"content": "<s>"}], "it must have a content"),
            ([added("", 263)], "it must have a content"),
            ([added("<s>", -1)], "it must have a content"),
            ([added("<s>", 300)], "no token has the id 263"),
            ([added("<s>", 5)], "2 tokens have the id 5"),
            ([added("he", 263)], "added token 'he' has id 263, but 256 in the vocabulary"),
            ([added("\ud800", 263)], r"added token '\\ud800' is not Unicode"),
        ],
    )
    def test_added_tokens(self, tmp_path, entries, pattern):
        write_json(tmp_path, tiny_settings(added_tokens=entries))
        if pattern is None:
            ByteLevelBPE.from_dir(tmp_path)
        else:
            refused(tmp_path, "tokenizer.json: .*" + pattern)

    @pytest.mark.parametrize(
        "changes",
        [
            {"normalizer": {"type": "x" * 9999}},
            {"normalizer": replace({"Regex": "(" * 9999})},
            {"normalizer": replace({"Regex": "x" * 99999})},
            {"pre_tokenizer": {"type": ["x"] * 9999}},
            {"pre_tokenizer": sequence(split(r"\h" + "x" * 5000))},
            {"pre_tokenizer": sequence(split("a", "x" * 9999))},
            {"post_processor": {"type": "x" * 9999}},
            {"decoder": {"type": "x" * 9999}},
            {"model__type": "x" * 9999},
            {"model__end_of_word_suffix": "x" * 9999},
            {"model__merges": ["x" * 9999]},
            {"model__merges": ["x" * 9999 + " " + "y" * 9999]},
            {"model__vocab": {"x" * 9999: "y" * 9999}},
            {"model__vocab": tiny_vocab() | {"→" * 9999: 263}},
            {"added_tokens": [["x" * 9999]]},
            {"added_tokens": [added("\ud800" * 9999, 263)]},
        ],
        ids=lambda changes: repr(changes)[:50],
    )
    def test_long_values_are_not_quoted_whole(self, tmp_path, changes):
        write_json(tmp_path, tiny_settings(**changes))
        refused(tmp_path, "tokenizer.json: ")

    @pytest.mark.parametrize(
        ("changes", "feature"),
        [
            ({"normalizer": {"type": "Precompiled"}}, "normalizer 'Precompiled'"),
            ({"normalizer": replace({"Regex": r"\h"})}, r"'\\\\h' in the pattern '\\\\h'"),
            ({"normalizer": replace({"Regex": "(a"})}, r"the pattern '\(a' \(missing \)"),
            ({"normalizer": replace({"Regex": 1})}, "the pattern {'Regex': 1}"),
            ({"normalizer": ["NFC"]}, r"normalizer \['NFC'\]"),
            ({"normalizer": replace({"String": "a"}, "x" * 201)}, "the content 'xxx.* of a normalizer"),
            ({"normalizer": replace({"String": "a"}, 5)}, "the content 5 of a normalizer"),
            ({"normalizer": replace({"String": "a"}, "b\udc00")}, r"the content 'b\\udc00' of a normalizer"),
            ({"normalizer": {"type": "Prepend", "prepend": "\ud800"}}, r"the prepend '\\ud800' of a normalizer"),
            ({"normalizer": nested("normalizers", {"type": "NFC"}, 101)}, "a normalizer of more than 100 parts"),
            ({"pre_tokenizer": nested("pretokenizers", split("a"), 101)}, "a pre_tokenizer of more than 100 parts"),
            ({"post_processor": nested("processors", None, 101)}, "a post_processor of more than 100 parts"),
            ({"pre_tokenizer": None}, "pre_tokenizer None"),
            ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": []}}, "a pre_tokenizer that ends with None"),
            ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": ["ByteLevel"]}}, "pre_tokenizer 'ByteLevel'"),
            ({"pre_tokenizer": sequence({"type": "Metaspace"})}, "pre_tokenizer 'Metaspace'"),
            ({"pre_tokenizer": sequence(split("a", "Sideways"))}, "pre_tokenizer Split with behavior 'Sideways'"),
            ({"decoder": {"type": "Metaspace"}}, "decoder 'Metaspace'"),
            ({"model__type": "WordPiece"}, "model 'WordPiece'"),
            ({"model__dropout": 0.1}, "dropout 0.1"),
            ({"model__continuing_subword_prefix": "##"}, "continuing_subword_prefix '##'"),
            ({"model__end_of_word_suffix": "</w>"}, "end_of_word_suffix '</w>'"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_what_is_not_supported(self, tmp_path, changes, feature):
        write_json(tmp_path, tiny_settings(**changes))
        refused(tmp_path, f"tokenizer.json: {feature}.* is not supported; nvg reads byte-level BPE")
