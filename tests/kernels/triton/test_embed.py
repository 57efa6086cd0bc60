"""embed in Triton: exact gather, rows past num_rows untouched."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.triton.guarded import run_guarded


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows,capacity,width", [(0, 3, 64), (1, 1, 7), (5, 13, 1100)])
def test_embed_is_an_exact_gather(dtype: torch.dtype, rows: int, capacity: int, width: int) -> None:
    weight = torch.randn(17, width).to(dtype)
    tokens = torch.randint(0, 17, (capacity,), dtype=torch.int32)
    args = {
        "tokens": tokens,
        "weight": weight,
        "out": torch.full((capacity, width), -7.0),
        "num_rows": torch.tensor([rows], dtype=torch.int32),
    }
    out = run_guarded("embed", args)["out"]
    assert torch.equal(out[:rows], weight[tokens[:rows].long()].float())
    assert (out[rows:] == -7.0).all()
