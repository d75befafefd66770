"""nvg: GPT-2 inference on the CPU. `import nvg` loads neither numba nor numpy; names are loaded when used."""

from __future__ import annotations

from nvg._version import __version__

TYPE_CHECKING = False  # of `typing`, which takes longer to import than all of this
if TYPE_CHECKING:
    from typing import Any

    from nvg.async_llm import AsyncLLM
    from nvg.hookspecs import hookimpl
    from nvg.llm import LLM
    from nvg.params import Choice, EngineConfig, Explanation, Piece, RequestOutput, SamplingParams, TokenLogprobs

__all__ = [
    "LLM",
    "AsyncLLM",
    "Choice",
    "EngineConfig",
    "Explanation",
    "Piece",
    "RequestOutput",
    "SamplingParams",
    "TokenLogprobs",
    "__version__",
    "hookimpl",
]

_HOMES = {"LLM": "nvg.llm", "AsyncLLM": "nvg.async_llm", "hookimpl": "nvg.hookspecs"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'nvg' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOMES.get(name, "nvg.params")), name)
    globals()[name] = value
    return value
