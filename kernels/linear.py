"""linear: x W^T with a packed weight, and RMS norm, bias, residual, row gather or SiLU gate in the
same pass.

Row-invariant: the bits of an output row depend on its input row and the weight alone, never on how
many other rows, row groups or threads there are. Activations are rounded to the weights' format on
tensor cores, and to bfloat16 beside such weights on a CPU with dot products of it (`avx512_bf16`);
everywhere else they stay float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from sdengine.kernels.backends import triton_kernel
from sdengine.kernels.cpu_library import load_cpu
from sdengine.kernels.dense_weight import DenseWeight
from sdengine.kernels.number_format import NUMBER_FORMATS, format_code, short_name
from sdengine.kernels.packed_weight import PackedWeight, pack_weight
from sdengine.kernels.rms_norm import normalised
from sdengine.kernels.spec import (
    Case,
    Op,
    address,
    expect,
    expect_float32,
    expect_tensor,
)

NAME = "linear"

ACTIVATIONS = (None, "silu_gate")


def check(
    *,
    x: torch.Tensor,
    weight: PackedWeight | DenseWeight,
    out: torch.Tensor,
    num_rows: torch.Tensor,
    bias: torch.Tensor | None = None,
    accumulate: bool = False,
    rows: torch.Tensor | None = None,
    activation: str | None = None,
    norm: torch.Tensor | None = None,
    eps: float = 0.0,
    scratch: torch.Tensor | None = None,
    counters: torch.Tensor | None = None,
) -> None:
    """Contract.

    Args:
        x: [N, K] float32, or rounded as the kernel would round it: 16 bits on a GPU, on a CPU
            `weight.input_dtype`, without `norm` ([any, K] with `rows`).
        weight: W [M, K]: a PackedWeight for the CPU's kernel, a DenseWeight (row-major, as in a
            checkpoint) for a GPU's; the reference takes both.
        out: [N, M] float32, or 16 bits on a GPU, written; [N, M / 2] with activation "silu_gate",
            also bfloat16 on a CPU.
        num_rows: [1] int32, rows to compute; at most N.
        bias: [M] float32, gate first, then up, with "silu_gate".
        accumulate: Add to `out` (the residual) instead of overwriting it.
        rows: [N] int32, output row i is made from x[rows[i]]; None is the identity.
        activation: "silu_gate": W was packed with `interleave_gate_up` (or is dense with
            `is_gate_up`), and out = silu(x gate^T) * (x up^T).
        norm: [K] float32: rows of x are normalised first, with this weight, as by `rms_norm`. Every
            worker of a CPU does it for itself, which costs less than meeting the others; a GPU's
            kernel refuses it.
        eps: Of `norm`: added to the mean square.
        scratch: [any] float32, working memory of a GPU's kernel, which computes parts of K side by
            side where it has room for them; the result is the same without. Others need none.
        counters: [any] int32, zeros, and zeros again afterwards: with `scratch`, which programs of
            such a kernel have ended. Launches that may overlap need counters of their own.
    """
    expect(
        NAME,
        isinstance(weight, PackedWeight | DenseWeight),
        f"weight: expected PackedWeight or DenseWeight, got {type(weight).__name__}",
    )
    expect(
        NAME,
        activation in ACTIVATIONS,
        f"activation: expected one of {ACTIVATIONS}, got {activation!r}",
    )
    gated = activation == "silu_gate"
    expect(NAME, gated == weight.is_gate_up, f"activation: got {activation!r} for {_kind(weight)}")
    expect(
        NAME,
        not (gated and accumulate),
        "accumulate: not available with activation 'silu_gate'",
    )
    expect_tensor(NAME, "x", x, NUMBER_FORMATS, (None, weight.num_inputs))
    capacity = x.shape[0]
    if rows is not None:
        capacity = expect_tensor(NAME, "rows", rows, torch.int32, (None,)).shape[0]
    width = weight.num_outputs // 2 if gated else weight.num_outputs
    expect_tensor(NAME, "out", out, NUMBER_FORMATS, (capacity, width))
    expect_tensor(NAME, "num_rows", num_rows, torch.int32, (1,))
    if bias is not None:
        expect_tensor(NAME, "bias", bias, torch.float32, (weight.num_outputs,))
    if norm is not None:
        expect_tensor(NAME, "norm", norm, torch.float32, (weight.num_inputs,))
    if scratch is not None:
        expect_tensor(NAME, "scratch", scratch, torch.float32, (None,))
    if counters is not None:
        expect_tensor(NAME, "counters", counters, torch.int32, (None,))


def _kind(weight: PackedWeight | DenseWeight) -> str:
    if isinstance(weight, DenseWeight):
        return f"a dense weight with is_gate_up={weight.is_gate_up}"
    return (
        "a weight packed with interleave_gate_up"
        if weight.is_gate_up
        else "a weight packed without interleave_gate_up"
    )


def reference(
    *,
    x: torch.Tensor,
    weight: PackedWeight | DenseWeight,
    out: torch.Tensor,
    num_rows: torch.Tensor,
    bias: torch.Tensor | None = None,
    accumulate: bool = False,
    rows: torch.Tensor | None = None,
    activation: str | None = None,
    norm: torch.Tensor | None = None,
    eps: float = 0.0,
    scratch: torch.Tensor | None = None,
    counters: torch.Tensor | None = None,
) -> None:
    """out[i] (+)= x[rows[i]] W^T + bias, or silu(gate) * up of it, for i < num_rows."""
    n = int(num_rows)
    chosen = x[:n] if rows is None else x[rows[:n].long()]
    if norm is not None:
        chosen = normalised(chosen.float(), norm, eps)
    y = torch.nn.functional.linear(chosen.float(), weight.unpack().float(), bias)
    if activation == "silu_gate":
        gate, up = y.chunk(2, dim=-1)
        y = torch.nn.functional.silu(gate) * up
    out[:n] = out[:n] + y if accumulate else y


def cpu(
    native: Any,
    *,
    x: torch.Tensor,
    weight: PackedWeight | DenseWeight,
    out: torch.Tensor,
    num_rows: torch.Tensor,
    bias: torch.Tensor | None = None,
    accumulate: bool = False,
    rows: torch.Tensor | None = None,
    activation: str | None = None,
    norm: torch.Tensor | None = None,
    eps: float = 0.0,
    scratch: torch.Tensor | None = None,
    counters: torch.Tensor | None = None,
) -> None:
    """Appends the native launch."""
    expect(
        NAME,
        isinstance(weight, PackedWeight),
        f"weight: expected a PackedWeight for backend 'cpu', got {type(weight).__name__}",
    )
    assert isinstance(weight, PackedWeight)
    _expect_cpu_formats(x, weight, out, norm, activation)
    load_cpu().linear(
        native,
        address(x),
        format_code(x.dtype),
        address(weight.storage),
        format_code(weight.dtype),
        address(out),
        format_code(out.dtype),
        address(num_rows),
        address(bias),
        address(rows),
        address(norm),
        eps,
        weight.num_inputs,
        weight.num_outputs,
        accumulate,
        activation == "silu_gate",
    )


def _expect_cpu_formats(
    x: torch.Tensor,
    weight: PackedWeight,
    out: torch.Tensor,
    norm: torch.Tensor | None,
    activation: str | None,
) -> None:
    if x.dtype != weight.input_dtype or norm is not None:
        expect_float32(NAME, x=x)
    if not (out.dtype == torch.bfloat16 and activation == "silu_gate"):
        expect_float32(NAME, out=out)


def bench_case(weight: PackedWeight, num_rows: int, label: str) -> Case:
    """`num_rows` random rows through `weight`."""
    gated = weight.is_gate_up
    width = weight.num_outputs // 2 if gated else weight.num_outputs
    args: dict[str, Any] = {
        "x": torch.randn(num_rows, weight.num_inputs),
        "weight": weight,
        "out": torch.empty(num_rows, width),
        "num_rows": torch.tensor([num_rows], dtype=torch.int32),
        "activation": "silu_gate" if gated else None,
    }
    traffic = weight.nbytes + 4 * num_rows * (weight.num_inputs + width)
    return Case(label, args, traffic, 2 * num_rows * weight.num_inputs * weight.num_outputs)


def bench_cases() -> Iterator[Case]:
    """A large matrix that lives in DRAM and two of a small model that live in the cache."""
    shapes = ((2048, 11264, True), (256, 1408, True), (256, 512, False))
    for num_inputs, num_outputs, gated in shapes:
        dense = torch.randn(num_outputs, num_inputs) / num_inputs**0.5
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            weight = pack_weight(dense, dtype, interleave_gate_up=gated)
            for rows in (1, 8, 16, 64):
                label = f"N={rows} K={num_inputs} M={num_outputs} {short_name(dtype)}"
                yield bench_case(weight, rows, label)


OP = Op(NAME, check, reference, ("out",), cpu, triton_kernel(NAME), bench_cases)
