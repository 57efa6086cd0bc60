"""sample: one token per row of logits, argmax of logit / T + Gumbel noise over the allowed set.

The noise is keyed by (request seed, position of the token being drawn), so a row's token does not
depend on who else is in the batch, on speculation, on slicing or on the instruction set. Filters
are thresholds: equal logits stay together.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from sdengine.kernels import noise
from sdengine.kernels.backends import triton_kernel
from sdengine.kernels.cpu_library import load_cpu
from sdengine.kernels.row_plan import plan_row
from sdengine.kernels.sampling_tables import SamplingTables, expect_sampling_tables
from sdengine.kernels.spec import Case, Op, address, addresses, expect_tensor

NAME = "sample"


def check(
    *,
    logits: torch.Tensor,
    row_seq: torch.Tensor,
    positions: torch.Tensor,
    sampling: SamplingTables,
    out_tokens: torch.Tensor,
    num_rows: torch.Tensor,
    rows: torch.Tensor | None = None,
) -> None:
    """Contract.

    Args:
        logits: [N, V] float32. -inf is a masked token.
        row_seq: [N'] int32, sequence of each packed row.
        positions: [N'] int32, position of each packed row's token; the drawn one has position + 1.
        sampling: SamplingTables [B], read.
        out_tokens: [N] int32, written; -1 for a row with NaN or +inf, or all -inf.
        num_rows: [1] int32, rows of logits to sample.
        rows: [N] int32, packed row that row r of logits belongs to; None: row r itself.
    """
    expect_tensor(NAME, "logits", logits, torch.float32, (None, None))
    n = logits.shape[0]
    packed = (n,) if rows is None else (None,)
    expect_tensor(NAME, "row_seq", row_seq, torch.int32, packed)
    expect_tensor(NAME, "positions", positions, torch.int32, tuple(row_seq.shape))
    expect_sampling_tables(NAME, "sampling", sampling)
    expect_tensor(NAME, "out_tokens", out_tokens, torch.int32, (n,))
    expect_tensor(NAME, "num_rows", num_rows, torch.int32, (1,))
    if rows is not None:
        expect_tensor(NAME, "rows", rows, torch.int32, (n,))


def reference(
    *,
    logits: torch.Tensor,
    row_seq: torch.Tensor,
    positions: torch.Tensor,
    sampling: SamplingTables,
    out_tokens: torch.Tensor,
    num_rows: torch.Tensor,
    rows: torch.Tensor | None = None,
) -> None:
    """Row by row, over the whole vocabulary; the same bits as the kernel."""
    for r in range(int(num_rows)):
        packed = r if rows is None else int(rows[r])
        b = int(row_seq[packed])
        plan = plan_row(logits[r], *sampling.filters(b))
        out_tokens[r] = plan.argmax
        if plan.is_greedy:
            continue
        seed, position = int(sampling.seeds[b]), int(positions[packed]) + 1
        drawn = noise.gumbel(seed, position, noise.TARGET, 0, logits.shape[1])
        scores = torch.where(plan.is_allowed, plan.scaled + drawn, float("-inf"))
        out_tokens[r] = (scores == scores.max()).nonzero()[0]


def cpu(
    native: Any,
    *,
    logits: torch.Tensor,
    row_seq: torch.Tensor,
    positions: torch.Tensor,
    sampling: SamplingTables,
    out_tokens: torch.Tensor,
    num_rows: torch.Tensor,
    rows: torch.Tensor | None = None,
) -> None:
    """Appends the native launch."""
    inputs = map(address, (logits, rows, row_seq, positions))
    outputs = map(address, (out_tokens, num_rows))
    load_cpu().sample(native, *inputs, *addresses(sampling), *outputs, *logits.shape)


def bench_cases() -> Iterator[Case]:
    """Small and large vocabularies; no filter, top-k, top-p."""
    for rows, vocab, top_k, top_p in (
        (1, 2048, 0, 1.0),
        (16, 2048, 0, 1.0),
        (1, 32000, 0, 1.0),
        (16, 128256, 0, 1.0),
        (16, 128256, 50, 1.0),
        (16, 128256, 0, 0.95),
    ):
        yield bench_case(rows, vocab, top_k, top_p)


def bench_case(rows: int, vocab: int, top_k: int = 0, top_p: float = 1.0) -> Case:
    """Rows of one sequence at temperature 0.8."""
    args = {
        "logits": torch.randn(rows, vocab) * 3,
        "row_seq": torch.zeros(rows, dtype=torch.int32),
        "positions": torch.arange(rows, dtype=torch.int32),
        "sampling": SamplingTables(
            temperature=torch.tensor([0.8]),
            top_k=torch.tensor([top_k], dtype=torch.int32),
            top_p=torch.tensor([top_p]),
            min_p=torch.tensor([0.0]),
            seeds=torch.tensor([1]),
        ),
        "out_tokens": torch.empty(rows, dtype=torch.int32),
        "num_rows": torch.tensor([rows], dtype=torch.int32),
    }
    label = f"N={rows} V={vocab} T=0.8 k={top_k} p={top_p}"
    return Case(label, args, bytes_moved=rows * vocab * 4)


OP = Op(NAME, check, reference, ("out_tokens",), cpu, triton_kernel(NAME), bench_cases)
