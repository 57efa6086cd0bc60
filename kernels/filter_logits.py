"""filter_logits: masks the tokens that a sequence's top-k, top-p and min-p leave out, in place.

For a draft's logits: a token that lies in the tail of the draft's own law hardly ever lies within
the target's filters, so it would be drafted in vain.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from sdengine.kernels.cpu_library import load_cpu
from sdengine.kernels.row_plan import plan_row
from sdengine.kernels.sample import bench_case as sample_case
from sdengine.kernels.sampling_tables import SamplingTables, expect_sampling_tables
from sdengine.kernels.spec import Case, Op, address, addresses, expect_tensor

NAME = "filter_logits"


def check(
    *,
    logits: torch.Tensor,
    row_seq: torch.Tensor,
    sampling: SamplingTables,
    num_rows: torch.Tensor,
    rows: torch.Tensor | None = None,
) -> None:
    """Contract. A row stays as it is where its sequence is greedy or has no filters, and where
    nothing can be drawn (NaN, +inf, all -inf).

    Args:
        logits: [N, V] float32, changed in place: -inf for tokens that are left out, as `sample`
            would.
        row_seq: [N'] int32, sequence of each packed row.
        sampling: SamplingTables [B], read; seeds are not.
        num_rows: [1] int32.
        rows: [N] int32, packed row that row r of logits belongs to; None: row r itself.
    """
    n, _ = expect_tensor(NAME, "logits", logits, torch.float32, (None, None)).shape
    expect_tensor(NAME, "row_seq", row_seq, torch.int32, (n if rows is None else None,))
    expect_sampling_tables(NAME, "sampling", sampling)
    expect_tensor(NAME, "num_rows", num_rows, torch.int32, (1,))
    if rows is not None:
        expect_tensor(NAME, "rows", rows, torch.int32, (n,))


def reference(
    *,
    logits: torch.Tensor,
    row_seq: torch.Tensor,
    sampling: SamplingTables,
    num_rows: torch.Tensor,
    rows: torch.Tensor | None = None,
) -> None:
    """Row by row."""
    for r in range(int(num_rows)):
        b = int(row_seq[r if rows is None else int(rows[r])])
        plan = plan_row(logits[r], *sampling.filters(b))
        if not plan.is_greedy:
            logits[r, ~plan.is_allowed] = float("-inf")


def cpu(
    native: Any,
    *,
    logits: torch.Tensor,
    row_seq: torch.Tensor,
    sampling: SamplingTables,
    num_rows: torch.Tensor,
    rows: torch.Tensor | None = None,
) -> None:
    """Appends the native launch."""
    load_cpu().filter_logits(
        native,
        *map(address, (logits, rows, row_seq)),
        *addresses(sampling),
        address(num_rows),
        logits.shape[1],
    )


def bench_cases() -> Iterator[Case]:
    """Rows of a draft layer, with the filters that checkpoints ask for."""
    for rows, vocab, top_k, top_p in (
        (3, 2048, 0, 1.0),
        (3, 2048, 50, 0.95),
        (3, 32000, 50, 0.95),
        (3, 128256, 0, 0.9),
    ):
        case = sample_case(rows, vocab, top_k, top_p)
        names = ("logits", "row_seq", "sampling", "num_rows")
        args = {name: case.args[name] for name in names}
        is_neutral = top_k == 0 and top_p == 1.0
        yield Case(case.label, args, bytes_moved=0 if is_neutral else 2 * case.bytes_moved)


OP = Op(NAME, check, reference, ("logits",), cpu, bench_cases=bench_cases)
