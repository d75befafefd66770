"""Streaming against decoding the whole and looking for the stop strings in it."""

import time
from itertools import product

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nvg.errors import ParameterError
from nvg.tokenizers.bytes import BytesTokenizer
from nvg.tokenizers.stream import TextStream


class Chunks:
    """A tokenizer whose token i is the i-th chunk of bytes."""

    def __init__(self, chunks):
        self.chunks = chunks

    def token_bytes(self, token_id):
        return self.chunks[token_id]


def streamed(chunks, stop=()):
    """What a stream gives for the chunks, as a list, and the stream."""
    stream = TextStream(Chunks(chunks), stop)
    pieces = [stream.push(i) for i in range(len(chunks))]
    return [*pieces, stream.finish()], stream


def cut(text, stop):
    starts = [text.find(string) for string in stop if string in text]
    return text[: min(starts)] if starts else text


NASTY_BYTES = [
    b"a",
    b"\x80",
    b"\xbf",
    b"\xc1",
    b"\xc3",
    b"\xe0",
    b"\xed",
    b"\xa0",
    b"\xef",
    b"\xbb",
    b"\xf0",
    b"\x90",
    b"\xf4",
    b"\xff",
]
CHUNKS = st.lists(
    st.one_of(st.sampled_from(NASTY_BYTES), st.binary(max_size=4), st.text(max_size=3).map(str.encode)), max_size=30
)
SMALL = st.text("ab", min_size=1, max_size=5)


@settings(max_examples=150)
@given(chunks=CHUNKS)
def test_pieces_join_to_the_whole(chunks):
    pieces, stream = streamed(chunks)
    whole = b"".join(chunks).decode("utf-8", "replace")
    assert "".join(pieces) == stream.text == whole
    assert not stream.stopped


def test_every_short_mixture_of_bytes():
    for length in (1, 2, 3, 4):
        for chunks in product(NASTY_BYTES[:12], repeat=length):
            assert "".join(streamed(chunks)[0]) == b"".join(chunks).decode("utf-8", "replace")


@settings(max_examples=300)
@given(chunks=st.lists(st.text("ab", max_size=4).map(str.encode), max_size=25), stop=st.lists(SMALL, max_size=4))
@example(chunks=[b"ab", b"b", b"a"], stop=["abbb", "bb"])
@example(chunks=[b"abb"], stop=["abbb", "bb"])
def test_cut_at_the_earliest_stop(chunks, stop):
    pieces, stream = streamed(chunks, stop)
    whole = b"".join(chunks).decode()
    assert "".join(pieces) == stream.text == cut(whole, stop)
    assert stream.stopped == any(string in whole for string in stop)


@settings(max_examples=150)
@given(chunks=CHUNKS, data=st.data())
def test_stops_taken_from_the_text(chunks, data):
    whole = b"".join(chunks).decode("utf-8", "replace")
    stop = ["\ufffd\ufffd\ufffd"]
    if whole:
        start = data.draw(st.integers(0, len(whole) - 1))
        stop.append(whole[start : start + data.draw(st.integers(1, 6))])
    pieces, stream = streamed(chunks, stop)
    assert "".join(pieces) == stream.text == cut(whole, stop)
    assert stream.stopped == (stream.text != whole)


@settings(max_examples=300)
@given(chunks=st.lists(st.text("ab", max_size=3), max_size=25), stop=st.lists(SMALL, min_size=1, max_size=4))
def test_holds_back_what_it_must_and_no_more(chunks, stop):
    stream = TextStream(Chunks([chunk.encode() for chunk in chunks]), stop)
    beginnings = {string[:length] for string in stop for length in range(len(string))}
    text = ""
    for i, chunk in enumerate(chunks):
        stream.push(i)
        if stream.stopped:
            break
        text += chunk
        held = max(length for length in range(len(text) + 1) if text[len(text) - length :] in beginnings)
        assert stream.text == text[: len(text) - held]


def test_a_character_is_shown_when_it_is_whole():
    stream = TextStream(BytesTokenizer())
    assert [stream.push(byte) for byte in "é😀".encode()] == ["", "é", "", "", "", "😀"]
    assert stream.push(0xF0) == ""
    assert stream.push(0x9F) == ""
    assert stream.finish() == "\ufffd"
    assert stream.finish() == ""
    assert stream.text == "é😀\ufffd"


def test_a_stop_string_across_tokens():
    stream = TextStream(Chunks([b"One\nUs", b"er", b": no", b"more"]), ["User:"])
    assert [stream.push(0), stream.push(1)] == ["One\n", ""]
    assert not stream.stopped
    assert stream.push(2) == ""
    assert stream.stopped
    assert stream.push(3) == ""
    assert stream.finish() == ""
    assert stream.text == "One\n"


def test_a_false_start_is_shown():
    stream = TextStream(Chunks([b"Us", b"Us", b"e the"]), ["User:"])
    assert [stream.push(i) for i in range(3)] == ["", "Us", "Use the"]


def test_a_stop_inside_the_beginning_of_a_longer_one():
    stop = ["abcd", "bc"]
    assert streamed([b"xabc", b"d"], stop)[1].text == "x"
    assert streamed([b"xabc", b"e"], stop)[1].text == "xa"
    pieces, stream = streamed([b"xabc"], stop)
    assert pieces == ["x", "a"]
    assert stream.stopped


def test_surrogates_in_a_stop_string():
    assert streamed(["a😀b".encode()], ["\ud83d\ude00"])[1].text == "a"
    with pytest.raises(ParameterError, match="lone surrogate"):
        TextStream(BytesTokenizer(), ["\ud83d"])


def test_unknown_id():
    with pytest.raises(ParameterError, match="token id 257"):
        TextStream(BytesTokenizer()).push(257)


def test_long_stop_strings_take_linear_time():
    size = 200_000
    start = time.process_time()
    stream = TextStream(BytesTokenizer(), ["a" * size + "b"])
    for _ in range(size + 1000):
        stream.push(ord("a"))
    assert stream.text == "a" * 1000
    stream.push(ord("b"))
    assert stream.stopped
    assert stream.text == "a" * 1000
    assert time.process_time() - start < 8
