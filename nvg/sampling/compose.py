"""From what a user writes to the stages of a chain: names, options, specs, shortcuts and `-o` texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nvg.errors import ParameterError
from nvg.params import SamplingParams
from nvg.plugins import Entry, is_sampler, registry, sampler_entry, unknown_name
from nvg.sampling.chain import Stage
from nvg.sampling.options import make_spec, options_of, parse_option

DEFAULT_CHAIN: tuple[Any, ...] = (("topk", {"k": 40}), ("topp", {"p": 0.95}), ("temperature", {"t": 0.8}))
"""The command line's chain where no sampler is given; Python's is empty."""

SHORTCUTS = {
    "repetition_penalty": ("penalties", "repetition"),
    "presence_penalty": ("penalties", "presence"),
    "frequency_penalty": ("penalties", "frequency"),
    "dry_multiplier": ("dry", "multiplier"),
    "top_n_sigma": ("topnsigma", "n"),
    "top_k": ("topk", "k"),
    "typical_p": ("typical", "p"),
    "top_p": ("topp", "p"),
    "min_p": ("minp", "p"),
    "xtc_probability": ("xtc", "probability"),
    "xtc_threshold": ("xtc", "threshold"),
    "temperature": ("temperature", "t"),
}
"""A shortcut of SamplingParams -> the sampler and the option that it sets."""

# Where a shortcut inserts its stage: llama.cpp's order. Between its samplers stand those that have no shortcut.
_ORDER = (
    *("forcedprefix", "banned", "logitbias", "minlength", "norepeatngram", "penalties", "dry", "topnsigma", "topk"),
    *("tailfree", "typical", "topp", "minp", "topa", "epsilon", "eta", "xtc", "temperature", "dyntemp"),
    *("mirostat", "mirostat2", "greedy"),
)


@dataclass(frozen=True)
class OptionText:
    """A text "name=value" or "sampler.name=value" of the command line."""

    text: str
    stage: int | None = None
    """The index of the stage that it is written after, which it is for if that has such an option."""


def resolve(params: SamplingParams, base: Sequence[Any] = (), options: Sequence[Any] = ()) -> tuple[Stage, ...]:
    """The stages of a request's chain.

    params: its `sampler`, or `base` where that is None, with its shortcuts set in their stages, or inserted where
    there is no `sampler`. options: `OptionText`s, or texts "name=value", which must fit exactly one stage, or
    "sampler.name=value". The default chain, and stages that shortcuts insert, are nvg's own samplers, even where a
    plugin claims their names.

    Raises ParameterError (UnknownNameError for a name that does not exist) or PluginError.
    """
    if params.sampler is None and base is DEFAULT_CHAIN:
        drafts = [_own(*item) for item in base]
    else:
        drafts = [_draft(item) for item in _items(base if params.sampler is None else params.sampler)]
    return _stages(drafts, params, options)


def _stages(drafts: list[_Draft], params: SamplingParams, options: Sequence[Any]) -> tuple[Stage, ...]:
    """The drafts with shortcuts and options set, or inserted."""
    for shortcut, (sampler, option) in SHORTCUTS.items():
        value = getattr(params, shortcut)
        if value is not None:
            draft = _stage_for(drafts, shortcut, value, sampler, insert=params.sampler is None)
            draft.values[option] = value
            draft.shortcuts[option] = shortcut
    for option in options:
        _set_option(drafts, option if isinstance(option, OptionText) else OptionText(option))
    return tuple(draft.build() for draft in drafts)


def compose(params: SamplingParams, base: Sequence[Any] = (), options: Sequence[Any] = ()) -> SamplingParams:
    """`params` with `resolve`'s stages as its `sampler`, and the shortcuts, which are in them, unset."""
    stages = resolve(params, base, options)
    unset: dict[str, Any] = dict.fromkeys(SHORTCUTS)
    return dataclasses.replace(params, sampler=stages, **unset)


def own_chain(
    params: Mapping[str, Any], stages: Sequence[tuple[str, Mapping[str, Any]]], base: Sequence[tuple[str, Any]] = ()
) -> tuple[Stage, ...]:
    """The chain of a model that has defaults of its own: `base` with `stages`, in canonical order, and with those of
    `params` (fields of SamplingParams) that are shortcuts set or inserted.

    Raises ParameterError, PluginError.
    """
    items = sorted([*base, *stages], key=lambda item: _ORDER.index(item[0]))
    shortcuts = SamplingParams(**{name: value for name, value in params.items() if name in SHORTCUTS})
    return _stages([_own(*item) for item in items], shortcuts, ())


@dataclass
class _Draft:
    """A stage whose options are still being collected."""

    name: str
    origin: str
    spec_class: type
    values: dict[str, Any] = field(default_factory=dict)
    shortcuts: dict[str, str] = field(default_factory=dict)
    """Option -> the shortcut that set it."""
    texts: dict[str, str] = field(default_factory=dict)
    """Option -> the text that set it."""
    spec: Any = None
    """The user's own object, to which `values` apply; None for a stage given by name."""

    def option_names(self) -> list[str]:
        if self.spec is not None and not dataclasses.is_dataclass(self.spec):
            return []
        return [option.name for option in options_of(self.spec_class)]

    def build(self) -> Stage:
        if self.spec is None:
            spec = make_spec(self.name, self.origin, self.spec_class, self.values)
        elif self.values:
            fields = {name: getattr(self.spec, name) for name in self.option_names()}
            spec = make_spec(self.name, self.origin, self.spec_class, fields | self.values)
        else:
            spec = self.spec
        return Stage(self.name, spec, self.origin)


