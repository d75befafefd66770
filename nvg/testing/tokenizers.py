"""The checks of a tokenizer, in the order in which they run."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from nvg import hub
from nvg.params import EngineConfig
from nvg.plugins import registry
from nvg.testing.results import Check, Result, ViolationError, run_checks
from nvg.tokenizers.contract import Tokenizer
from nvg.tokenizers.stream import TextStream

TEXTS = (
    "",
    "Once upon a time",
    " The king's daughters said: 'We shan't!'  And they didn't.",
    "one\ttwo\r\n\n  three   ",
    "1234567890 3.14159 x=f(a[0])*2**8;",
    "Füße, naïve, Ελλάδα, Привет, مرحبا, 你好世界, こんにちは",
    "e\u0301 \N{FAMILY} \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea",
    "\x00\x01\x7f\ufffd\ufeff",
    "a" * 300,
)
_NUM_SAMPLED_IDS = 3000


@dataclass(frozen=True)
class TokenizerSubject:
    """The tokenizer that is checked, and how."""

    target: Any
    """A tokenizer, or a class or a registered name with `from_dir`."""
    directory: str | os.PathLike[str] | None = None
    lossless: bool = True

    @property
    def title(self) -> str:
        names = registry().tokenizers
        if isinstance(self.target, str):
            return names[self.target].title
        kind = self.target if isinstance(self.target, type) else type(self.target)
        entry = names.entry_of(kind)
        return entry.title if entry else f"tokenizer {kind.__name__!r} of {kind.__module__}"

    def make(self) -> Tokenizer:
        """The tokenizer; another one each time if it is made from a directory."""
        target = registry().tokenizers.load(self.target) if isinstance(self.target, str) else self.target
        if isinstance(target, type):
            from_dir: Callable[[Any], Tokenizer] = getattr(target, "from_dir")  # noqa: B009 (mypy knows no such type)
            return from_dir(self.directory or hub.resolve_model(EngineConfig.model))
        return target  # type: ignore[no-any-return]


def tokenizer_results(
    tokenizer: Any, directory: str | os.PathLike[str] | None = None, *, lossless: bool = True
) -> list[Result]:
    """Run all checks. See `nvg.testing.check_tokenizer` for the arguments."""
    return list(run_checks(TOKENIZER_CHECKS, TokenizerSubject(tokenizer, directory, lossless)))


def _members(subject: TokenizerSubject) -> str:
    tokenizer = subject.make()
    for name in ("encode", "encode_batch", "decode", "decode_bytes", "token_bytes"):
        if not callable(getattr(tokenizer, name, None)):
            raise ViolationError(f"there is no method {name}; see nvg.tokenizers.contract.Tokenizer")
    for name in ("vocab_size", "eos_token_ids", "special_tokens", "fingerprint"):
        if not hasattr(tokenizer, name):
            raise ViolationError(f"there is no attribute {name}; see nvg.tokenizers.contract.Tokenizer")
    size = tokenizer.vocab_size
    if not isinstance(size, int) or size < 1:
        raise ViolationError(f"vocab_size is {size!r}; it must be an int of at least 1: ids are 0 to vocab_size - 1")
    for what, ids in (
        ("eos_token_ids", tokenizer.eos_token_ids),
        ("special_tokens", tokenizer.special_tokens.values()),
    ):
        for token_id in ids:
            if not isinstance(token_id, int) or not 0 <= token_id < size:
                raise ViolationError(f"{what} has {token_id!r}; ids are ints from 0 to {size - 1}")
    return f"{size} ids, {len(tokenizer.special_tokens)} special, {len(tokenizer.eos_token_ids)} of end-of-text"


def _fingerprint(subject: TokenizerSubject) -> str:
    first, again = subject.make().fingerprint, subject.make().fingerprint
    if not isinstance(first, str) or not first:
        raise ViolationError(
            f"fingerprint is {first!r}; it must be a text that says all which decides encode and decode"
        )
    if first != again:
        raise ViolationError("two tokenizers of one directory have different fingerprints; hash what decides ids, only")
    return first if len(first) <= 20 else f"{first[:16]}..."


def _round_trip(subject: TokenizerSubject) -> str:
    tokenizer, changed = subject.make(), 0
    for text in TEXTS:
        ids = tokenizer.encode(text)
        if not isinstance(ids, list) or not all(isinstance(i, int) and 0 <= i < tokenizer.vocab_size for i in ids):
            raise ViolationError(f"encode({text!r:.60}) gives {ids!r:.80}; it must be a list of ints below vocab_size")
        back = tokenizer.decode(ids)
        if back != text:
            if subject.lossless:
                raise ViolationError(
                    f"decode(encode({text!r:.60})) is {back!r:.60}; if the tokenizer changes text on purpose, check it "
                    "with lossless=False"
                )
            changed += 1
    return f"{len(TEXTS)} texts" + (f", {changed} of them come back changed" if changed else "")


def _bytes(subject: TokenizerSubject) -> str:
    tokenizer = subject.make()
    generator = np.random.Generator(np.random.PCG64(0))
    streams = [tokenizer.encode(text) for text in TEXTS]
    streams += [generator.integers(0, tokenizer.vocab_size, 20).tolist() for _ in range(20)]
    for ids in streams:
        data = tokenizer.decode_bytes(ids)
        joined = b"".join(tokenizer.token_bytes(token_id) for token_id in ids)
        if data != joined:
            raise ViolationError(
                f"decode_bytes({ids!r:.60}) is {data!r:.60}, and token_bytes of each joined {joined!r:.60}; text is "
                "streamed token by token, so they must be equal"
            )
        if tokenizer.decode(ids) != data.decode("utf-8", "replace"):
            raise ViolationError(f"decode({ids!r:.60}) is not decode_bytes as UTF-8 with errors='replace'")
        stream = TextStream(tokenizer)
        shown = "".join([*(stream.push(token_id) for token_id in ids), stream.finish()])
        if shown != tokenizer.decode(ids):
            raise ViolationError(
                f"streaming {ids!r:.60} shows {shown!r:.60}, decode gives {tokenizer.decode(ids)!r:.60}"
            )
    return f"{len(streams)} sequences, each the same by decode, decode_bytes, token_bytes and streamed"


def _every_id(subject: TokenizerSubject) -> str:
    tokenizer = subject.make()
    size = tokenizer.vocab_size
    sampled = range(size) if size <= _NUM_SAMPLED_IDS else np.linspace(0, size - 1, _NUM_SAMPLED_IDS).astype(int)
    for token_id in map(int, sampled):
        data = tokenizer.token_bytes(token_id)
        if not isinstance(data, bytes):
            raise ViolationError(f"token_bytes({token_id}) is {type(data).__name__}; it must be bytes")
    for token_id in (-1, size, size + 1000):
        _must_refuse(partial(tokenizer.token_bytes, token_id), f"token id {token_id}")
        _must_refuse(partial(tokenizer.decode, [token_id]), f"token id {token_id}")
        _must_refuse(partial(tokenizer.decode_bytes, [token_id]), f"token id {token_id}")
    return f"{len(sampled)} ids have bytes, others are refused"


def _batch(subject: TokenizerSubject) -> str:
    tokenizer = subject.make()
    alone = [tokenizer.encode(text) for text in TEXTS]
    if list(tokenizer.encode_batch(list(TEXTS))) != alone:
        raise ViolationError("encode_batch gives other ids than encode for each text")
    with ThreadPoolExecutor(4) as pool:
        for ids in pool.map(lambda _: [tokenizer.encode(text) for text in TEXTS], range(16)):
            if ids != alone:
                raise ViolationError(
                    "encode gives other ids from several threads at once; share no state between calls"
                )
    return f"{len(TEXTS)} texts at once, and from 4 threads"


def _special(subject: TokenizerSubject) -> str:
    tokenizer = subject.make()
    for text, token_id in tokenizer.special_tokens.items():
        unknown = token_id in tokenizer.encode(f"a{text[:1]} {text[1:]}b")  # the token of what has no other
        if token_id in tokenizer.encode(f"a{text}b") and not unknown:
            raise ViolationError(
                f"encode('a{text}b') has special token {token_id}; without allow_special it is plain text, or a user's "
                "text could command the model"
            )
        if token_id not in tokenizer.encode(f"a{text}b", allow_special=True):
            raise ViolationError(f"encode('a{text}b', allow_special=True) has no token {token_id}, whose text that is")
        if tokenizer.token_bytes(token_id) != text.encode():
            raise ViolationError(
                f"token_bytes({token_id}) is {tokenizer.token_bytes(token_id)!r}; its text is {text!r}"
            )
    return f"{len(tokenizer.special_tokens)} are plain text unless allowed"


def _surrogates(subject: TokenizerSubject) -> str:
    tokenizer = subject.make()
    for text in ("a\ud800", "\udc00b"):
        _must_refuse(partial(tokenizer.encode, text), f"the lone surrogate in {text!r}")
    if tokenizer.encode("\ud83d\ude00") != tokenizer.encode("\U0001f600"):
        raise ViolationError("a surrogate pair does not give the ids of its character; see nvg.tokenizers.checks")
    return "lone ones are refused, pairs are joined"


def _must_refuse(call: Callable[[], Any], what: str) -> None:
    try:
        call()
    except ValueError:
        return
    except Exception as error:
        raise ViolationError(
            f"{what} raises {type(error).__name__}; raise a ValueError that names it (nvg.tokenizers.checks has both)"
        ) from None
    raise ViolationError(f"{what} is taken; raise a ValueError that names it (nvg.tokenizers.checks has both)")


TOKENIZER_CHECKS: Mapping[str, Check[TokenizerSubject]] = {
    "members": _members,
    "fingerprint": _fingerprint,
    "round trip": _round_trip,
    "bytes": _bytes,
    "every id": _every_id,
    "batch": _batch,
    "special tokens": _special,
    "surrogates": _surrogates,
}
