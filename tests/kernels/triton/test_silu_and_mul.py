"""silu_and_mul in Triton: error within twice plain torch's, rows past num_rows untouched."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.triton.guarded import assert_within_twice_plain, run_guarded


@pytest.mark.parametrize("rows,capacity,width", [(1, 1, 1), (0, 2, 64), (3, 5, 97), (2, 2, 1025)])
def test_error_is_at_most_twice_plain_torch(rows: int, capacity: int, width: int) -> None:
    args = {
        "x": torch.randn(capacity, 2 * width) * 5,
        "out": torch.full((capacity, width), -7.0),
        "num_rows": torch.tensor([rows], dtype=torch.int32),
    }
    got = run_guarded("silu_and_mul", args)
    assert_within_twice_plain("silu_and_mul", args, got, "out")
    assert (got["out"][rows:] == -7.0).all()


def test_saturates_without_nan() -> None:
    args = {
        "x": torch.tensor([[-200.0, 200.0, -0.0, 2.0, 3.0, 5.0]]),
        "out": torch.full((1, 3), -7.0),
        "num_rows": torch.ones(1, dtype=torch.int32),
    }
    assert run_guarded("silu_and_mul", args)["out"].tolist() == [[0.0, 600.0, 0.0]]
