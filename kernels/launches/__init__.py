"""Launches whose arguments are a struct of csrc/include/sdengine, the same for the CPU and CUDA.

Per op one module with `launch_of`, from the op's checked arguments to the struct; what runs it
takes the struct whole, and knows its size.
"""

from __future__ import annotations

import ctypes
from importlib import import_module
from typing import Any

from sdengine.errors import BackendUnavailable
from sdengine.kernels.launches.structs import Launch

STRUCT_OPS = (
    "begin_step",
    "build_rows",
    "commit_plan",
    "gather_pending",
    "kv_compact",
    "ngram_match",
    "timestamp",
    "tree_expand",
    "tree_select",
    "tree_verify",
)


def launch_of(op: str, args: dict[str, Any], size: int, backend: str) -> Launch:
    """The launch of an op's checked arguments.

    Args:
        op: one of STRUCT_OPS.
        args: as for the op.
        size: bytes of the struct that the compiled code takes; -1: it does not know the op.
        backend: "cpu" or "cuda", whose code that is.

    Raises:
        BackendUnavailable: it was built from other sources.
    """
    launch = import_module(f"sdengine.kernels.launches.{op}").launch_of(**args)
    assert isinstance(launch, Launch)
    own_size = ctypes.sizeof(launch.arguments)
    if own_size != size:
        raise BackendUnavailable(
            f"backend {backend!r}: {op} takes {size} bytes of arguments, this version has "
            f"{own_size}; rebuild it with `make native`"
        )
    return launch
