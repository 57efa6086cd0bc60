"""The CPU extension refits acceptance tables as numpy does, whoever joins and however counters
run."""

from __future__ import annotations

import numpy as np
import pytest

from sdengine.kernels.acceptance_fit import AcceptanceTables, NativeAcceptanceTables
from sdengine.kernels.calibration import CELLS, identity_table

NUM_SLOTS = 3


class Twins:
    """The same counts for both."""

    def __init__(self, by_rank: bool, start: int) -> None:
        shape = (NUM_SLOTS, *CELLS)
        self.tried = np.full(shape, start, dtype=np.int32)
        self.accepted = self.tried.copy()
        self.tables = [np.zeros(shape, dtype=np.float32) for _ in range(2)]
        self.both = [
            make(tables, self.tried, self.accepted, by_rank=by_rank)
            for make, tables in zip((AcceptanceTables, NativeAcceptanceTables), self.tables)
        ]

    def assign(self, slot: int, kind: int) -> None:
        for each in self.both:
            each.assign(slot, kind)

    def count(self, rng: np.random.Generator) -> None:
        """Some tries in some cells, as a verifier leaves them."""
        tried = rng.integers(0, 30, self.tried.shape) * (rng.random(self.tried.shape) < 0.2)
        with np.errstate(over="ignore"):
            self.tried += tried.astype(np.int32)
            self.accepted += np.floor(tried * rng.random(self.tried.shape)).astype(np.int32)

    def refresh(self, kept: float) -> None:
        for each in self.both:
            each.refresh(kept)
        numpy, native = self.tables
        assert native == pytest.approx(numpy, abs=2e-6)


@pytest.mark.parametrize("by_rank", [False, True])
@pytest.mark.parametrize("start", [0, 2**31 - 60], ids=["", "wrapping"])
@pytest.mark.parametrize("seed", range(8))
def test_both_are_the_same(by_rank: bool, start: int, seed: int) -> None:
    rng, twins = np.random.default_rng(seed), Twins(by_rank, start)
    for slot in range(NUM_SLOTS):
        twins.assign(slot, int(rng.integers(2)))
    for _ in range(12):
        twins.count(rng)
        if rng.random() < 0.5:
            twins.assign(int(rng.integers(NUM_SLOTS)), int(rng.integers(2)))
        if rng.random() < 0.7:
            twins.refresh(float(rng.random()))
    twins.refresh(0.5)
    assert not np.array_equal(twins.tables[1][0], identity_table().numpy())


def test_without_counts_nothing_changes() -> None:
    twins = Twins(by_rank=True, start=7)
    for slot, kind in enumerate((0, 1, 1)):
        twins.assign(slot, kind)
    twins.refresh(0.5)
    assert np.array_equal(twins.tables[1], np.stack([identity_table().numpy()] * NUM_SLOTS))


def test_a_rate_that_would_fall_is_pooled_with_its_neighbours() -> None:
    twins = Twins(by_rank=False, start=0)
    for slot in range(NUM_SLOTS):
        twins.assign(slot, 0)
    twins.tried[0, 0, 4:20] = 1000
    twins.accepted[0, 0, 4:12] = 900
    twins.accepted[0, 0, 12:20] = 100
    twins.refresh(1.0)
    rates = twins.tables[1][0, 0]
    assert (np.diff(rates) >= 0.0).all()
    assert rates[4:20] == pytest.approx(np.full(16, 0.5), abs=0.02)


def test_arrays_with_gaps_are_refused() -> None:
    gaps = np.zeros((NUM_SLOTS, CELLS[0], 2 * CELLS[1]), dtype=np.int32)[:, :, ::2]
    tables = np.zeros((NUM_SLOTS, *CELLS), dtype=np.float32)
    with pytest.raises(ValueError, match="contiguous"):
        NativeAcceptanceTables(tables, gaps, gaps.copy(), by_rank=False)
