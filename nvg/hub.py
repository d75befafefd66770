"""A model's name -> the directory that holds it."""

from __future__ import annotations

import difflib
import os
import stat
from pathlib import Path

from nvg.errors import ModelNotFoundError, ParameterError

BUILT_IN = {"tales": "a GPT-2 of 5.9 M parameters, trained on public-domain fairy tales"}
"""Models that come with the package: name -> what it is. Their directories lie in nvg/data/."""

_HOW_TO_GET_ONE = (
    "Give the path of a Hugging Face GPT-2 directory (config.json, model.safetensors, and tokenizer.json or vocab.json "
    "with merges.txt). transformers writes one: AutoModelForCausalLM.from_pretrained('gpt2').save_pretrained('DIR'), "
    "AutoTokenizer.from_pretrained('gpt2').save_pretrained('DIR'); then the model is 'DIR'"
)


def resolve_model(name: str | os.PathLike[str]) -> Path:
    """The directory of a model: a built-in name, or a path (`./tales` is the path, `tales` the built-in model).

    Raises ModelNotFoundError, which says what was looked for and how to get a model, and ParameterError for no name.
    """
    text = os.fspath(name)
    if not text:
        raise ParameterError(f"model is {text!r}; it must be a model's name or the path of its directory")
    if text in BUILT_IN:
        path = Path(__file__).parent / "data" / text
        if not (path / "config.json").is_file():
            raise ModelNotFoundError(f"the built-in model {text!r} is missing from {path}: install nvg again")
        return path
    path = Path(os.path.expanduser(text))
    try:
        if not stat.S_ISDIR(path.stat().st_mode):
            raise ModelNotFoundError(
                f"the model {text!r} is a file, not a directory: give the directory that holds config.json and "
                "model.safetensors"
            )
        try:
            if stat.S_ISREG((path / "config.json").stat().st_mode):
                return path
        except FileNotFoundError:
            pass
        raise ModelNotFoundError(f"the directory {text!r} is not a model: it has no config.json. {_HOW_TO_GET_ONE}")
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a name that no file can have
        pass
    except OSError as error:
        raise ModelNotFoundError(f"the model {text!r} can't be read: {error.strerror}") from error
    near = difflib.get_close_matches(text.lower(), BUILT_IN, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ModelNotFoundError(
        f"no model {text!r}: it is neither a built-in model ({', '.join(BUILT_IN)}) nor the path of a directory."
        f"{hint} {_HOW_TO_GET_ONE}"
    )
