"""Runs an op on Triton with every tensor between guard zones, which must stay as they were."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch

from sdengine.kernels.programs.program import run_op
from sdengine.kernels.registry import get_op

GUARD = 2048  # elements on either side: a block of lanes without its mask stays inside
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Guards:
    """Copies tensors into the middle of larger ones on the device that runs the kernels."""

    def __init__(self) -> None:
        self._zones: list[tuple[str, torch.Tensor, torch.Tensor]] = []

    def place(self, name: str, value: Any) -> Any:
        """`value` on the device; tensors guarded, dataclasses field by field, the rest as it is."""
        if is_dataclass(value) and not isinstance(value, type):
            placed = {f.name: getattr(value, f.name) for f in fields(value)}
            return replace(value, **{k: self.place(f"{name}.{k}", v) for k, v in placed.items()})
        if not isinstance(value, torch.Tensor):
            return value
        size = value.numel()
        fill = float("nan") if value.is_floating_point() else -0x5A5A
        room = torch.full((size + 2 * GUARD,), fill, dtype=value.dtype)
        room[GUARD : GUARD + size] = value.reshape(-1)
        room = room.to(DEVICE)
        self._zones += [(name, room, room.clone())]
        return room[GUARD : GUARD + size].view(value.shape)

    def check(self, outputs: tuple[str, ...]) -> None:
        """Guard zones hold what they held, and so does every tensor that is not an output."""
        for name, room, before in self._zones:
            now, then = bits(room), bits(before)
            if name in outputs:
                for zone in (slice(None, GUARD), slice(-GUARD, None)):
                    assert torch.equal(now[zone], then[zone]), f"{name}: written out of bounds"
            else:
                assert torch.equal(now, then), f"{name}: written, but it is an input"


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's bytes, so that NaN equals itself."""
    return tensor.contiguous().view(-1).view(torch.uint8)


def run_guarded(op: str, args: dict[str, Any], scratch: tuple[str, ...] = ()) -> dict[str, Any]:
    """Arguments as they are after the op ran on copies of them, on the CPU.

    Args:
        op: Name of the op.
        args: Its arguments on the CPU; left alone.
        scratch: Arguments that may be written without being outputs.
    """
    guards = Guards()
    placed = {name: guards.place(name, value) for name, value in args.items()}
    run_op(op, "triton", **placed)
    guards.check((*get_op(op).outputs, *scratch))
    return {k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in placed.items()}


def as_dtype(args: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Copies of the arguments, floating-point tensors in another dtype."""

    def copy(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return value.to(dtype, copy=True) if value.is_floating_point() else value.clone()

    return {name: copy(value) for name, value in args.items()}


def assert_within_twice_plain(
    op: str, args: dict[str, Any], got: dict[str, Any], output: str, slack_ulps: int = 1
) -> None:
    """At most twice the error that plain torch makes in float32, measured against float64."""
    wide, plain = as_dtype(args, torch.float64), as_dtype(args, torch.float32)
    get_op(op).reference(**wide)
    get_op(op).reference(**plain)
    error = (got[output] - wide[output]).abs().max()
    ulp = wide[output].abs().max() * 2.0**-23
    assert error <= 2 * (plain[output] - wide[output]).abs().max() + slack_ulps * ulp
