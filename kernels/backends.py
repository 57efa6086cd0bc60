"""Which implementations exist on this machine, and why the others do not. Nothing falls back
silently."""

from __future__ import annotations

from types import ModuleType

from sdengine.errors import BackendUnavailable, ConfigError
from sdengine.kernels import cuda_library


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


def available() -> dict[str, str | None]:
    """Backend name -> None when usable, otherwise the reason it is not."""
    reasons: dict[str, str | None] = {"reference": None}
    try:
        load_cpu()
        reasons["cpu"] = None
    except BackendUnavailable as error:
        reasons["cpu"] = str(error)
    reasons["cuda"] = cuda_library.why_unavailable()
    return reasons
