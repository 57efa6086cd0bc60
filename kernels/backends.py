"""Which implementations exist on this machine, and why the others do not. Nothing falls back
silently."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from typing import Any

from sdengine.errors import BackendUnavailable
from sdengine.kernels import cuda_library
from sdengine.kernels.cpu_library import load_cpu

BACKENDS = ("reference", "cpu", "triton", "cuda")


def require_triton() -> None:
    """Makes sure that Triton kernels can run here.

    Raises:
        BackendUnavailable: No triton package, neither a CUDA device nor the interpreter, or an
            assembler that miscompiles.
    """
    if importlib.util.find_spec("triton") is None:
        raise BackendUnavailable(
            "backend 'triton': the package triton is not installed; torch builds for CUDA bring "
            "it, or choose backend 'cpu' or 'reference'"
        )
    import torch

    if is_interpreted():
        return
    if not torch.cuda.is_available():
        raise BackendUnavailable(
            "backend 'triton': torch finds no CUDA device, and TRITON_INTERPRET=1 (slow, for "
            "tests) is not set; choose backend 'cpu' or 'reference'"
        )
    from sdengine.kernels.triton.assembler import use_sound_assembler

    use_sound_assembler()


def is_interpreted() -> bool:
    """Whether Triton kernels of this process run in its interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def triton_kernel(op: str) -> Mapping[str, Callable[..., None]]:
    """The `Op.backends` of an op with a Triton kernel, which is imported at its first launch."""

    def run(**args: Any) -> None:
        from sdengine.kernels.triton.launch import run_op

        run_op(op, args)

    return {"triton": run}


def why_unavailable(backend: str) -> str | None:
    """None when one of BACKENDS is usable, otherwise the reason it is not; asks no other."""
    if backend == "cuda":
        return cuda_library.why_unavailable()
    require = {"reference": lambda: None, "cpu": load_cpu, "triton": require_triton}[backend]
    try:
        require()
    except BackendUnavailable as error:
        return str(error)
    return None


def available() -> dict[str, str | None]:
    """Backend name -> None when usable, otherwise the reason it is not."""
    return {name: why_unavailable(name) for name in BACKENDS}
