"""Byte-pair encoding by tiktoken: the tokenizer `tiktoken` of nvg."""

import hashlib
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import tiktoken
from tiktoken.load import load_tiktoken_bpe

from nvg.errors import CheckpointError
from nvg.tokenizers.checks import joined_surrogates, unknown_token_id
from nvg.tokenizers.components import UnsupportedError
from nvg.tokenizers.post_processing import read_post_processor
from nvg.tokenizers.text_files import read_object, read_text

END_OF_TEXT = "<|endoftext|>"
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
SETTINGS = "tiktoken.json"
"""Beside a *.tiktoken file: {"pat_str": ..., "special_tokens": {text: id}}, as tiktoken.Encoding has them."""

# GPT-2's alphabet of bytes in vocab.json: those that print stand for themselves, the others follow from U+0100 on.
_PRINTING = [*range(33, 127), *range(161, 173), *range(174, 256)]
_BYTE_OF_CHAR = {chr(byte): byte for byte in _PRINTING} | {
    chr(256 + i): byte for i, byte in enumerate(byte for byte in range(256) if byte not in _PRINTING)
}


class TiktokenTokenizer:
    """Byte-pair encoding by tiktoken (Rust), from a *.tiktoken file, or the tokenizer.json or vocab.json of a GPT-2
    model. See `nvg.tokenizers.contract.Tokenizer`."""

    def __init__(self, encoding, eos_token_ids, affixes=((), ())):
        self._encoding = encoding
        self.vocab_size = encoding.n_vocab
        self.special_tokens = MappingProxyType(dict(encoding._special_tokens))
        self.eos_token_ids = eos_token_ids
        self.affixes = affixes

    @classmethod
    def from_dir(cls, path):
        """The tokenizer in the directory `path`. Raises CheckpointError for files that are missing or don't fit."""
        directory = Path(path)
        found = sorted(directory.glob("*.tiktoken"))
        if len(found) > 1:
            raise CheckpointError(f"{directory}: {len(found)} files end in .tiktoken; leave one")
        if found:
            settings = read_object(directory / SETTINGS) if (directory / SETTINGS).exists() else {}
            try:
                ranks = load_tiktoken_bpe(str(found[0]))
            except Exception as error:
                raise CheckpointError(f"{found[0]}: not a tiktoken file: {error}; copy it again") from error
            affixes = (), ()
            source, pattern = found[0], settings.get("pat_str", GPT2_PATTERN)
            specials = settings.get("special_tokens", {})
        else:
            source, ranks, specials, affixes = _gpt2_files(directory)
            pattern = GPT2_PATTERN
        try:
            encoding = tiktoken.Encoding(source.name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=specials)
        except Exception as error:
            raise CheckpointError(f"{source}: tiktoken can't use it: {error}") from error
        return cls(encoding, _eos_token_ids(directory, specials), affixes)

    @cached_property
    def fingerprint(self):
        """SHA-256, in hex, of pattern, ranks, special tokens and affixes."""
        encoding = self._encoding
        ranks = sorted(encoding._mergeable_ranks.items())
        parts = (encoding._pat_str, ranks, dict(self.special_tokens), self.affixes)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def encode(self, text, *, allow_special=False):
        text = joined_surrogates(text)
        return (
            self._encoding.encode(text, allowed_special="all")
            if allow_special
            else self._encoding.encode_ordinary(text)
        )

    def encode_batch(self, texts, *, allow_special=False):
        texts = [joined_surrogates(text) for text in texts]
        if allow_special:
            return self._encoding.encode_batch(texts, allowed_special="all")
        return self._encoding.encode_ordinary_batch(texts)

    def decode(self, token_ids):
        return self.decode_bytes(token_ids).decode("utf-8", "replace")

    def decode_bytes(self, token_ids):
        return b"".join(map(self.token_bytes, token_ids))

    def token_bytes(self, token_id):
        if not 0 <= token_id < self.vocab_size:
            raise unknown_token_id(token_id, self.vocab_size)
        try:
            return self._encoding.decode_single_token_bytes(token_id)
        except KeyError:  # an id that the file leaves out
            return b""


def _gpt2_files(directory):
    """(file, ranks, special tokens, affixes) of a GPT-2 model. Ids are ranks, if merges come in the order of ids."""
    affixes = (), ()
    tokenizer_json, vocab_json, merges_txt = (directory / n for n in ("tokenizer.json", "vocab.json", "merges.txt"))
    if tokenizer_json.exists():
        source, settings = tokenizer_json, read_object(tokenizer_json)
        model = settings.get("model") or {}
        pre_tokenizer = settings.get("pre_tokenizer") or {}
        if model.get("type", "BPE") != "BPE" or pre_tokenizer.get("type") != "ByteLevel":
            raise CheckpointError(f"{source}: not GPT-2's byte-level BPE; the tokenizer hf reads other kinds")
        if settings.get("normalizer") or pre_tokenizer.get("add_prefix_space") or model.get("ignore_merges"):
            raise CheckpointError(f"{source}: changes the text before BPE; the tokenizer hf does that")
        try:
            affixes = read_post_processor(settings.get("post_processor"))
        except UnsupportedError as error:
            raise CheckpointError(f"{source}: {error} is not supported; the tokenizer hf reads more kinds") from None
        vocab, merges = model.get("vocab", {}), model.get("merges", [])
        specials = {token["content"]: token["id"] for token in settings.get("added_tokens", [])}
    elif vocab_json.exists() and merges_txt.exists():
        source, vocab = vocab_json, read_object(vocab_json)
        lines = read_text(merges_txt).split("\n")
        merges = [line for line in lines if line and not line.startswith("#version")]
        specials = {END_OF_TEXT: vocab[END_OF_TEXT]} if END_OF_TEXT in vocab else {}
    else:
        raise CheckpointError(
            f"{directory}: no tokenizer here for tiktoken; looked for *.tiktoken, tokenizer.json, and vocab.json with "
            "merges.txt"
        )
    merged = ["".join(merge) if isinstance(merge, list) else merge.replace(" ", "") for merge in merges]
    ids = [vocab.get(token, -1) for token in merged]
    if -1 in ids or ids != sorted(ids):
        raise CheckpointError(
            f"{source}: its merges are not in the order of ids, as tiktoken needs; use --tokenizer gpt2"
        )
    try:
        ranks = {
            bytes(_BYTE_OF_CHAR[char] for char in token): token_id
            for token, token_id in vocab.items()
            if token not in specials
        }
    except KeyError as error:
        raise CheckpointError(f"{source}: {error} is no letter of GPT-2's alphabet of bytes") from None
    return source, ranks, specials, affixes


def _eos_token_ids(directory, specials):
    """From generation_config.json, else config.json, else the id of `<|endoftext|>`."""
    for name in ("generation_config.json", "config.json"):
        if (directory / name).exists():
            ids = read_object(directory / name).get("eos_token_id")
            if ids is not None:
                return tuple(ids) if isinstance(ids, list) else (ids,)
    return (specials[END_OF_TEXT],) if END_OF_TEXT in specials else ()
