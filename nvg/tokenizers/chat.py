"""Chat templates: messages -> the text that a model was trained to answer. Needs jinja2 (the extra `chat`).

As transformers' `apply_chat_template` renders them ("Chat templates" in its documentation): in Jinja's sandbox, because
a template comes with a checkpoint and is a program, and with limits (`chat_limits.py`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from nvg.errors import CheckpointError, NvgError, ParameterError, cause
from nvg.files import MAX_JSON_BYTES, open_file, read_json, read_up_to

_FILE, _CONFIG = "chat_template.jinja", "tokenizer_config.json"


def apply_chat_template(
    directory: Path, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
) -> str:
    """The text of a conversation; encode it with `allow_special=True`.

    `directory` is the checkpoint's, with chat_template.jinja, or with a chat_template in tokenizer_config.json.
    Messages are `{"role": "system" | "user" | "assistant", "content": text}`; what looks like a special token in a
    content is one. `add_generation_prompt` opens the assistant's answer.

    Raises CheckpointError if there is no template, or a damaged one, ParameterError for messages that it refuses, and
    NvgError without jinja2.
    """
    config = _read_config(directory)
    template = _template(directory, config)
    if template is None:
        raise CheckpointError(
            f"{directory} has no chat template (neither {_FILE} nor a chat_template in {_CONFIG}): the model was not "
            "trained to chat; give it a text to continue"
        )
    source, path = template
    try:
        import jinja2
        from jinja2 import ext

        from nvg.tokenizers.chat_limits import LimitedEnvironment, LimitError, rendered
    except ImportError as error:
        raise NvgError(f"chat templates need jinja2: `pip install 'nvg[chat]'` installs it ({cause(error)})") from error

    class Generation(ext.Extension):  # type: ignore[misc]
        """`{% generation %}` marks the assistant's part for training; here it means nothing."""

        tags = {"generation"}  # noqa: RUF012 (as Jinja has it)

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(["name:endgeneration"], drop_needle=True)

    def raise_exception(message: str) -> NoReturn:
        raise ParameterError(f"the chat template refuses the messages: {_brief(message)}")

    environment = LimitedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": _strftime_now}
    special = {name: value["content"] if isinstance(value, dict) else value for name, value in config.items()
               if name.endswith("_token") and (isinstance(value, str) or _is_token(value))}  # fmt: skip
    try:
        program = environment.from_string(source)
        conversation = [dict(message) for message in messages]
        return rendered(program.render, messages=conversation, add_generation_prompt=add_generation_prompt, **special)
    except ParameterError:
        raise
    except LimitError as error:
        raise CheckpointError(f"{path}: the chat template is refused: {error}") from None
    except jinja2.TemplateSyntaxError as error:
        raise CheckpointError(
            f"{path}: the chat template has an error in line {error.lineno}: {_brief(error)}"
        ) from None
    except Exception as error:  # whatever a template's program can do wrong
        raise CheckpointError(f"{path}: the chat template fails: {_brief(cause(error))}") from error


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / _CONFIG
    return read_json(path) if os.path.lexists(path) else {}


def find_template(directory: Path) -> tuple[str, Path] | None:
    """A checkpoint's chat template, and the file that it is from. Raises CheckpointError."""
    return _template(directory, _read_config(directory))


def _template(directory: Path, config: Mapping[str, Any]) -> tuple[str, Path] | None:
    path = directory / _FILE
    try:
        with open_file(path) as file:
            return read_up_to(file, MAX_JSON_BYTES).decode("utf-8"), path
    except FileNotFoundError:
        pass
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} can't be read: {_brief(error)}") from error
    match config.get("chat_template"):
        case str(source):
            return source, directory / _CONFIG
        case [*named]:  # several with names
            for entry in named:
                match entry:
                    case {"name": "default", "template": str(source)}:
                        return source, directory / _CONFIG
    return None


def _is_token(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("content"), str)


def _brief(message: object) -> str:
    """What a template's program says, which may be anything, as a part of one line."""
    line = " ".join(str(message).split())
    return line if len(line) <= 200 else line[:197] + "..."


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Jinja's own filter escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)
