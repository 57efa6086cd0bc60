"""gather_pending: exact against slicing, ragged batches, overflow cut."""

from __future__ import annotations

import pytest
import torch

from sdengine.kernels.programs.program import run_op


def make_args(lens: list[int], starts: list[int], capacity: int) -> dict[str, torch.Tensor]:
    batch = len(lens)
    return {
        "history": torch.randint(0, 1000, (batch, 40), dtype=torch.int32),
        "computed_lens": torch.tensor(starts, dtype=torch.int32),
        "pending_lens": torch.tensor(lens, dtype=torch.int32),
        "num_seqs": torch.tensor([batch], dtype=torch.int32),
        "pending_tokens": torch.full((capacity,), -1, dtype=torch.int32),
        "cu_pending": torch.full((batch + 1,), -1, dtype=torch.int32),
    }


@pytest.mark.parametrize(
    "lens,starts,capacity",
    [([1], [0], 1), ([0, 3, 0, 7], [5, 9, 0, 33], 16), ([5, 5, 5], [0, 1, 2], 7), ([0], [4], 2)],
)
def test_matches_the_reference(lens: list[int], starts: list[int], capacity: int) -> None:
    args = make_args(lens, starts, capacity)
    expected = {name: tensor.clone() for name, tensor in args.items()}
    run_op("gather_pending", "reference", **expected)
    run_op("gather_pending", "cpu", **args)
    assert torch.equal(args["pending_tokens"], expected["pending_tokens"])
    assert torch.equal(args["cu_pending"], expected["cu_pending"])
    packed = [t for b, n in enumerate(lens) for t in args["history"][b, starts[b] :][:n].tolist()]
    count = int(args["cu_pending"][-1])
    assert args["pending_tokens"][:count].tolist() == packed[:capacity]
