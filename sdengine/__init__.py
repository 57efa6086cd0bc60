"""sdengine: low-latency generation with lossless speculative decoding over dynamic token trees.

Names are loaded when they are first used, so that `import sdengine` and the errors cost no import
of torch. Type checkers read `__init__.pyi`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "LLM": "sdengine.llm",
    "AsyncEngine": "sdengine.async_engine",
    "CompletionOutput": "sdengine.core.outputs",
    "Engine": "sdengine.engine",
    "EngineConfig": "sdengine.core.config",
    "Logprob": "sdengine.core.outputs",
    "RequestMetrics": "sdengine.core.outputs",
    "RequestOutput": "sdengine.core.outputs",
    "SamplingParams": "sdengine.core.sampling_params",
    "SpeculationConfig": "sdengine.core.config",
    "SpeculationStats": "sdengine.core.outputs",
    "StepTree": "sdengine.core.outputs",
    "StreamDelta": "sdengine.llm",
}

_SUBMODULES = ("errors", "kernels")
"""Public modules: attributes without an import of their own, and no part of `import *`."""

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS, *_SUBMODULES})
