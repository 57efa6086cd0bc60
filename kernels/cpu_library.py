"""The CPU extension: how it is loaded, why it cannot be used here, and how a launch is appended."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from sdengine.errors import BackendUnavailable, ConfigError
from sdengine.kernels.launches import launch_of


def load_cpu() -> ModuleType:
    """The compiled CPU extension.

    Raises:
        BackendUnavailable: It was not built, or cannot be loaded here.
        ConfigError: SDENGINE_ISA asks for instructions that this machine or the build lacks.
    """
    try:
        from sdengine.kernels import _cpu
    except ImportError as error:
        raise BackendUnavailable(
            f"backend 'cpu': the compiled extension is missing ({error}); install a C++17 "
            "compiler and reinstall sdengine, or choose backend 'reference'"
        ) from error
    try:
        _cpu.selected_isa()
    except RuntimeError as error:
        raise ConfigError(f"{error}; unset SDENGINE_ISA, or lower it") from None
    return _cpu


def cpu_op(op: str) -> Callable[..., None]:
    """The `Op.cpu` of one of `STRUCT_OPS`."""

    def append(native: Any, **args: Any) -> None:
        extension = load_cpu()
        launch = launch_of(op, args, extension.struct_size(op), "cpu")
        extension.append_struct(native, op, bytes(launch.arguments))

    return append
