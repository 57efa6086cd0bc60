"""Online calibration: every observation counts once, however the counters run on."""

from __future__ import annotations

import numpy as np
import pytest

from sdengine.core.sampling_params import SamplingParams
from sdengine.runner.calibration import PRIOR_WEIGHT, Calibrator

GREEDY, SAMPLED = SamplingParams(temperature=0.0), SamplingParams(temperature=1.0)
LOWEST = 0  # the bin of the least sure estimates: no other rate can push it up


class Counts:
    """A calibrator over two slots, and the counters that a verifier adds to."""

    def __init__(self, start: int = 0) -> None:
        self.tables = np.zeros((2, 32), dtype=np.float32)
        self.tried = np.full((2, 32), start, dtype=np.int32)
        self.accepted = self.tried.copy()
        self.calibrator = Calibrator(self.tables, self.tried, self.accepted)

    def step(self, slot: int, tried: int, accepted: int) -> None:
        """A step that tests some of the least sure nodes of a slot."""
        self.tried[slot, LOWEST] += np.int32(tried)
        self.accepted[slot, LOWEST] += np.int32(accepted)
        self.calibrator.observe()


def rate_after(prior: float, tried: float, accepted: float) -> float:
    return (accepted + PRIOR_WEIGHT * prior) / (tried + PRIOR_WEIGHT)


def test_counts_are_taken_once() -> None:
    counts = Counts()
    counts.calibrator.assign(0, GREEDY)
    prior = float(counts.tables[0, LOWEST])
    counts.step(0, 100, 90)
    assert counts.tables[0, LOWEST] == pytest.approx(rate_after(prior, 100, 90))
    counts.step(0, 0, 0)
    assert counts.tables[0, LOWEST] == pytest.approx(rate_after(prior, 98, 0.98 * 90))


def test_counters_may_wrap_around() -> None:
    counts, wrapping = Counts(), Counts(start=2**31 - 50)
    with np.errstate(over="ignore"):
        for each in (counts, wrapping):
            each.calibrator.assign(0, GREEDY)
            each.step(0, 100, 95)
    assert int(wrapping.tried[0, LOWEST]) < 0
    assert np.array_equal(counts.tables, wrapping.tables)


def test_a_joining_sequence_does_not_inherit_what_was_counted_in_its_slot() -> None:
    counts = Counts()
    counts.calibrator.assign(0, GREEDY)
    counts.calibrator.assign(1, SAMPLED)
    before = counts.tables.copy()
    counts.tried[0, LOWEST] += 100
    counts.calibrator.assign(0, SAMPLED)
    counts.calibrator.observe()
    assert np.array_equal(counts.tables, before)
