"""llguidance's view of a tokenizer, and matchers for it: made once, copied for each sequence."""

from functools import lru_cache

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from nvg_grammar.forms import LIMITS, grammar_of, reason

_WORDS = tuple(
    f"{space}{letters}{{{least},{most - len(space)}}}"
    for letters in ("[a-z]", "[a-zA-Z]")
    for space, least, most in (("", 1, 10), (" ", 1, 10), ("", 11, 30), (" ", 10, 30))
)
"""Tokens that are allowed together, unseen, where a form has words: each a subset of one of llguidance's own groups,
which are those of JSON's strings (of up to 10 characters, up to 30, and any), and apart from the others with the same
letters. A group that is in none of them, or in part the same as another, makes llguidance walk its tokens twice."""
_UTF8_BYTES = (*range(0xC0), *range(0xC2, 0xF5))


class _Tokens:
    """What llguidance's TokenizerWrapper asks for, from a `nvg.tokenizers.contract.Tokenizer`."""

    def __init__(self, tokenizer, vocab_size, eos_token_ids):
        self._tokenizer = tokenizer
        self.eos_token_id = eos_token_ids[0]
        self.bos_token_id = None
        self.tokens = [tokenizer.token_bytes(token_id) for token_id in range(vocab_size)]
        # Special tokens are no text, though they have one, and tokens without bytes would never end.
        special = {*tokenizer.special_tokens.values(), *eos_token_ids}
        special.update(token_id for token_id, data in enumerate(self.tokens) if not data)
        self.special_token_ids = sorted(token_id for token_id in special if token_id < vocab_size)
        self._ids = {self.tokens[i]: i for i in reversed(range(vocab_size)) if i not in special}
        # llguidance splits forced text at any byte. One without a token of its own gets one that can't be drawn.
        for byte in (bytes([value]) for value in _UTF8_BYTES):
            if byte not in self._ids:
                self._ids[byte] = len(self.tokens)
                self.tokens.append(byte)
        self._longest = max(map(len, self._ids))

    def __call__(self, data):
        """The ids of text that is forced: the tokenizer's own, where they say just that. Some put a space before a
        text, or change it: there the longest tokens that fit are taken."""
        ids = self._tokenizer.encode(data.decode("utf-8", "replace"))
        if b"".join(self.tokens[token_id] for token_id in ids) == data:
            return ids
        ids, start = [], 0
        while start < len(data):
            ends = range(min(len(data), start + self._longest), start, -1)
            token = next(data[start:end] for end in ends if data[start:end] in self._ids)
            ids.append(self._ids[token])
            start += len(token)
        return ids


class _Key:
    """A tokenizer as a key of a cache: equal fingerprints, equal behaviour."""

    def __init__(self, tokenizer, vocab_size, eos_token_ids):
        self.tokenizer, self.vocab_size, self.eos_token_ids = tokenizer, vocab_size, eos_token_ids
        self._identity = (tokenizer.fingerprint, vocab_size, eos_token_ids)

    def __eq__(self, other):
        return self._identity == other._identity

    def __hash__(self):
        return hash(self._identity)


def matcher_for(spec, tokenizer, vocab_size, eos_token_ids):
    """A matcher at the beginning of the form, and how many tokens its masks have: the tokenizer's, and perhaps more.

    Raises ValueError with the reason where there can be none.
    """
    if not eos_token_ids:
        raise ValueError("the tokenizer has no end-of-text token, which a text in a given form ends with")
    key = _Key(tokenizer, vocab_size, tuple(eos_token_ids))
    return _matcher(spec, key).deep_copy(), _ll_tokenizer(key).vocab_size


@lru_cache(maxsize=32)
def _matcher(spec, key):
    matcher = LLMatcher(_ll_tokenizer(key), grammar_of(spec), log_level=0, limits=LIMITS)
    if matcher.is_error():
        raise ValueError(f"the form can't be used: {reason(matcher.get_error())}")
    return matcher


@lru_cache(maxsize=4)
def _ll_tokenizer(key):
    tokens = _Tokens(key.tokenizer, key.vocab_size, key.eos_token_ids)
    return LLTokenizer(
        TokenizerWrapper(tokens),
        eos_token=list(key.eos_token_ids),
        slices=[*_WORDS, *LLTokenizer.general_slices()],
    )
