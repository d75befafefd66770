"""What every tokenizer of nvg checks in the same way: text that is Unicode, ids that are in the vocabulary."""

from __future__ import annotations

import re

from nvg.errors import ParameterError

_LONE_SURROGATE = re.compile("[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]")


def joined_surrogates(text: str) -> str:
    """`text` with each surrogate pair joined to the character that it stands for, as tiktoken does.

    Raises ParameterError (a ValueError) for a lone surrogate, with its index in `text`.
    """
    if not isinstance(text, str):
        raise ParameterError(f"text is {type(text).__name__}; it must be a str")
    try:
        text.encode()
    except UnicodeEncodeError:
        lone = _LONE_SURROGATE.search(text)
        if lone:
            raise ParameterError(
                f"the text has a lone surrogate, U+{ord(lone[0]):04X}, at index {lone.start()}; "
                "it must be Unicode: remove it or decode the input with errors='replace'"
            ) from None
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    return text


def is_unicode(text: str) -> bool:
    """Whether it can be in another text: it has no surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def unknown_token_id(token_id: int, vocab_size: int) -> ParameterError:
    """The error for an id outside 0 .. vocab_size - 1."""
    return ParameterError(f"token id {token_id} is not in the vocabulary; ids go from 0 to {vocab_size - 1}")
