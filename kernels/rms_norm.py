"""rms_norm: root-mean-square normalisation of rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from sdengine.kernels.backends import triton_kernel
from sdengine.kernels.cpu_library import load_cpu
from sdengine.kernels.number_format import NUMBER_FORMATS
from sdengine.kernels.spec import (
    Case,
    Op,
    address,
    expect_float32,
    expect_tensor,
)

NAME = "rms_norm"


def check(
    *, x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, num_rows: torch.Tensor, eps: float
) -> None:
    """Contract.

    Args:
        x: [N, E] float32.
        weight: [E] float32.
        out: [N, E] float32, or 16 bits on a GPU, written; may be `x` itself.
        num_rows: [1] int32.
        eps: Added to the mean square.
    """
    expect_tensor(NAME, "x", x, torch.float32, (None, None))
    expect_tensor(NAME, "weight", weight, torch.float32, (x.shape[1],))
    expect_tensor(NAME, "out", out, NUMBER_FORMATS, tuple(x.shape))
    expect_tensor(NAME, "num_rows", num_rows, torch.int32, (1,))


def reference(
    *, x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, num_rows: torch.Tensor, eps: float
) -> None:
    """out[r] = x[r] / sqrt(mean(x[r]^2) + eps) * weight for r < num_rows."""
    n = int(num_rows)
    out[:n] = normalised(x[:n], weight, eps)


def normalised(rows: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Rows [..., E] over their root mean square, times the weight [E], in torch."""
    return rows * torch.rsqrt(rows.square().mean(-1, keepdim=True) + eps) * weight


def cpu(
    native: Any,
    *,
    x: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    num_rows: torch.Tensor,
    eps: float,
) -> None:
    """Appends the native launch."""
    expect_float32(NAME, out=out)
    load_cpu().rms_norm(
        native, address(x), address(weight), address(out), address(num_rows), x.shape[1], eps
    )


def bench_cases() -> Iterator[Case]:
    """A small draft model's row, a 1B model's row, a tree, a prefill chunk."""
    for rows, width in ((1, 256), (1, 2048), (64, 2048), (512, 2048)):
        yield bench_case(rows, width)


def bench_case(rows: int, width: int) -> Case:
    """Random rows."""
    args = {
        "x": torch.randn(rows, width),
        "weight": torch.randn(width),
        "out": torch.empty(rows, width),
        "num_rows": torch.tensor([rows], dtype=torch.int32),
        "eps": 1e-5,
    }
    return Case(f"N={rows} E={width}", args, rows * width * 8, rows * width * 4)


OP = Op(NAME, check, reference, ("out",), cpu, triton_kernel(NAME), bench_cases)
