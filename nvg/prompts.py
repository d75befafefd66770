"""What can be given as a prompt, and how prompts and SamplingParams go together."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from numbers import Integral
from typing import Any

from nvg.errors import ParameterError
from nvg.params import SamplingParams

Prompt = str | Sequence[int]
_A_PROMPT = "a text or a list of token ids (integers)"


def pair(
    prompts: Prompt | Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None
) -> tuple[list[Prompt], list[SamplingParams]]:
    """The prompts as a list, and one SamplingParams for each. What begins with a number is one prompt of token ids.

    Raises ParameterError for anything else than one prompt or a list of them, and for params that do not go with it.
    """
    given = _plain(prompts)
    if isinstance(given, str):
        listed: list[Prompt] = [given]
    elif not _is_list(given):
        raise ParameterError(f"prompts is {reprlib.repr(given)}; it must be {_A_PROMPT}, or a list of such prompts")
    else:
        listed = [given] if given and _is_id(given[0]) else list(given)
    if params is None or isinstance(params, SamplingParams):
        return listed, [given_params(params)] * len(listed)
    if not _is_list(params):
        raise ParameterError(f"params is {reprlib.repr(params)}; it must be SamplingParams, or a list of them")
    for number, one in enumerate(params):
        if not isinstance(one, SamplingParams):
            raise ParameterError(f"params {number} is {reprlib.repr(one)}; it must be SamplingParams")
    if len(params) != len(listed):
        raise ParameterError(
            f"there are {len(listed)} prompts and {len(params)} SamplingParams; give one for each or one"
        )
    return listed, list(params)


def given_params(params: Any) -> SamplingParams:
    """The params of one prompt, those by default for None. Raises ParameterError for what is none."""
    if params is None:
        return SamplingParams()
    if not isinstance(params, SamplingParams):
        raise ParameterError(f"params is {reprlib.repr(params)}; it must be SamplingParams")
    return params


def text_or_ids(prompt: Any) -> str | list[int]:
    """A prompt as it is worked with. Raises ParameterError for what is none."""
    given = _plain(prompt)
    if isinstance(given, str):
        return given
    if not _is_list(given):
        raise ParameterError(f"{reprlib.repr(given)} is no prompt; a prompt is {_A_PROMPT}")
    for position, token_id in enumerate(given):
        if not _is_id(token_id):
            raise ParameterError(f"token id {position} is {reprlib.repr(token_id)}; a prompt is {_A_PROMPT}")
    return [int(token_id) for token_id in given]


def _plain(value: Any) -> Any:
    """Arrays (NumPy's, torch's, array's) as lists."""
    return value.tolist() if hasattr(value, "tolist") and not isinstance(value, memoryview) else value


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, memoryview))


def _is_id(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
