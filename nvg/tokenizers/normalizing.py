"""What a tokenizer.json changes in a text before it is cut: its normalizer, as Hugging Face's `tokenizers` runs it (its
crate's `normalizers`)."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import regex

from nvg.errors import ParameterError
from nvg.files import shown
from nvg.tokenizers.checks import is_unicode
from nvg.tokenizers.components import UnsupportedError, parts_of
from nvg.tokenizers.oniguruma import PATTERN_FLAGS, read_pattern, timeout_s

WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
WHITE_SPACE += "\u2028\u2029\u202f\u205f\u3000"
"""Unicode's White_Space; Python's `str.strip` and `str.isspace` know four more characters."""

_MAX_CONTENT_CHARS, _MAX_GROWTH = 200, 100
"""A few steps, each of which doubles a text, would fill any memory."""

Normalizer = Callable[[str], str]


def read_normalizer(setting: Any) -> Normalizer | None:
    """The normalizer of tokenizer.json, None for none. Raises UnsupportedError."""
    if setting is None:
        return None
    steps = [_normalizer(part) for part in parts_of(setting, "normalizer", "normalizers")]
    return lambda text: _apply(steps, text)


def _normalizer(setting: Mapping[str, Any]) -> Normalizer:
    kind = setting.get("type")
    match kind:
        case "NFC" | "NFD" | "NFKC" | "NFKD":
            return lambda text: unicodedata.normalize(kind, text)
        case "Lowercase":  # character by character: str.lower knows of the sigma at a word's end
            return lambda text: text.replace("Σ", "σ").lower()
        case "StripAccents":
            return lambda text: regex.sub(r"\p{M}+", "", text)
        case "Strip":
            left, right = (bool(setting.get(side)) for side in ("strip_left", "strip_right"))
            return lambda text: _stripped(text, left=left, right=right)
        case "Prepend":
            prefix = _content(setting, "prepend")
            return lambda text: prefix + text if text else text
        case "Replace":
            pattern, content = read_pattern(setting.get("pattern")), _content(setting, "content")
            compiled = regex.compile(pattern, PATTERN_FLAGS)
            return lambda text: compiled.sub(lambda _: content, text, timeout=timeout_s(text))
    raise UnsupportedError(f"normalizer {shown(kind)}")


def _stripped(text: str, *, left: bool, right: bool) -> str:
    text = text.lstrip(WHITE_SPACE) if left else text
    return text.rstrip(WHITE_SPACE) if right else text


def _content(setting: Mapping[str, Any], key: str) -> str:
    """What a normalizer puts into a text."""
    content = setting.get(key)
    if not isinstance(content, str) or len(content) > _MAX_CONTENT_CHARS or not is_unicode(content):
        raise UnsupportedError(f"the {key} {shown(content)} of a normalizer")
    return content


def _apply(normalizers: Iterable[Normalizer], text: str) -> str:
    most = _MAX_GROWTH * (len(text) + 1)
    for normalizer in normalizers:
        text = normalizer(text)
        if len(text) > most:
            raise ParameterError(
                f"the tokenizer's normalizer makes the text more than {_MAX_GROWTH} times as long; the file may be "
                "hostile"
            )
    return text
