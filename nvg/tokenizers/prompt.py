"""A whole text as a model was trained to see one."""

from __future__ import annotations

from nvg.tokenizers.contract import Tokenizer


def encode_whole(tokenizer: Tokenizer, text: str, *, allow_special: bool = False) -> list[int]:
    """The ids of `text`, between those that the tokenizer puts around a whole text, if it has such.

    They are what Hugging Face's libraries give with `add_special_tokens=True`, their default. A part of a text, and a
    rendered chat template, are for `tokenizer.encode`. Raises ParameterError as that does.
    """
    before, after = getattr(tokenizer, "affixes", ((), ()))
    return [*before, *tokenizer.encode(text, allow_special=allow_special), *after]
