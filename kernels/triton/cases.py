"""Arguments of the ops' microbenchmark cases as a GPU takes them: on the device, in its layouts."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch

from sdengine.kernels.dense_weight import DenseWeight
from sdengine.kernels.packed_weight import PackedWeight


def moved(value: Any, device: str | torch.device) -> Any:
    """An argument on the device; what holds no tensor is returned as it is."""
    if isinstance(value, PackedWeight):
        return DenseWeight(value.unpack().to(device), value.is_gate_up)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(
            value, **{f.name: moved(getattr(value, f.name), device) for f in fields(value)}
        )
    return value.to(device) if isinstance(value, torch.Tensor) else value
