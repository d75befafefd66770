"""One HTML page of a trace. It loads nothing and sends nothing; what the trace says is only ever shown as text."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import os
import re
from pathlib import Path
from typing import Any

from nvg.explain.reader import Record, Trace

_BYTES = re.compile(rb"(?:\\x[89a-f][0-9a-f])+")
"""Of a text in a trace: what is no UTF-8 on its own."""
_MOST_PARTS = 3
"""Tokens that a character's bytes may be in before its last one."""
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
            "tokens": _tokens(records, header["prompt_texts"], choice, trace, texts),
        }
        for choice, records in sorted(trace.tokens.items())
    ]
    return {
        "about": {name: header[name] for name in ("model", "dtype", "nvg")} | {"seed": str(header["seed"])},
        "chain": [
            {"name": stage["name"], "origin": stage["origin"], "options": _options(stage.get("options"))}
            for stage in header["chain"]
        ],
        "prompt": "".join(_shown(header["prompt_texts"])),
        "choices": choices,
        "texts": texts.listed,
    }


def _shown(texts: list[str]) -> list[str]:
    """What each of consecutive tokens shows: a character whose bytes are spread over several is shown by the last of
    these, and bytes that make no character are shown as \\xNN."""
    parts = [
        _BYTES.sub(lambda run: bytes.fromhex(run[0].decode().replace("\\x", "")), text.encode("utf-8", "surrogatepass"))
        for text in texts
    ]
    ends = list(itertools.accumulate(map(len, parts)))
    shown, token, end = [""] * len(texts), 0, 0
    for char in b"".join(parts).decode("utf-8", "surrogateescape"):
        data = char.encode("utf-8", "surrogateescape")
        end += len(data)
        while ends[token] < end:
            token += 1
        shown[token] += data.decode("utf-8", "backslashreplace")
    return shown


def _options(options: Any) -> str:
    if not isinstance(options, dict):
        return ""
    return ", ".join(f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in
                     options.items())  # fmt: skip


def _tokens(
    records: list[Record], prompt_texts: list[str], choice: int, trace: Trace, texts: _Texts
) -> list[dict[str, Any]]:
    before = prompt_texts[-_MOST_PARTS:]
    told = before + [record["text"] for record in records]
    shown = _shown(told)[len(before) :]
    tokens = []
    for index, record in enumerate(records):
        token = _token(record, texts)
        if shown[index] != record["text"]:
            token["s"] = shown[index]
        end = len(before) + index
        branches = trace.branches.get((choice, index), [])
        token["b"] = [_branch(branch, told[max(0, end - _MOST_PARTS) : end], texts) for branch in branches]
        tokens.append(token)
    return tokens


def _branch(branch: Record, before: list[str], texts: _Texts) -> list[Any]:
    """The token, those after it with their probabilities, and what each of them shows."""
    told = [branch["text"], *(text for _, text, _ in branch["continuation"])]
    after = [[texts.number(i, text), _short(prob)] for i, text, prob in branch["continuation"]]
    return [texts.number(branch["token_id"], branch["text"]), after, _shown(before + told)[len(before) :]]


def _token(record: Record, texts: _Texts) -> dict[str, Any]:
    points = [{**record["model"], "removed": 0}, *record["stages"]]
    return {
        "t": texts.number(record["token_id"], record["text"]),
        # candidates left, removed, entropy, rank, probability; after the model and after each stage
        "d": [
            [p["candidates"], _short(p["removed"]), _short(p["entropy"]), p["rank"], _short(p["prob"])] for p in points
        ],
        "c": [[texts.number(i, text), [_short(prob) for prob in probs]] for i, text, probs in record["candidates"]],
    }


def _short(number: float | None) -> float | None:
    return None if number is None else float(f"{number:.{_DIGITS}g}")
