"""How a tokenizer's files are read: as all files of a model, but larger ones than its JSON otherwise is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nvg.errors import CheckpointError
from nvg.files import open_file, read_up_to

MAX_FILE_BYTES = 2**26
"""Of a file; vocabularies of 260,000 tokens have half of it. Parsed, it takes up to 25 times as much."""


def read_text(path: Path) -> str:
    """The file's text, with line feeds at the ends of its lines. Raises CheckpointError."""
    try:
        with open_file(path) as file:
            return read_up_to(file, MAX_FILE_BYTES).decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: byte {error.start} is not UTF-8; copy the file again") from error
    except ValueError:
        raise CheckpointError(f"{path}: has more than {MAX_FILE_BYTES} bytes, which no tokenizer needs") from None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in the file. Raises CheckpointError."""
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:  # ValueError also for an integer of thousands of digits
        raise CheckpointError(f"{path}: not JSON: {error}; copy the file again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a JSON {type(value).__name__}; it must be an object")
    return value
