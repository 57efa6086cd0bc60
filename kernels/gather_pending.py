"""gather_pending: packs every sequence's pending tokens, known but not yet in the KV cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from sdengine.kernels.cpu_library import cpu_op
from sdengine.kernels.cuda_library import cuda_op
from sdengine.kernels.spec import Case, Op, expect_tensor

NAME = "gather_pending"


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
    batch, _ = expect_tensor(NAME, "history", history, torch.int32, (None, None)).shape
    expect_tensor(NAME, "computed_lens", computed_lens, torch.int32, (batch,))
    expect_tensor(NAME, "pending_lens", pending_lens, torch.int32, (batch,))
    expect_tensor(NAME, "num_seqs", num_seqs, torch.int32, (1,))
    expect_tensor(NAME, "pending_tokens", pending_tokens, torch.int32, (None,))
    expect_tensor(NAME, "cu_pending", cu_pending, torch.int32, (batch + 1,))


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
    NAME,
    check,
    reference,
    ("pending_tokens", "cu_pending"),
    cpu_op(NAME),
    backends={"cuda": cuda_op(NAME, check)},
    bench_cases=bench_cases,
)
