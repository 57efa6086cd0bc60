"""Prices of rows: numpy and the CPU extension say the same."""

from __future__ import annotations

import numpy as np
import pytest

from sdengine.kernels.row_prices import LOOK_AHEAD, native_row_prices, write_row_prices

WRITERS = {"numpy": write_row_prices, "native": native_row_prices()}


def prices_of(writer: str, rows, seconds, rate: float, count: int) -> np.ndarray:
    prices = np.full(count + 1, -1.0, dtype=np.float32)
    WRITERS[writer](rows, seconds, rate, prices[:count])
    assert prices[count] == -1.0, "written beyond its end"
    return prices[:count]


@pytest.mark.parametrize("seed", range(40))
def test_both_are_the_same(seed: int) -> None:
    rng = np.random.default_rng(seed)
    others = rng.choice(np.arange(2, 140), size=rng.integers(0, 20), replace=False)
    rows = (1, *sorted(others.tolist()))
    seconds = tuple(np.sort(rng.random(len(rows))).tolist())
    count = int(rng.integers(1, 2 * rows[-1] + 40))
    numpy, native = (prices_of(name, rows, seconds, 3.0, count) for name in WRITERS)
    assert native == pytest.approx(numpy, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("writer", WRITERS)
def test_the_first_row_of_a_stair_is_dear_and_those_on_it_are_free(writer: str) -> None:
    rows = tuple(range(1, 9))
    prices = prices_of(writer, rows, (1.0,) * 4 + (2.0,) * 4, 1.0, 12)
    assert prices[0] == 0.0, "the root is not asked"
    assert prices[1:4] == pytest.approx([0.0] * 3)
    assert prices[4] == pytest.approx(1.0 / sum(0.8**i for i in range(LOOK_AHEAD)))
    assert prices[5:] == pytest.approx([0.0] * 7)


@pytest.mark.parametrize("writer", WRITERS)
def test_beyond_the_measurements_every_row_costs_what_the_last_one_did(writer: str) -> None:
    prices = prices_of(writer, (1, 2, 4), (1.0, 1.2, 2.0), 10.0, 4 * LOOK_AHEAD)
    assert prices[1] == pytest.approx(2.0)
    assert prices[2:] == pytest.approx(np.full(4 * LOOK_AHEAD - 2, 4.0))


@pytest.mark.parametrize("writer", WRITERS)
def test_where_one_pass_was_measured_rows_are_free(writer: str) -> None:
    assert not prices_of(writer, (1,), (1.0,), 5.0, 9).any()
