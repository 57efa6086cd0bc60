"""Runs ops on the CUDA device with tensors of the CPU, and brings back what was written."""

from __future__ import annotations

import os
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import torch

from sdengine.kernels import backends
from sdengine.kernels.draft_topk import device_scratch_size
from sdengine.kernels.programs.program import run_op
from sdengine.kernels.registry import get_op
from sdengine.kernels.torch_library import device_backend
from sdengine.kernels.tree_verify import walk_scratch_size
from tests.native.cuda_threads import threads_library

IS_DRY_RUN = os.environ.get("GPU_TESTS_DRY_RUN") == "1"
NEEDS_A_DEVICE = "needs_a_device"
DEVICE = torch.device("cpu" if IS_DRY_RUN else "cuda")
# Weights and caches: the interpreter's arithmetic on bfloat16 is wrong.
DTYPES = [*([] if IS_DRY_RUN else [torch.bfloat16]), torch.float32, torch.float16]
# Its products add up in an order that depends on the tile, whose width is one in float32 alone.
EXACT_DTYPES = [torch.float32] if IS_DRY_RUN else DTYPES
needs_a_device = pytest.mark.needs_a_device


def why_not() -> str | None:
    """Why the tests cannot run here; None when they can."""
    if not torch.cuda.is_available():
        return "no CUDA device: torch finds none"
    return backends.why_unavailable("triton")


class Mover:
    """Moves arguments to the device; a tensor that is given twice stays one tensor."""

    def __init__(self) -> None:
        self._pairs: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def place(self, value: Any) -> Any:
        """The argument on the device, structs field by field."""
        if isinstance(value, torch.Tensor):
            copy = value.clone() if IS_DRY_RUN else value.to(DEVICE)
            return self._pairs.setdefault(id(value), (value, copy))[1]
        if is_dataclass(value) and not isinstance(value, type):
            placed = {field.name: self.place(getattr(value, field.name)) for field in fields(value)}
            return replace(value, **placed)
        return value

    def bring_back(self) -> None:
        """Copies every tensor into the one it was made of."""
        for host, device in self._pairs.values():
            host.copy_(device)


def run_on_device(op: str, backend: str | None = None, pool: object = None, **args: Any) -> None:
    """`run_op` for tensors of the CPU, on the device.

    Args:
        op: name of the op.
        backend: "triton" or "cuda"; anything else takes what the operators of torch take.
        pool: not used; there so that tests of the CPU's kernels can run on a device.
        args: the op's arguments; outputs are written in place.
    """
    chosen = backend if backend in ("triton", "cuda") else device_backend(get_op(op))
    assert chosen is not None, f"{op} has no device kernel"
    if op == "tree_verify" and args.get("target_tokens") is None:
        size = walk_scratch_size(args["tree"].batch_size)
        args["scratch"] = torch.full((size,), -1, dtype=torch.int64, device=DEVICE)
    if op == "draft_topk" and args.get("scratch") is None:
        size = device_scratch_size(len(args["logits"]), args["out_tokens"].shape[1])
        args["scratch"] = torch.full((size,), -1, dtype=torch.int64, device=DEVICE)
    mover = Mover()
    launch(op, chosen, {name: mover.place(value) for name, value in args.items()})
    mover.bring_back()


def launch(op: str, backend: str, args: dict[str, Any]) -> None:
    """One launch on tensors of the device."""
    if backend == "cuda":
        require_cuda_library()
    if backend == "cuda" and IS_DRY_RUN:
        get_op(op).check(**args)
        threads_library().launch(op, 0, **args)
    else:
        run_op(op, backend, **args)


def require_cuda_library() -> None:
    """Skips a test that needs the CUDA library where it was not built."""
    reason = None if IS_DRY_RUN else backends.why_unavailable("cuda")
    if reason is not None:
        pytest.skip(reason)


def to_device(args: dict[str, Any]) -> dict[str, Any]:
    """Copies of the arguments on the device."""
    mover = Mover()
    return {name: mover.place(value) for name, value in args.items()}
