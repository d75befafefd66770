"""Any tokenizer.json, by Hugging Face's tokenizers: the tokenizer `hf` of nvg."""

import hashlib
import json
import os
import re
from pathlib import Path
from types import MappingProxyType

from tokenizers import Tokenizer

from nvg.errors import CheckpointError, ParameterError
from nvg.tokenizers.checks import joined_surrogates, unknown_token_id
from nvg.tokenizers.text_files import read_text

# GPT-2's alphabet of bytes: those that print stand for themselves, the others follow from U+0100 on.
_PRINTING = [*range(33, 127), *range(161, 173), *range(174, 256)]
_BYTE_OF_CHAR = {chr(byte): byte for byte in _PRINTING} | {
    chr(256 + i): byte for i, byte in enumerate(byte for byte in range(256) if byte not in _PRINTING)
}
_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_END_TOKENS = "<|endoftext|>", "</s>", "[SEP]"


class HFTokenizer:
    """Any tokenizer.json (WordPiece, Unigram, SentencePiece's BPE, byte-level BPE) by Hugging Face's tokenizers. See
    `nvg.tokenizers.contract.Tokenizer`.

    What a post-processor adds to a text is in `affixes`. A token's bytes are what the decoder makes of it inside of a
    text, so that text can be streamed: decoding a whole text leaves the space that some kinds put before its first
    word.
    """

    def __init__(self, text, eos_token_ids=(), source="tokenizer.json"):
        """text: of a tokenizer.json. Raises CheckpointError if it is none, or decodes other than token by token."""
        try:
            self._plain, self._commanding = Tokenizer.from_str(text), Tokenizer.from_str(text)
        except Exception as error:
            raise CheckpointError(f"{source}: not a tokenizer.json: {error}") from error
        for tokenizer in (self._plain, self._commanding):
            tokenizer.no_truncation()
            tokenizer.no_padding()
        self._plain.encode_special_tokens = True  # special tokens in it are text, too
        decoders = _decoders(json.loads(text).get("decoder"))
        if "CTC" in decoders:
            raise CheckpointError(f"{source}: its decoder, CTC, depends on neighbouring tokens: it can't be streamed")
        model = json.loads(text)["model"]
        unknown = {self._plain.token_to_id(model["unk_token"]) if model.get("unk_token") else model.get("unk_id")}
        self._is_byte_level, self._has_fallback = "ByteLevel" in decoders, "ByteFallback" in decoders
        added = self._plain.get_added_tokens_decoder()
        self._added = {token_id: token.content for token_id, token in added.items()}
        special = {token.content: token_id for token_id, token in sorted(added.items()) if token.special}
        self.special_tokens = MappingProxyType(special)
        self.vocab_size = 1 + max(self._plain.get_vocab(with_added_tokens=True).values())
        self.eos_token_ids = eos_token_ids or tuple(special[name] for name in _END_TOKENS if name in special)[:1]
        self._commands = frozenset(special.values()) - unknown
        self._inside_commands = re.compile(
            "|".join(f"(?<={re.escape(text[0])})(?={re.escape(text[1:])})" for text in special if len(text) > 1) or "$^"
        )
        self.affixes = self._added_around()
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()
        self._bytes = {}

    @classmethod
    def from_dir(cls, path):
        """The tokenizer in the directory `path`. Raises CheckpointError for a file that is missing or damaged."""
        directory = Path(path)
        source = directory / "tokenizer.json"
        if not os.path.lexists(source):
            raise CheckpointError(
                f"{source}: not there; transformers' AutoTokenizer writes it: from_pretrained(...).save_pretrained(...)"
            )
        text = read_text(source)
        return cls(text, _eos_token_ids(directory), str(source))

    def encode(self, text, *, allow_special=False):
        text = joined_surrogates(text)
        ids = self._encoder(allow_special).encode(text, add_special_tokens=False).ids
        return ids if allow_special or self._commands.isdisjoint(ids) else self._encode_cut(text)

    def encode_batch(self, texts, *, allow_special=False):
        texts = [joined_surrogates(text) for text in texts]
        encodings = self._encoder(allow_special).encode_batch(texts, add_special_tokens=False)
        batch = [encoding.ids for encoding in encodings]
        if allow_special:
            return batch
        return [
            ids if self._commands.isdisjoint(ids) else self._encode_cut(text)
            for text, ids in zip(texts, batch, strict=True)
        ]

    def decode(self, token_ids):
        return self.decode_bytes(token_ids).decode("utf-8", "replace")

    def decode_bytes(self, token_ids):
        return b"".join(map(self.token_bytes, token_ids))

    def token_bytes(self, token_id):
        known = self._bytes.get(token_id)
        if known is None:
            if not 0 <= token_id < self.vocab_size:
                raise unknown_token_id(token_id, self.vocab_size)
            known = self._bytes[token_id] = self._made_bytes(token_id)
        return known

    def _encode_cut(self, text):
        """The ids of a text in which the model itself (Unigram does that) finds special tokens, which it must not: it
        is cut inside of them."""
        parts = [self._plain.encode(part, add_special_tokens=False).ids for part in self._inside_commands.split(text)]
        for ids in parts:
            if not self._commands.isdisjoint(ids):
                token = next(self._added[token_id] for token_id in ids if token_id in self._commands)
                raise ParameterError(f"the text has the special token {token!r} in it; allow it, or take it out")
        return [token_id for ids in parts for token_id in ids]

    def _added_around(self):
        """The ids before and after those of a whole text."""
        encoding = self._plain.encode("a")
        marks = encoding.special_tokens_mask
        first = marks.index(0) if 0 in marks else len(marks)
        last = len(marks) - marks[::-1].index(0) if 0 in marks else len(marks)
        return tuple(encoding.ids[:first]), tuple(encoding.ids[last:])

    def _encoder(self, allow_special):
        return self._commanding if allow_special else self._plain

    def _made_bytes(self, token_id):
        """What the token is inside of a text."""
        token = self._plain.id_to_token(token_id)
        if token is None:  # an id that the file leaves out
            return b""
        if token_id in self._added:
            return token.encode()
        if self._is_byte_level and all(char in _BYTE_OF_CHAR for char in token):
            return bytes(_BYTE_OF_CHAR[char] for char in token)
        if self._has_fallback and (byte := _FALLBACK.fullmatch(token)):
            return bytes([int(byte[1], 16)])
        decoder = self._plain.decoder
        if decoder is None:
            return b" " + token.encode()  # the library joins tokens with spaces
        # Between two others, so that what is done at the ends of a text only is done to those.
        before, after = decoder.decode(["a"]), decoder.decode(["a", "a"])[1:]
        return decoder.decode(["a", token, "a"]).removeprefix(before).removesuffix(after).encode()


def _decoders(settings):
    """The types of all decoders, those in sequences too."""
    if not settings:
        return set()
    inner = [_decoders(one) for one in settings.get("decoders", ())]
    return {settings.get("type")}.union(*inner)


def _eos_token_ids(directory):
    """From generation_config.json, else config.json."""
    for name in ("generation_config.json", "config.json"):
        try:
            ids = json.loads((directory / name).read_text("utf-8")).get("eos_token_id")
        except (OSError, ValueError, AttributeError):
            continue
        if ids is not None:
            return tuple(ids) if isinstance(ids, list) else (ids,)
    return ()
