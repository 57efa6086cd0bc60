"""timestamp: notes when a program reaches this launch, so that one replay can be timed in parts."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic_ns

import torch

from sdengine.kernels.cpu_library import cpu_op
from sdengine.kernels.cuda_library import cuda_op
from sdengine.kernels.spec import Case, Op, expect_tensor

NAME = "timestamp"


def check(*, out_ns: torch.Tensor) -> None:
    """Contract.

    Args:
        out_ns: [1] int64, written: nanoseconds on a monotonic clock with an arbitrary zero.
    """
    expect_tensor(NAME, "out_ns", out_ns, torch.int64, (1,))


def reference(*, out_ns: torch.Tensor) -> None:
    """Reads the clock."""
    out_ns[0] = monotonic_ns()


def bench_cases() -> Iterator[Case]:
    """What the launch itself costs."""
    yield Case("-", {"out_ns": torch.zeros(1, dtype=torch.int64)}, bytes_moved=8)


CUDA = {"cuda": cuda_op(NAME, check)}
OP = Op(NAME, check, reference, ("out_ns",), cpu_op(NAME), CUDA, bench_cases)
