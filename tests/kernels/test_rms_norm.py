"""rms_norm: error within twice plain torch's, rows independent of their company."""

from __future__ import annotations

import pytest
import torch

from sdengine.kernels.programs.program import make_pool, run_op
from sdengine.kernels.rms_norm import reference

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def run(
    x: torch.Tensor, weight: torch.Tensor, rows: int | None = None, threads: int = 1
) -> torch.Tensor:
    out = torch.full_like(x, -7.0)
    num_rows = torch.tensor([x.shape[0] if rows is None else rows], dtype=torch.int32)
    pool = make_pool(threads)
    run_op("rms_norm", pool=pool, x=x, weight=weight, out=out, num_rows=num_rows, eps=1e-5)
    return out


@pytest.mark.parametrize("rows,width", [(1, 1), (3, 7), (2, 64), (5, 100), (1, 257), (33, 2048)])
def test_error_is_at_most_twice_plain_torch(rows: int, width: int) -> None:
    x, weight = torch.randn(rows, width) * 3, torch.randn(width)
    wide = torch.empty(rows, width, dtype=torch.float64)
    plain = torch.empty(rows, width)
    num_rows = torch.tensor([rows], dtype=torch.int32)
    reference(x=x.double(), weight=weight.double(), out=wide, num_rows=num_rows, eps=1e-5)
    reference(x=x, weight=weight, out=plain, num_rows=num_rows, eps=1e-5)
    ulp = wide.abs().max() * 2.0**-23
    allowed = 2 * (plain - wide).abs().max() + ulp
    assert (run(x, weight) - wide).abs().max() <= allowed


def test_rows_past_num_rows_stay() -> None:
    out = run(torch.randn(6, 40), torch.ones(40), rows=4)
    assert (out[4:] == -7.0).all() and (out[:4] != -7.0).all()


def test_a_row_has_the_same_bits_in_any_company() -> None:
    x, weight = torch.randn(64, 1000), torch.randn(1000)
    together = run(x, weight)
    assert torch.equal(together, run(x, weight, threads=3))
    for r in (0, 17, 63):
        assert torch.equal(together[r : r + 1], run(x[r : r + 1].clone(), weight))
    order = torch.randperm(64)
    assert torch.equal(together[order], run(x[order].contiguous(), weight))


def test_in_place() -> None:
    x, weight = torch.randn(3, 77), torch.randn(77)
    expected = run(x, weight)
    num_rows = torch.tensor([3], dtype=torch.int32)
    run_op("rms_norm", x=x, weight=weight, out=x, num_rows=num_rows, eps=1e-5)
    assert torch.equal(x, expected)


def test_names_the_wrong_argument() -> None:
    num_rows = torch.tensor([1], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"rms_norm: weight: expected shape \[8\], got \[9\]"):
        run_op(
            "rms_norm",
            x=torch.zeros(1, 8),
            weight=torch.ones(9),
            out=torch.zeros(1, 8),
            num_rows=num_rows,
            eps=1e-5,
        )
