"""Bytes as tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvg.errors import ParameterError
from nvg.tokenizers.bytes import BytesTokenizer

END = "<|endoftext|>"


@pytest.fixture(scope="module")
def tokenizer():
    return BytesTokenizer.from_dir("no/such/directory")


@given(text=st.text())
def test_ids_are_bytes(text):
    tokenizer = BytesTokenizer()
    ids = tokenizer.encode(text)
    assert bytes(ids) == text.encode()
    assert tokenizer.decode(ids) == text


@given(ids=st.lists(st.integers(0, 256)))
def test_decoding_anything(ids):
    tokenizer = BytesTokenizer()
    expected = b"".join(END.encode() if i == 256 else bytes([i]) for i in ids)
    assert tokenizer.decode_bytes(ids) == expected
    assert tokenizer.decode(ids) == expected.decode("utf-8", "replace")
    assert b"".join(map(tokenizer.token_bytes, ids)) == expected


def test_end_of_text(tokenizer):
    assert tokenizer.vocab_size == 257
    assert tokenizer.eos_token_ids == (256,)
    assert tokenizer.special_tokens == {END: 256}
    text = f"{END}a{END}{END}é"
    assert tokenizer.encode(text, allow_special=True) == [256, 97, 256, 256, 0xC3, 0xA9]
    assert bytes(tokenizer.encode(text)) == text.encode()
    assert tokenizer.encode_batch(["a", END], allow_special=True) == [[97], [256]]
    assert tokenizer.encode_batch(["a", END])[1] == list(END.encode())


@pytest.mark.parametrize("token_id", [-1, 257])
def test_unknown_id(tokenizer, token_id):
    for call in (tokenizer.token_bytes, lambda i: tokenizer.decode([i]), lambda i: tokenizer.decode_bytes([0, i])):
        with pytest.raises(ParameterError, match=f"token id {token_id} is not in the vocabulary; ids go from 0 to 256"):
            call(token_id)


def test_surrogates(tokenizer):
    assert bytes(tokenizer.encode("\ud83d\ude00")) == "😀".encode()
    with pytest.raises(ParameterError, match=r"lone surrogate, U\+D83D, at index 1"):
        tokenizer.encode("a\ud83d")


def test_fingerprint_is_constant(tokenizer):
    assert tokenizer.fingerprint == BytesTokenizer().fingerprint
