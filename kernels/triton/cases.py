"""The ops' microbenchmark cases as a GPU takes them: on the device, in its layouts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch

from sdengine.kernels.dense_weight import DenseWeight
from sdengine.kernels.packed_weight import PackedWeight
from sdengine.kernels.registry import get_op
from sdengine.kernels.spec import Args, Case
from sdengine.kernels.tree_attention import split_scratch_floats


def device_cases(op: str, device: str | torch.device) -> Iterator[Case]:
    """The cases of `op`; weights dense, and scratch with which attention needs one pass."""
    cases = get_op(op).bench_cases
    assert cases is not None, f"op {op!r} has no microbenchmark cases"
    for case in cases():
        args = {name: moved(value, device) for name, value in case.args.items()}
        if op == "tree_attention":
            args["scratch"] = one_pass_scratch(args)
        yield replace(case, args=args)


def moved(value: Any, device: str | torch.device) -> Any:
    """An argument on the device; what holds no tensor is returned as it is."""
    if isinstance(value, PackedWeight):
        return DenseWeight(value.unpack().to(device), value.is_gate_up)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(
            value, **{f.name: moved(getattr(value, f.name), device) for f in fields(value)}
        )
    return value.to(device) if isinstance(value, torch.Tensor) else value


def one_pass_scratch(args: Args) -> torch.Tensor:
    """Scratch that holds the partial results of all rows, whatever their context."""
    rows, capacity = args["qkv"].shape[0], args["block_tables"].shape[1] * args["kv_cache"].shape[3]
    size = split_scratch_floats(rows, args["num_heads"], args["head_dim"], capacity)
    return torch.empty(size, device=args["qkv"].device)
