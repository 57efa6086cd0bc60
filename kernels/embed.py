"""embed: gathers embedding rows as float32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from sdengine.kernels.backends import triton_kernel
from sdengine.kernels.cpu_library import load_cpu
from sdengine.kernels.number_format import NUMBER_FORMATS, format_code
from sdengine.kernels.spec import Case, Op, address, expect_tensor

NAME = "embed"


def check(
    *, tokens: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, num_rows: torch.Tensor
) -> None:
    """Contract.

    Args:
        tokens: [N] int32, each in [0, V).
        weight: [V, E] float32, bfloat16 or float16.
        out: [N, E] float32, written.
        num_rows: [1] int32, rows to gather.
    """
    expect_tensor(NAME, "weight", weight, NUMBER_FORMATS, (None, None))
    expect_tensor(NAME, "tokens", tokens, torch.int32, (None,))
    expect_tensor(NAME, "out", out, torch.float32, (tokens.shape[0], weight.shape[1]))
    expect_tensor(NAME, "num_rows", num_rows, torch.int32, (1,))


def reference(
    *, tokens: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, num_rows: torch.Tensor
) -> None:
    """out[r] = weight[tokens[r]] for r < num_rows."""
    n = int(num_rows)
    out[:n] = weight[tokens[:n].long()].float()


def cpu(
    native: Any,
    *,
    tokens: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    num_rows: torch.Tensor,
) -> None:
    """Appends the native launch."""
    load_cpu().embed(
        native,
        address(tokens),
        address(weight),
        format_code(weight.dtype),
        address(out),
        address(num_rows),
        weight.shape[1],
    )


def bench_cases() -> Iterator[Case]:
    """One row and a tree's worth of rows."""
    for rows in (1, 16, 64):
        yield bench_case(rows, 32000, 2048)


def bench_case(rows: int, vocab: int, width: int) -> Case:
    """Random rows of a bfloat16 table."""
    args = {
        "tokens": torch.randint(0, vocab, (rows,), dtype=torch.int32),
        "weight": torch.randn(vocab, width).bfloat16(),
        "out": torch.empty(rows, width),
        "num_rows": torch.tensor([rows], dtype=torch.int32),
    }
    return Case(f"N={rows} V={vocab} E={width} bf16", args, bytes_moved=rows * width * 6)


OP = Op(NAME, check, reference, ("out",), cpu, triton_kernel(NAME), bench_cases)
