"""rms_norm in Triton: error within twice plain torch's, rows independent of their company."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.kernels.triton.guarded import assert_within_twice_plain, run_guarded


def make_args(rows: int, width: int, live: int | None = None) -> dict[str, Any]:
    return {
        "x": torch.randn(rows, width) * 3,
        "weight": torch.randn(width),
        "out": torch.full((rows, width), -7.0),
        "num_rows": torch.tensor([rows if live is None else live], dtype=torch.int32),
        "eps": 1e-5,
    }


@pytest.mark.parametrize("rows,width", [(1, 1), (3, 7), (2, 64), (1, 257), (2, 8193), (1, 16384)])
def test_error_is_at_most_twice_plain_torch(rows: int, width: int) -> None:
    args = make_args(rows, width)
    assert_within_twice_plain("rms_norm", args, run_guarded("rms_norm", args), "out")


def test_rows_past_num_rows_stay() -> None:
    out = run_guarded("rms_norm", make_args(6, 40, live=4))["out"]
    assert (out[4:] == -7.0).all() and (out[:4] != -7.0).all()
    assert (run_guarded("rms_norm", make_args(2, 40, live=0))["out"] == -7.0).all()


def test_a_row_has_the_same_bits_in_any_company() -> None:
    args = make_args(9, 1000)
    together = run_guarded("rms_norm", args)["out"]
    for r in (0, 4, 8):
        alone = {**make_args(1, 1000), "x": args["x"][r : r + 1], "weight": args["weight"]}
        assert torch.equal(run_guarded("rms_norm", alone)["out"][0], together[r])
