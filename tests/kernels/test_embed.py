"""embed: exact gather, rows past num_rows untouched."""

from __future__ import annotations

import pytest
import torch

from sdengine.kernels.programs.program import run_op


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows,capacity,width", [(0, 3, 64), (1, 1, 7), (5, 13, 96)])
def test_embed_is_an_exact_gather(dtype: torch.dtype, rows: int, capacity: int, width: int) -> None:
    weight = torch.randn(17, width).to(dtype)
    tokens = torch.randint(0, 17, (capacity,), dtype=torch.int32)
    out = torch.full((capacity, width), -7.0)
    count = torch.tensor([rows], dtype=torch.int32)
    run_op("embed", tokens=tokens, weight=weight, out=out, num_rows=count)
    assert torch.equal(out[:rows], weight[tokens[:rows].long()].float())
    assert (out[rows:] == -7.0).all()


def test_embed_names_the_wrong_argument() -> None:
    args = {
        "weight": torch.randn(4, 8),
        "tokens": torch.zeros(2, dtype=torch.int32),
        "out": torch.empty(2, 9),
        "num_rows": torch.ones(1, dtype=torch.int32),
    }
    with pytest.raises(ValueError, match=r"embed: out: expected shape \[2, 8\], got \[2, 9\]"):
        run_op("embed", **args)
