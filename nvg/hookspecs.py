"""The hooks of nvg. A plugin implements any of them with `@nvg.hookimpl` and names its module in the entry point
group `nvg`. Each gets `register(name, target)`; target is an object or a lazy "package.module:Name", which is
imported only when that name is used."""

from collections.abc import Callable
from typing import Any

import pluggy

Register = Callable[[str, Any], None]

hookspec = pluggy.HookspecMarker("nvg")
hookimpl = pluggy.HookimplMarker("nvg")


@hookspec
def nvg_register_samplers(register: Register) -> None:
    """Register samplers; a target is a spec class (see nvg.sampling.contract.Sampler)."""


@hookspec
def nvg_register_tokenizers(register: Register) -> None:
    """Register tokenizers; a target is `from_dir(path) -> Tokenizer` (see nvg.tokenizers.contract)."""


@hookspec
def nvg_register_models(register: Register) -> None:
    """Register model types; a target has `from_checkpoint(config, tensors, engine_config) -> ModelRunner`
    (see nvg.model.contract), and its name is the `model_type` of config.json. It may have
    `compile_steps(engine_config)`, the `CompileStep`s that `from_checkpoint` will prepare: they are then compiled
    beside those for sampling."""
