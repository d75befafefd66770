"""What a tokenizer.json puts around the ids of a text: its post-processor, as Hugging Face's `tokenizers` runs it for
one text (its crate's `processors`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nvg.files import shown
from nvg.tokenizers.components import UnsupportedError, parts_of

Affixes = tuple[tuple[int, ...], tuple[int, ...]]
"""The ids before those of a text, and the ids after them."""


def read_post_processor(setting: Any) -> Affixes:
    """What the post-processor adds to a text. Raises UnsupportedError."""
    parts = parts_of(setting, "post_processor", "processors") if setting is not None else []
    adding = [affixes for affixes in map(_affixes, parts) if affixes != ((), ())]
    if len(adding) > 1:  # the second one then sees each part of the first as a text
        raise UnsupportedError("a post_processor with two parts that add tokens")
    return adding[0] if adding else ((), ())


def _affixes(part: Mapping[str, Any]) -> Affixes:
    match part:
        case {"type": "ByteLevel"}:  # that one is about offsets
            return (), ()
        case {"type": "RobertaProcessing" | "BertProcessing", "cls": [_, first], "sep": [_, last]}:
            return _checked([first]), _checked([last])
        case {"type": "TemplateProcessing", "single": [*pieces]}:
            return _of_template(pieces, part.get("special_tokens"))
    raise UnsupportedError(f"post_processor {shown(part.get('type'))} as it is here")


def _of_template(pieces: list[Any], special_tokens: Any) -> Affixes:
    parts: list[list[int]] = [[]]
    for piece in pieces:
        match piece:
            case {"Sequence": {"id": "A"}}:
                parts.append([])
            case {"SpecialToken": {"id": str(name)}}:
                entry = special_tokens.get(name) if isinstance(special_tokens, dict) else None
                ids = entry.get("ids") if isinstance(entry, dict) else None
                if not isinstance(ids, list):
                    raise UnsupportedError(f"the post_processor's special token {shown(name)}, which has no ids,")
                parts[-1] += _checked(ids)
            case _:
                raise UnsupportedError(f"{shown(piece)} in the post_processor's template")
    if len(parts) != 2:
        raise UnsupportedError(f"a post_processor whose template has the text {len(parts) - 1} times")
    return tuple(parts[0]), tuple(parts[1])


def _checked(ids: list[Any]) -> tuple[int, ...]:
    for token_id in ids:
        if type(token_id) is not int or token_id < 0:
            raise UnsupportedError(f"the id {shown(token_id)} in the post_processor")
    return tuple(ids)
