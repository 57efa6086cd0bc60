"""silu_and_mul: error within twice plain torch's, rows independent of their company."""

from __future__ import annotations

import pytest
import torch

from sdengine.kernels.programs.program import make_pool, run_op
from sdengine.kernels.silu_and_mul import reference

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def run(x: torch.Tensor, rows: int | None = None, threads: int = 1) -> torch.Tensor:
    out = torch.full((x.shape[0], x.shape[1] // 2), -7.0)
    num_rows = torch.tensor([x.shape[0] if rows is None else rows], dtype=torch.int32)
    run_op("silu_and_mul", pool=make_pool(threads), x=x, out=out, num_rows=num_rows)
    return out


@pytest.mark.parametrize("rows,width", [(1, 1), (3, 7), (2, 64), (5, 100), (1, 257), (33, 1408)])
def test_error_is_at_most_twice_plain_torch(rows: int, width: int) -> None:
    x = torch.randn(rows, 2 * width) * 4
    wide = torch.empty(rows, width, dtype=torch.float64)
    plain = torch.empty(rows, width)
    num_rows = torch.tensor([rows], dtype=torch.int32)
    reference(x=x.double(), out=wide, num_rows=num_rows)
    reference(x=x, out=plain, num_rows=num_rows)
    relative = (run(x) - wide).abs() / wide.abs().clamp_min(1e-30)
    allowed = 2 * ((plain - wide).abs() / wide.abs().clamp_min(1e-30)).max() + 2.0**-22
    assert relative.max() <= allowed


def test_extreme_gates_stay_finite() -> None:
    gate = torch.tensor([[-200.0, -104.0, -88.0, 0.0, 88.0, 200.0]])
    out = run(torch.cat([gate, torch.ones_like(gate)], dim=1))
    assert torch.isfinite(out).all()
    assert out[0, 0] == 0.0 and out[0, 3] == 0.0 and out[0, 5] == 200.0


def test_rows_past_num_rows_stay() -> None:
    out = run(torch.randn(6, 80), rows=4)
    assert (out[4:] == -7.0).all() and (out[:4] != -7.0).all()


def test_a_row_has_the_same_bits_in_any_company() -> None:
    x = torch.randn(64, 2002)
    together = run(x)
    assert torch.equal(together, run(x, threads=3))
    for r in (0, 17, 63):
        assert torch.equal(together[r : r + 1], run(x[r : r + 1].clone()))


def test_names_the_wrong_argument() -> None:
    with pytest.raises(ValueError, match=r"silu_and_mul: x: expected an even width, got 7"):
        run(torch.zeros(1, 7))
