"""silu_and_mul: the gated activation of a feed-forward block, float32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from sdengine.kernels.backends import triton_kernel
from sdengine.kernels.cpu_library import load_cpu
from sdengine.kernels.spec import Case, Op, address, expect, expect_tensor

NAME = "silu_and_mul"


def check(*, x: torch.Tensor, out: torch.Tensor, num_rows: torch.Tensor) -> None:
    """Contract.

    Args:
        x: [N, 2F] float32: gate, then up.
        out: [N, F] float32, written.
        num_rows: [1] int32.
    """
    expect_tensor(NAME, "x", x, torch.float32, (None, None))
    expect(NAME, x.shape[1] % 2 == 0, f"x: expected an even width, got {x.shape[1]}")
    expect_tensor(NAME, "out", out, torch.float32, (x.shape[0], x.shape[1] // 2))
    expect_tensor(NAME, "num_rows", num_rows, torch.int32, (1,))


def reference(*, x: torch.Tensor, out: torch.Tensor, num_rows: torch.Tensor) -> None:
    """out[r] = gate / (1 + exp(-gate)) * up for r < num_rows."""
    n = int(num_rows)
    gate, up = x[:n].chunk(2, dim=-1)
    out[:n] = torch.nn.functional.silu(gate) * up


def cpu(native: Any, *, x: torch.Tensor, out: torch.Tensor, num_rows: torch.Tensor) -> None:
    """Appends the native launch."""
    load_cpu().silu_and_mul(native, address(x), address(out), address(num_rows), out.shape[1])


def bench_cases() -> Iterator[Case]:
    """A small draft model's row, a 1B model's row, a tree, a prefill chunk."""
    for rows, width in ((1, 256), (1, 5632), (64, 5632), (512, 5632)):
        yield bench_case(rows, width)


def bench_case(rows: int, width: int) -> Case:
    """Random rows; an exponential counts as 20 operations, as the polynomial has."""
    args = {
        "x": torch.randn(rows, 2 * width),
        "out": torch.empty(rows, width),
        "num_rows": torch.tensor([rows], dtype=torch.int32),
    }
    return Case(f"N={rows} F={width}", args, rows * width * 12, rows * width * 24)


OP = Op(NAME, check, reference, ("out",), cpu, triton_kernel(NAME), bench_cases)