def _items(sampler: Any) -> Sequence[Any]:
    """`sampler` as a sequence of items; a pair (name, options) is one item."""
    if isinstance(sampler, (str, Mapping, Stage)) or is_sampler(sampler) or _is_pair(sampler):
        return (sampler,)
    if isinstance(sampler, Sequence):
        return sampler
    raise _bad_item(sampler)


def _is_pair(item: Any) -> bool:
    if not (isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str) and isinstance(item[1], Mapping)):
        return False
    # ("topk", {"name": "topp"}) is two items.
    return not isinstance(item[1].get("name"), str) or not item[1].keys() <= {"name", "options"}


def _draft(item: Any) -> _Draft:
    if isinstance(item, Stage):
        return _Draft(item.name, item.origin, type(item.spec), spec=item.spec)
    if isinstance(item, str):
        return _named(item, {})
    if _is_pair(item):
        return _named(*item)
    if isinstance(item, Mapping):
        name, options = item.get("name"), item.get("options", {})
        if not isinstance(name, str) or not isinstance(options, Mapping) or not item.keys() <= {"name", "options"}:
            raise _bad_item(item)
        return _named(name, options)
    if isinstance(item, type):
        raise ParameterError(f"sampler {item.__name__} is a class; give an object of it, {item.__name__}()")
    if is_sampler(item):
        entry = registry().samplers.entry_of(type(item))
        if entry is None:
            return _Draft(type(item).__name__, type(item).__module__, type(item), spec=item)
        return _Draft(entry.name, entry.origin, type(item), spec=item)
    raise _bad_item(item)


def _own(name: str, options: Mapping[str, Any]) -> _Draft:
    """A stage of nvg's own sampler, whoever else claims the name."""
    return _named(name, options, registry().samplers.built_in(name))


def _named(name: str, options: Mapping[str, Any], entry: Entry | None = None) -> _Draft:
    entry = entry or sampler_entry(name)
    return _Draft(entry.name, entry.origin, entry.load(), dict(options))


def _bad_item(item: Any) -> ParameterError:
    return ParameterError(
        f"sampler has {item!r}; an item of a chain is a name, (name, {{option: value}}), "
        '{"name": ..., "options": {...}} or an object with a method apply'
    )


def _stage_for(drafts: list[_Draft], shortcut: str, value: float, sampler: str, *, insert: bool) -> _Draft:
    """The stage that a shortcut sets, inserted in canonical order where that is allowed."""
    entry = registry().samplers.built_in(sampler)
    spec_class = entry.load()
    found = [draft for draft in drafts if draft.spec_class is spec_class]
    if len(found) == 1:
        return found[0]
    chain = ", ".join(draft.name for draft in drafts) or "empty"
    if found:
        raise ParameterError(
            f"{shortcut} is {value!r}, but the chain ({chain}) has {len(found)} {sampler!r} stages; set their options"
        )
    if not insert:
        raise ParameterError(
            f"{shortcut} is {value!r}, but the chain ({chain}) has no {sampler!r} stage to set; "
            f"add {sampler!r} to it, or leave {shortcut} out"
        )
    draft = _named(sampler, {}, entry)
    rank = _ORDER.index(sampler)
    later = (i for i, other in enumerate(drafts) if other.name in _ORDER and _ORDER.index(other.name) > rank)
    drafts.insert(next(later, len(drafts)), draft)
    return draft


def _set_option(drafts: list[_Draft], option: OptionText) -> None:
    """Apply one "name=value" or "sampler.name=value"."""
    text = option.text
    key, equals, value = text.partition("=")
    sampler, _, name = key.strip().rpartition(".")
    if not equals or not name:
        raise ParameterError(f"option {text!r} is not NAME=VALUE or SAMPLER.NAME=VALUE")
    if sampler:
        found = [draft for draft in drafts if draft.name == sampler]
        if not found:
            raise unknown_name("stage of this chain", sampler, {draft.name for draft in drafts})
    else:
        found = [draft for draft in drafts if name in draft.option_names()]
        if not found:
            known = {f"{draft.name}.{option}" for draft in drafts for option in draft.option_names()}
            raise unknown_name("option of this chain", name, known)
    if option.stage is not None and any(draft is drafts[option.stage] for draft in found):
        found = [drafts[option.stage]]
    if len(found) > 1:
        places = ", ".join(f"{draft.name}.{name}" for draft in found)
        way_out = "write -o after the --sampler that is meant"
        if len({draft.name for draft in found}) == len(found):
            way_out = "write which, as SAMPLER.NAME=VALUE"
        raise ParameterError(f"option {text!r} fits {len(found)} stages ({places}); {way_out}")
    if (other := found[0].texts.get(name)) is not None:
        raise ParameterError(f"option {text!r} and option {other!r} set the same, {found[0].name}.{name}; give one")
    found[0].texts[name] = text
    if shortcut := found[0].shortcuts.get(name):
        raise ParameterError(
            f"{shortcut} and the option {text!r} set the same, {found[0].name}.{name}; give one of them"
        )
    found[0].values[name] = parse_option(found[0].name, found[0].spec_class, name, value)
