"""The conformance kit for tokenizers: what is right passes, and each way of being wrong is caught."""

import itertools

import pytest

from nvg.plugins import Registry
from nvg.testing import ConformanceError, TokenizerConformance, check_tokenizer
from nvg.testing.rows import WideTokenizer
from nvg.testing.tokenizers import TOKENIZER_CHECKS
from nvg.tokenizers.bytes import BytesTokenizer


@pytest.mark.parametrize("name", Registry("").tokenizers.names())
def test_every_built_in_passes(name):
    assert {result.status for result in check_tokenizer(name)} == {"passed"}


def test_an_object_and_a_class_and_the_kit_s_own():
    assert check_tokenizer(BytesTokenizer())[0].detail == "257 ids, 1 special, 1 of end-of-text"
    check_tokenizer(WideTokenizer)


class TestBytes(TokenizerConformance):
    tokenizer = BytesTokenizer


def test_the_class_has_a_test_for_each_check():
    assert len([name for name in vars(TokenizerConformance) if name.startswith("test_")]) == len(TOKENIZER_CHECKS)


class NoSize(BytesTokenizer):
    vocab_size = 0


class NoDecode(BytesTokenizer):
    decode = None


class StrayEnd(BytesTokenizer):
    eos_token_ids = (257,)


class Forgetful(BytesTokenizer):
    numbers = itertools.count()

    def __init__(self):
        self.fingerprint = f"tokenizer {next(self.numbers)}"


class Lower(BytesTokenizer):
    def encode(self, text, *, allow_special=False):
        return super().encode(text.lower(), allow_special=allow_special)


class Tuples(BytesTokenizer):
    def encode(self, text, *, allow_special=False):
        return tuple(super().encode(text, allow_special=allow_special))


class Spaced(BytesTokenizer):
    def decode_bytes(self, token_ids):
        return b" ".join(map(self.token_bytes, token_ids))


class Strict(BytesTokenizer):
    def decode(self, token_ids):
        return self.decode_bytes(token_ids).decode("utf-8", "ignore")


class Wrapping(BytesTokenizer):
    def token_bytes(self, token_id):
        return super().token_bytes(token_id % self.vocab_size)


class KeyErrors(BytesTokenizer):
    def token_bytes(self, token_id):
        return {i: BytesTokenizer.token_bytes(self, i) for i in range(257)}[token_id]


class OtherBatch(BytesTokenizer):
    def encode_batch(self, texts, *, allow_special=False):
        return [self.encode(text.strip()) for text in texts]


class Obedient(BytesTokenizer):
    def encode(self, text, *, allow_special=False):
        return super().encode(text, allow_special=True)


class Deaf(BytesTokenizer):
    def encode(self, text, *, allow_special=False):
        return super().encode(text)


class Replacing(BytesTokenizer):
    def encode(self, text, *, allow_special=False):
        return super().encode(text.encode("utf-8", "replace").decode(), allow_special=allow_special)


WRONG = [
    (NoSize, "members", "vocab_size is 0; it must be an int of at least 1"),
    (NoDecode, "members", "there is no method decode"),
    (StrayEnd, "members", "eos_token_ids has 257; ids are ints from 0 to 256"),
    (Forgetful, "fingerprint", "different fingerprints"),
    (Lower, "round trip", "check it with lossless=False"),
    (Tuples, "round trip", "it must be a list of ints"),
    (Spaced, "bytes", "text is streamed token by token, so they must be equal"),
    (Strict, "bytes", "is not decode_bytes as UTF-8 with errors='replace'"),
    (Wrapping, "every id", "token id -1 is taken; raise a ValueError"),
    (KeyErrors, "every id", "token id -1 raises KeyError; raise a ValueError"),
    (OtherBatch, "batch", "encode_batch gives other ids"),
    (Obedient, "special tokens", "without allow_special it is plain text"),
    (Deaf, "special tokens", "allow_special=True) has no token 256"),
    (Replacing, "surrogates", "the lone surrogate in"),
]


@pytest.mark.parametrize(("wrong", "check", "message"), WRONG, ids=[case[0].__name__ for case in WRONG])
def test_each_way_of_being_wrong_is_caught(wrong, check, message):
    with pytest.raises(ConformanceError) as caught:
        check_tokenizer(wrong)
    about = [line for line in str(caught.value).splitlines() if f": {check}: " in line]
    assert about, str(caught.value)
    assert message in about[0]


def test_a_lossy_one_may_be():
    results = check_tokenizer(Lower, lossless=False)
    assert next(result.detail for result in results if result.check == "round trip") == (
        "9 texts, 3 of them come back changed"
    )
