"""The header of a safetensors file, read and checked.

The checks are those of the format (https://github.com/huggingface/safetensors, "Format"), with a lower limit on the
header's size, and messages that name the tensor. The library of that name has the last word, and does not map the file.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import IO, Any

from nvg.errors import shown
from nvg.files import MAX_JSON_BYTES


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor's bytes are."""

    file: IO[bytes]
    offset: int
    """From the file's begin."""
    num_bytes: int
    dtype: str
    """As safetensors names it."""
    shape: tuple[int, ...]


def read_header(file: IO[bytes], file_size: int) -> tuple[bytes, dict[str, StoredTensor]]:
    """The header of an open file, from its begin, as it is and as tensors by name.

    Raises ValueError, which says what is wrong: a length beyond the file or the limit, what is not JSON, a name that
    is there twice, sizes that contradict each other, offsets that leave gaps, overlap, or don't end with the file.
    """
    length = int.from_bytes(_read_exactly(file, 8), "little")
    if length > file_size - 8:
        raise ValueError(f"its header would have {length} bytes")
    if length > MAX_JSON_BYTES:
        raise ValueError(f"its header has {length} bytes; no GPT-2 needs more than {MAX_JSON_BYTES}")
    text = _read_exactly(file, length)
    if not text.startswith(b"{"):
        raise ValueError(f"its header is no JSON object but begins with {shown(text[:8])}")
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except RecursionError:
        raise ValueError("its header is nested too deeply") from None
    header.pop("__metadata__", None)
    tensors = {name: _tensor(name, entry, file, 8 + length) for name, entry in header.items()}
    _check_places(tensors, 8 + length, file_size)
    return text, tensors


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"its header has {shown(twice)} twice")
    return found


def _tensor(name: str, entry: Any, file: IO[bytes], data_offset: int) -> StoredTensor:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [begin, end]} if (
            _are_sizes(shape) and _are_sizes([begin, end]) and begin <= end
        ):
            num_bytes = end - begin
            bits = _bits(dtype)
            if bits is not None and math.prod(shape) * bits != 8 * num_bytes:
                raise ValueError(
                    f"the tensor {shown(name)}, {dtype} {shown(tuple(shape))}, can't have {num_bytes} bytes"
                )
            return StoredTensor(file, data_offset + begin, num_bytes, dtype, tuple(shape))
    raise ValueError(f"the tensor {shown(name)} is {shown(entry)}; it needs a dtype, a shape and data_offsets")


def _are_sizes(values: list[Any]) -> bool:
    return all(type(value) is int and 0 <= value < 2**63 for value in values) and len(values) <= 64


def _bits(dtype: str) -> int | None:
    """Of one element; None for a dtype that the format doesn't have."""
    if dtype == "BOOL":
        return 8
    width = re.fullmatch(r"(?:[IUFC]|BF)(4|6|8|16|32|64)(?:_[A-Z0-9]{1,16})?", dtype)
    return int(width[1]) if width else None


def _check_places(tensors: dict[str, StoredTensor], data_offset: int, file_size: int) -> None:
    """One tensor begins where another ends, from the header's end to the file's."""
    end = data_offset
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].num_bytes)):
        if tensor.offset != end:
            what = "overlaps with another" if tensor.offset < end else "has a gap before it"
            raise ValueError(f"the tensor {shown(name)} {what}")
        end += tensor.num_bytes
    if end > file_size:
        raise ValueError(f"its tensors end at byte {end}")
    if end < file_size:
        raise ValueError(f"{file_size - end} bytes follow its tensors")


def _read_exactly(file: IO[bytes], size: int) -> bytes:
    parts = []
    while size:
        part = file.read(size)
        if not part:
            raise ValueError("it ends within its header")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
