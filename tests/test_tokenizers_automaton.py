"""Patterns as tables, against the library whose patterns they are; and the compiled code that runs them."""

import random
import time

import numpy as np
import pytest
import regex
import tokenizers

from nvg.errors import ParameterError
from nvg.tokenizers import bpe
from nvg.tokenizers.automaton import split_tables
from nvg.tokenizers.bpe import ByteLevelBPE
from nvg.tokenizers.components import UnsupportedError
from nvg.tokenizers.oniguruma import PATTERN_FLAGS, read_pattern
from nvg.tokenizers.splitting import GPT2_PATTERN, Split, read_pre_tokenizer
from nvg.tokenizers.splitting_compiled import next_match, splits_of

CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"""
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
REGULAR = [
    GPT2_PATTERN,
    CL100K,
    CL100K.replace(r"]?\p{L}+", r"]?+\p{L}++"),
    CL100K.replace(r"\p{N}{1,3}", r"\p{N}"),
    O200K,
    DEEPSEEK,
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    r"\p{N}",
    r"\w+|\W|[^\w]",
    r"[一-龥\u3040-ゟ゠-ヿ]+",
    r"(a|ab)(c|bcd)",
    r"a|ab|abc",
    r"abc|ab|a",
    r"a+?b|a+?",
    r"a{2,3}?b|b{2}|c{,2}d|s{2,}",
    r"(?:a|b)*c",
    r"(?:ab?){2,3}c",
    r"x?+x|a*+b|'++s",
    r"a(?=b)|b(?!\s)|1(?=[\s1])",
    r"a$|b",
    r"\. |\x41|\u0061|\t|\'",
    r"(?i)KS|a\d",
    r"(?i:k)s",
    r"[^]a]+|[\]b]",
    r".+",
]
OTHERS = [
    r"a|",
    r"a*",
    r"(?:a?)*b",
    r"(?:$|a)+",
    r"(?<=a)b",
    r"(?>a+)b",
    r"(a)\1",
    r"(?:ab)++c",
    r"a(?=bc)",
    r"^a",
    r"(?:a{100}){30}",
    r"(?:a|ab){200}{200}",
    "(" * 400 + "a" + ")" * 400,
    "[" + "ab" * 9 + "]{1000}{3}x",
]
ALPHABET = [*"abkscdABxySK1'\n\r\t !./", "\u212a", "ſ", "é", "e\u0301", "漢", "ひ", "ǅ", "Σ", "٣", "½"]
ALPHABET += ["\x85", "\u3000", "😀"]


def cut(tables, text):
    """The pieces of a step, one match after the other."""
    data, splits = np.frombuffer(text.encode(), np.uint8), splits_of(tables)
    pieces, at = [], 0
    while at < len(data):
        start, stop, seen = next_match.py_func(data, at, len(data), splits, 0, 10**9)
        assert seen > 0
        pieces += [data[at:start], data[start:stop]]
        at = stop
    return [piece.tobytes().decode() for piece in pieces if piece.size]


@pytest.mark.parametrize("pattern", REGULAR, ids=lambda pattern: pattern[:40])
def test_pieces_of_regex(pattern):
    step = Split(pattern)
    tables = split_tables([step])
    rng = random.Random(pattern)
    most = 0
    for _ in range(80):
        text = "".join(rng.choices(ALPHABET[: rng.choice([4, 12, len(ALPHABET)])], k=rng.randrange(25)))
        pieces = list(step.cut(text))
        assert cut(tables, text) == pieces, text
        most = max(most, len(pieces))
    assert most > 1


@pytest.mark.parametrize("pattern", [GPT2_PATTERN, O200K, DEEPSEEK], ids=["gpt2", "o200k", "deepseek"])
def test_all_of_unicode_is_in_its_class(pattern):
    """A match of each character alone, and of it behind a letter, are those of the library."""
    tables = split_tables([Split(pattern)])
    compiled = regex.compile(pattern, PATTERN_FLAGS)
    end, row = int(tables.classes.max()) + 1, int(tables.starts[0])
    for kind in range(end):
        members = np.flatnonzero(tables.classes == kind)
        for code in (members[0], members[len(members) // 2], members[-1]):
            if not 0xD800 <= code < 0xE000:
                after = tables.entries[row + kind] >> 1
                is_whole = bool(after) and bool(tables.entries[after + end] & 1)
                assert is_whole == (compiled.fullmatch(chr(code)) is not None)


@pytest.mark.parametrize("pattern", OTHERS, ids=lambda pattern: pattern[:40])
def test_what_tables_can_not_say(pattern):
    assert split_tables([Split(pattern)]) is None


def test_what_becomes_of_matches_decides_too():
    for behavior in ("Isolated", "Removed"):
        assert split_tables([Split("a", behavior)]) is not None
    for behavior in ("MergedWithPrevious", "MergedWithNext", "Contiguous"):
        assert split_tables([Split("a", behavior)]) is None


@pytest.fixture
def hostile(monkeypatch, tmp_path):
    """Where every text goes to compiled code: a function that makes a tokenizer with a pattern."""
    from test_tokenizers_bpe import sequence, split, tiny_settings, write_json

    for name in ("_COMPILED_FROM_CHARS", "_LOADED_FROM_CHARS", "_PREPARED_FROM_CHARS"):
        monkeypatch.setattr(bpe, name, 0)

    def make(pattern):
        write_json(tmp_path, tiny_settings(pre_tokenizer=sequence(split(pattern))))
        return ByteLevelBPE.from_dir(tmp_path)

    return make


@pytest.mark.parametrize("pattern", ["a+b|a", "a+b"])
def test_a_pattern_that_looks_far_ahead_in_vain(hostile, pattern):
    tokenizer = hostile(pattern)
    start = time.process_time()
    with pytest.raises(ParameterError, match="the tokenizer's pattern takes too long"):
        tokenizer.encode("a" * 300_000)
    assert time.process_time() - start < 10
    assert len(tokenizer.encode("a" * 3000)) == 3000


@pytest.mark.parametrize("char", [" ", "A", "^", "\n", "😀", " \n"])
def test_families_are_linear_on_a_megabyte_of_one_thing(hostile, char):
    for pattern in (CL100K, O200K, DEEPSEEK):
        text = char * (10**6 // len(char))
        tokenizer = hostile(pattern)
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer._compiled is not None


def test_repeats_that_take_for_ever_to_compile():
    for pattern in ("(a|b){5000}", "((a?){99}){99}", "(){9999}a", "a{4000000000}", "a{00000000001001}"):
        with pytest.raises(UnsupportedError, match="a pattern that repeats so much"):
            read_pattern({"Regex": pattern})
    assert read_pattern({"Regex": r"\p{N}{1,3}a{10}b{0}"})


@pytest.mark.parametrize(
    "pattern",
    [
        *(r"\w+", r"\W", r"[\w']+", r"[^\w\s]+", r"\\w|\[\w\]", r"\d+\w", r"(?i:k)\w"),
        r" ?[^(\s|[.,!?…。，、।۔،])]+",  # BLOOM's
        *("[a[bc]]+", "[^a[b[c1]]]+", r"[[\w]'\]]", "[[a-c][x-z]]", "[]a]", r"[a\[]"),
    ],
)
def test_pieces_of_oniguruma(pattern):
    chars = [
        *ALPHABET,
        "²",
        "³",
        "¹",
        "¼",
        "½",
        "¾",
        "ª",
        "\u200c",
        "\u200d",
        "_",
        "‿",
        "\u0301",
        "①",
        "Ⅷ",
        "\\w",
        "[a]",
    ]
    theirs = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    ours = Split(read_pattern({"Regex": pattern}))
    rng = random.Random(1)
    for _ in range(200):
        text = "".join(rng.choices(chars, k=rng.randrange(1, 12)))
        assert list(ours.cut(text)) == [piece for piece, _ in theirs.pre_tokenize_str(text)], text


@pytest.mark.parametrize(
    "pattern",
    ["[[:punct:]]", "[a-[b]]", "[[ab]-z]", "[a[-z]]", "[a[b-]c]", "[a[^b]]", r"[\W]", "[[]a]", "a{2}+", "(?i:st)"],
)
def test_patterns_that_would_be_others(pattern):
    with pytest.raises(UnsupportedError, match="in the pattern"):
        read_pattern({"Regex": pattern})


@pytest.mark.parametrize(
    "part",
    [
        {"type": "Punctuation", "behavior": "Isolated"},
        {"type": "Punctuation", "behavior": "MergedWithPrevious"},
        {"type": "Digits", "individual_digits": False},
        {"type": "Digits", "individual_digits": True},
        {"type": "Whitespace"},
        {"type": "WhitespaceSplit"},
        {"type": "BertPreTokenizer"},
        {"type": "CharDelimiterSplit", "delimiter": "/"},
    ],
    ids=str,
)
def test_pieces_of_the_kinds_of_pre_tokenizers(part):
    last = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    ours = read_pre_tokenizer({"type": "Sequence", "pretokenizers": [part, last]})
    options = {name: value for name, value in part.items() if name not in ("type", "behavior")}
    if "behavior" in part:
        options["behavior"] = {"Isolated": "isolated", "MergedWithPrevious": "merged_with_previous"}[part["behavior"]]
    theirs = getattr(tokenizers.pre_tokenizers, part["type"])(**options)
    chars = [
        *ALPHABET,
        "\u166d",
        "$",
        "^",
        "`",
        "…",
        "、",
        "²",
        "①",
        "Ⅷ",
        "\u200d",
        "_",
        "‿",
        "\u0301",
        "\u2028",
        "\x1c",
    ]
    rng = random.Random(2)
    for _ in range(200):
        text = "".join(rng.choices(chars, k=rng.randrange(1, 12)))
        assert list(ours.pieces(text)) == [piece for piece, _ in theirs.pre_tokenize_str(text)], text
