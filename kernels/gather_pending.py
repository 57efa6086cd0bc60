"""gather_pending: packs every sequence's pending tokens, known but not yet in the KV cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from sdengine.kernels.backends import load_cpu
from sdengine.kernels.cuda_library import cuda_op
from sdengine.kernels.spec import Case, Op, address, expect_tensor


def check(
    *,
    history: torch.Tensor,
    computed_lens: torch.Tensor,
    pending_lens: torch.Tensor,
    num_seqs: torch.Tensor,
    pending_tokens: torch.Tensor,
    cu_pending: torch.Tensor,
) -> None:
    """Contract.

    Args:
        history: [B, S] int32, every known token of each sequence.
        computed_lens: [B] int32, tokens whose keys and values are cached.
        pending_lens: [B] int32, tokens to take after them; 0 leaves the sequence out.
        num_seqs: [1] int32.
        pending_tokens: [N] int32, written: the pending tokens, packed by sequence. What does not
            fit is left out.
        cu_pending: [B + 1] int32, written: sequence b's are cu_pending[b] : cu_pending[b + 1].
    """
    op = "gather_pending"
    batch, _ = expect_tensor(op, "history", history, torch.int32, (None, None)).shape
    expect_tensor(op, "computed_lens", computed_lens, torch.int32, (batch,))
    expect_tensor(op, "pending_lens", pending_lens, torch.int32, (batch,))
    expect_tensor(op, "num_seqs", num_seqs, torch.int32, (1,))
    expect_tensor(op, "pending_tokens", pending_tokens, torch.int32, (None,))
    expect_tensor(op, "cu_pending", cu_pending, torch.int32, (batch + 1,))


def reference(
    *,
    history: torch.Tensor,
    computed_lens: torch.Tensor,
    pending_lens: torch.Tensor,
    num_seqs: torch.Tensor,
    pending_tokens: torch.Tensor,
    cu_pending: torch.Tensor,
) -> None:
    """Slices and concatenates."""
    cu_pending[0] = packed = 0
    for b in range(int(num_seqs)):
        start = int(computed_lens[b])
        tokens = history[b, start : start + int(pending_lens[b])]
        tokens = tokens[: pending_tokens.shape[0] - packed]
        pending_tokens[packed : packed + len(tokens)] = tokens
        packed += len(tokens)
        cu_pending[b + 1] = packed


def cpu(
    native: Any,
    *,
    history: torch.Tensor,
    computed_lens: torch.Tensor,
    pending_lens: torch.Tensor,
    num_seqs: torch.Tensor,
    pending_tokens: torch.Tensor,
    cu_pending: torch.Tensor,
) -> None:
    """Appends the native launch."""
    load_cpu().gather_pending(
        native,
        address(history),
        history.shape[1],
        address(computed_lens),
        address(pending_lens),
        address(num_seqs),
        pending_tokens.shape[0],
        address(pending_tokens),
        address(cu_pending),
    )


def bench_cases() -> Iterator[Case]:
    """One decoding sequence and a prefill chunk."""
    for pending in (1, 512):
        args = {
            "history": torch.zeros(1, 2048, dtype=torch.int32),
            "computed_lens": torch.zeros(1, dtype=torch.int32),
            "pending_lens": torch.tensor([pending], dtype=torch.int32),
            "num_seqs": torch.ones(1, dtype=torch.int32),
            "pending_tokens": torch.zeros(512, dtype=torch.int32),
            "cu_pending": torch.zeros(2, dtype=torch.int32),
        }
        yield Case(f"B=1 pending={pending}", args, bytes_moved=8 * pending)


OP = Op(
    "gather_pending",
    check,
    reference,
    ("pending_tokens", "cu_pending"),
    cpu,
    backends={"cuda": cuda_op("gather_pending", check)},
    bench_cases=bench_cases,
)
