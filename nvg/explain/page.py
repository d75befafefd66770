"""One HTML page of a trace. It loads nothing and sends nothing; what the trace says is only ever shown as text."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from nvg.explain.reader import Record, Trace

_DIGITS = 5
"""Of probabilities and entropies on the page; the trace has them all."""
# None of these can end a script, begin a comment or end a line of JavaScript.
_ESCAPES = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\N{LINE SEPARATOR}\N{PARAGRAPH SEPARATOR}"}


def make_page(trace: Trace) -> str:
    """The page, in ASCII but for what this package's own template has."""
    here = Path(__file__).parent
    script, style = ((here / name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    data = json.dumps(_data(trace), separators=(",", ":")).translate(_ESCAPES)
    page = (here / "page.html").read_text(encoding="utf-8")
    parts = {"@SCRIPT_HASH@": _hash(script), "@STYLE_HASH@": _hash(style), "@STYLE@": style, "@SCRIPT@": script}
    for mark, text in parts.items():
        page = page.replace(mark, text)
    return page.replace("@DATA@", data)  # last: it may have any of the marks in it


def may_replace(path: str) -> bool:
    """Whether nothing is lost where a page is written to `path`: there is no such file, or it is empty, a page of ours,
    or no regular file."""
    if not os.path.isfile(path):
        return True
    with open(path, "rb") as file:
        head = file.read(4096)
    return not head or b"<title>nvg explain</title>" in head


def _hash(text: str) -> str:
    """A content security policy's name for an inline script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


class _Texts:
    """Tokens' texts, each once: `number(id, text)` is its place in `listed`."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[int, str], int] = {}

    def number(self, token_id: int, text: str) -> int:
        return self._numbers.setdefault((token_id, text), len(self._numbers))

    @property
    def listed(self) -> list[tuple[int, str]]:
        return list(self._numbers)


def _data(trace: Trace) -> dict[str, Any]:
    """What page.js reads: short, because a page may have thousands of tokens."""
    header, texts = trace.header, _Texts()
    choices = [
        {
            "choice": choice,
            "end": trace.ends.get(choice, {}).get("finish_reason"),
            "error": trace.ends.get(choice, {}).get("error"),
            "tokens": [_token(record, trace.branches.get((choice, index), []), texts) for index, record in
                       enumerate(records)],
        }
        for choice, records in sorted(trace.tokens.items())
    ]  # fmt: skip
    return {
        "about": {name: header[name] for name in ("model", "dtype", "nvg")} | {"seed": str(header["seed"])},
        "chain": [
            {"name": stage["name"], "origin": stage["origin"], "options": _options(stage.get("options"))}
            for stage in header["chain"]
        ],
        "prompt": _joined(header["prompt_texts"]),
        "choices": choices,
        "texts": texts.listed,
    }


def _joined(texts: list[str]) -> str:
    """Tokens' texts one after the other, with the characters whose bytes are spread over several of them."""

    def decoded(run: re.Match[str]) -> str:
        try:
            return bytes.fromhex(run[0].replace("\\x", "")).decode()
        except UnicodeDecodeError:
            return run[0]

    return re.sub(r"(?:\\x[89a-f][0-9a-f])+", decoded, "".join(texts))


def _options(options: Any) -> str:
    if not isinstance(options, dict):
        return ""
    return ", ".join(f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in
                     options.items())  # fmt: skip


def _token(record: Record, branches: list[Record], texts: _Texts) -> dict[str, Any]:
    points = [{**record["model"], "removed": 0}, *record["stages"]]
    return {
        "t": texts.number(record["token_id"], record["text"]),
        # candidates left, removed, entropy, rank, probability; after the model and after each stage
        "d": [
            [p["candidates"], _short(p["removed"]), _short(p["entropy"]), p["rank"], _short(p["prob"])] for p in points
        ],
        "c": [[texts.number(i, text), [_short(prob) for prob in probs]] for i, text, probs in record["candidates"]],
        "b": [
            [
                texts.number(branch["token_id"], branch["text"]),
                [[texts.number(i, text), _short(prob)] for i, text, prob in branch["continuation"]],
            ]
            for branch in branches
        ],
    }


def _short(number: float | None) -> float | None:
    return None if number is None else float(f"{number:.{_DIGITS}g}")
