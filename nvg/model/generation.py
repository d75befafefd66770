"""How a checkpoint's authors want it sampled: what generation_config.json says, then config.json.

The keys are those of transformers (`GenerationConfig`). A config.json of years ago lists them all, most with the values
that transformers has anyway: nobody chose those, so there they say nothing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

from nvg import ranges
from nvg.errors import CheckpointError, ParameterError, shown
from nvg.files import read_json
from nvg.tokenizers.checks import is_unicode


@dataclass(frozen=True)
class GenerationDefaults:
    """A model's own defaults, as far as nvg has the same thing; checked."""

    params: Mapping[str, Any] = field(default_factory=dict)
    """Fields of SamplingParams."""
    stages: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    """Stages of the chain that no field of SamplingParams stands for, as `SamplingParams.sampler` takes them."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """Key that is used -> the name of the file that has it."""
    unused: Mapping[str, Any] = field(default_factory=dict)
    """Keys that would change the text in transformers, and do nothing here."""


@dataclass(frozen=True)
class _Key:
    """What a key of GenerationConfig means here."""

    usual: Any
    """The value that transformers has where none is given."""
    check: Callable[[str, Any], Any]
    """check(name, value) raises ParameterError."""
    target: str
    """A field of SamplingParams, or a sampler's name and option with a "." between."""


def _real(allowed: str, low: float, high: float, *, open_low: bool = False) -> Callable[[str, Any], Any]:
    return lambda name, value: ranges.number(name, value, allowed, low, high, open_low=open_low)


def _count(name: str, value: Any) -> None:
    ranges.integer(name, value, 0, 2**31 - 1)


def _flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ParameterError(f"{name} is {shown(value)}; it must be true or false")


def _texts(name: str, value: Any) -> None:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text and is_unicode(text) for text in texts):
        raise ParameterError(f"{name} is {shown(value)}; it must be a text or a list of texts that are not empty")
    if sum(map(len, texts)) > _MOST_CHARACTERS:  # whoever looks for them takes 300 bytes for each
        raise ParameterError(f"{name} is {shown(value)}; it must be at most {_MOST_CHARACTERS} characters in all")


def _sequences(name: str, value: Any) -> None:
    is_list = isinstance(value, list) and value and all(isinstance(ids, list) and ids for ids in value)
    if not is_list or not all(type(i) is int and i >= 0 for ids in value for i in ids):
        raise ParameterError(f"{name} is {shown(value)}; it must be a list of lists of token ids")


_MOST_CHARACTERS = 100_000
_SHARE = "above 0 and at most 1"
_CUTOFF = "from 0 to 1"
_KEYS = MappingProxyType(
    {
        "do_sample": _Key(False, _flag, "temperature"),
        "temperature": _Key(1.0, _real(">= 0", 0, math.inf), "temperature"),
        "top_k": _Key(50, _count, "top_k"),
        "top_p": _Key(1.0, _real(_SHARE, 0, 1, open_low=True), "top_p"),
        "min_p": _Key(None, _real(_CUTOFF, 0, 1), "min_p"),
        "typical_p": _Key(1.0, _real(_SHARE, 0, 1, open_low=True), "typical_p"),
        "repetition_penalty": _Key(1.0, _real("above 0", 0, math.inf, open_low=True), "penalties.repetition"),
        "no_repeat_ngram_size": _Key(0, _count, "norepeatngram.n"),
        "epsilon_cutoff": _Key(0.0, _real(_CUTOFF, 0, 1), "epsilon.epsilon"),
        "eta_cutoff": _Key(0.0, _real(_CUTOFF, 0, 1), "eta.epsilon"),
        "bad_words_ids": _Key(None, _sequences, "banned.sequences"),
        "max_new_tokens": _Key(None, _count, "max_tokens"),
        "min_new_tokens": _Key(None, _count, "min_tokens"),
        "stop_strings": _Key(None, _texts, "stop"),
        "guidance_scale": _Key(None, _real("from 0 to 1000", 0, 1000), "guidance_scale"),
    }
)

# What else decides a text in transformers, with the values that change nothing.
_OTHERS = MappingProxyType(
    {
        "num_beams": (1,),
        "num_beam_groups": (1,),
        "num_return_sequences": (1,),
        "max_length": (20,),
        "min_length": (0,),
        "max_time": (),
        "length_penalty": (1.0,),
        "diversity_penalty": (0.0,),
        "encoder_repetition_penalty": (1.0,),
        "encoder_no_repeat_ngram_size": (0,),
        "penalty_alpha": (),
        "force_words_ids": (),
        "constraints": (),
        "sequence_bias": (),
        "suppress_tokens": ([],),
        "begin_suppress_tokens": ([],),
        "forced_bos_token_id": (),
        "forced_eos_token_id": (),
        "exponential_decay_length_penalty": (),
        "watermarking_config": (),
        "top_h": (),
    }
)


def read_generation_defaults(directory: str | os.PathLike[str]) -> GenerationDefaults:
    """The defaults of the checkpoint in `directory`.

    Raises CheckpointError, naming the file, the key, its value and what is allowed.
    """
    found: dict[str, Any] = {}
    origins: dict[str, str] = {}
    unused: dict[str, Any] = {}
    data: dict[str, Any] = {}
    for name, is_choice in (("generation_config.json", True), ("config.json", False)):
        path = Path(directory) / name
        if not os.path.lexists(path):
            continue
        data = read_json(path)
        for key, meaning in _KEYS.items():
            value = data.get(key)
            if value is None or key in found or (not is_choice and _is_same(value, meaning.usual)):
                continue
            try:
                meaning.check(key, value)
            except ParameterError as error:
                raise CheckpointError(f"{path}: {error}") from None
            found[key], origins[key] = value, name
        for key, without_effect in _OTHERS.items():
            value = data.get(key)
            if value is not None and value not in without_effect:
                unused.setdefault(key, value)
    vocab_size, largest = data.get("vocab_size"), max(chain.from_iterable(found.get("bad_words_ids", ())), default=-1)
    if isinstance(vocab_size, int) and largest >= max(0, vocab_size):
        raise CheckpointError(
            f"{Path(directory) / origins['bad_words_ids']}: bad_words_ids has the token id {shown(largest)}; "
            f"config.json has vocab_size {shown(vocab_size)}: ids must be below it"
        )
    return _defaults(found, origins, unused)


def _is_same(value: Any, usual: Any) -> bool:
    return bool(value == usual) and isinstance(value, bool) == isinstance(usual, bool)


def _defaults(found: dict[str, Any], origins: dict[str, str], unused: dict[str, Any]) -> GenerationDefaults:
    # Greedy is what transformers does without do_sample; whoever wants that with nvg says so, in either way.
    is_greedy = found.pop("do_sample", None) is False
    params: dict[str, Any] = {}
    stages = []
    for key, value in found.items():
        target, _, option = _KEYS[key].target.partition(".")
        if option:
            options = {option: value, **({"last_n": -1} if target == "penalties" else {})}  # as in transformers
            stages.append((target, options))
        else:
            params[target] = value
    if is_greedy:
        params["temperature"] = 0.0
    return GenerationDefaults(params, tuple(stages), origins, unused)
