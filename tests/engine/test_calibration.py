"""Calibration tables from counts: curves through bins, levels of ranks, monotone rates; and every
observation counts once, however the counters run on and whoever joins."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch

from sdengine.core.config import SpeculationConfig
from sdengine.core.sampling_params import SamplingParams
from sdengine.kernels.acceptance_fit import (
    AcceptanceCurve,
    AcceptanceTables,
    non_decreasing,
    pooled_rates,
    rates_by_rank,
)
from sdengine.kernels.calibration import CELLS, bin_centers, identity_table
from sdengine.runner.calibration import EARLY_REFRESHES, STEPS_PER_REFRESH, Calibrator
from sdengine.runner.costs import measure_costs
from tests.engine.conftest import MakeEngine, related_draft, run_all

CENTERS = bin_centers().double().numpy()
NOTHING = np.zeros(CELLS)
GREEDY, SAMPLED = SamplingParams(temperature=0.0), SamplingParams(temperature=1.0)


class Counts:
    """A calibrator over two slots, and the counters that a verifier adds to."""

    def __init__(self, start: int = 0) -> None:
        self.tables = np.zeros((2, *CELLS), dtype=np.float32)
        self.tried = np.full((2, *CELLS), start, dtype=np.int32)
        self.accepted = self.tried.copy()
        acceptance = AcceptanceTables(self.tables, self.tried, self.accepted, by_rank=True)
        self.calibrator = Calibrator(acceptance)

    def step(self, slot: int, tried: int, accepted: int) -> None:
        """A step that tests some of the first children of a slot."""
        self.tried[slot, 0, 0] += np.int32(tried)
        self.accepted[slot, 0, 0] += np.int32(accepted)
        self.calibrator.observe()


def test_an_interrupted_refresh_is_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many iterations follow one another as there are steps to the next one: never none."""

    class Interrupted:
        def __iter__(self) -> NoReturn:
            raise KeyboardInterrupt

    counts = Counts()
    with monkeypatch.context() as patch:
        patch.setattr("sdengine.runner.calibration.EARLY_REFRESHES", Interrupted())
        with pytest.raises(KeyboardInterrupt):
            counts.step(0, 1, 1)
    assert counts.calibrator.steps_to_refresh == 1
    counts.step(0, 1, 1)
    assert counts.calibrator.steps_to_refresh == 2


def fitted(fit, tried: np.ndarray, accepted: np.ndarray) -> np.ndarray:
    """Rates after a few refreshes."""
    curve = AcceptanceCurve()
    for _ in range(4):
        rates = fit(curve, tried, accepted)
    return rates


def by_bin(tried: np.ndarray, accepted: np.ndarray) -> np.ndarray:
    return fitted(AcceptanceCurve.rates_by_bin, tried, accepted)


def test_without_counts_estimates_stay_as_they_are() -> None:
    for fit in (pooled_rates, rates_by_rank):
        assert fitted(fit, NOTHING, NOTHING) == pytest.approx(identity_table().numpy(), abs=1e-6)


def test_bins_that_were_never_tried_follow_the_curve_of_the_others() -> None:
    """True odds are the square roots of the estimated ones; only the middle bins are tried."""
    odds = np.sqrt(CENTERS / (1 - CENTERS))
    rates = odds / (1 + odds)
    tried = np.where((CENTERS > 0.05) & (CENTERS < 0.9), 200.0, 0.0)
    found = by_bin(tried, tried * rates)
    assert found == pytest.approx(rates, abs=0.03)
    assert found[-1] < 0.98 < CENTERS[-1] and found[0] > 10 * CENTERS[0]


def test_many_observations_overrule_the_curve() -> None:
    tried = np.full(32, 10_000.0)
    rates = np.linspace(0.3, 0.5, 32)
    assert by_bin(tried, tried * rates) == pytest.approx(rates, abs=0.005)


def test_a_draft_that_is_sure_and_wrong_is_soon_believed_nowhere() -> None:
    sure = np.eye(32)[31] * 8
    once = AcceptanceCurve().rates_by_bin(sure, np.zeros(32))
    assert once[16] < 0.15 and once[31] < 0.5
    assert by_bin(sure, np.zeros(32))[31] < 0.2


def test_later_ranks_have_levels_of_their_own() -> None:
    tried, accepted = NOTHING.copy(), NOTHING.copy()
    tried[0], accepted[0] = 100.0, 60.0
    tried[1, 4:10], accepted[1, 4:10] = 50.0, 10.0  # a third of the first rank's 0.6
    rates = fitted(rates_by_rank, tried, accepted)
    assert rates[0] == pytest.approx(np.full(32, 0.6), abs=0.04)
    assert rates[1, 4:10] == pytest.approx(np.full(6, 0.2), abs=0.02)
    assert rates[1, 20] == pytest.approx(0.2, abs=0.03)  # never tried
    assert rates[2] == pytest.approx(rates[1])
    pooled = fitted(pooled_rates, tried, accepted)
    assert (pooled == pooled[0]).all() and 0.3 < pooled[0, 6] < 0.6


def test_rates_never_fall_with_the_estimate() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        tried = rng.integers(0, 40, CELLS).astype(float)
        accepted = np.floor(tried * rng.random(CELLS))
        for fit in (pooled_rates, rates_by_rank):
            rates = fitted(fit, tried, accepted)
            assert (np.diff(rates, axis=1) >= -1e-6).all()
            assert rates.min() >= 0.0 and rates.max() <= 1.0 and rates.dtype == np.float32


def test_non_decreasing_is_the_pool_of_adjacent_violators() -> None:
    values, weights = np.array([0.1, 0.5, 0.2, 0.3, 0.9]), np.array([1.0, 2.0, 1.0, 3.0, 1.0])
    mean = (2 * 0.5 + 0.2 + 3 * 0.3) / 6
    assert non_decreasing(values, weights) == pytest.approx([0.1, mean, mean, mean, 0.9])


def test_each_kind_of_request_learns_for_itself() -> None:
    tables, tried, accepted = (
        np.zeros((3, *CELLS), dtype) for dtype in (np.float32, np.int32, np.int32)
    )
    calibrator = Calibrator(AcceptanceTables(tables, tried, accepted, by_rank=True))
    for slot, temperature in enumerate((0.0, 0.8, 0.8)):
        calibrator.assign(slot, SamplingParams(max_tokens=4, temperature=temperature))
    tried[1, 1], accepted[1, 1] = 400, 100
    calibrator.observe()
    assert 1 in EARLY_REFRESHES
    assert tables[0] == pytest.approx(identity_table().numpy(), abs=1e-6)
    assert np.array_equal(tables[1], tables[2])
    assert tables[2, 1] == pytest.approx(np.full(32, 0.25), abs=0.1)
    assert tables[2, 0] == pytest.approx(CENTERS, abs=1e-6), "other ranks were not tried"


def test_counts_are_taken_once() -> None:
    counts = Counts()
    counts.calibrator.assign(0, GREEDY)
    counts.step(0, 100, 90)
    seen = NOTHING.copy(), NOTHING.copy()
    seen[0][0, 0], seen[1][0, 0] = 100, 90
    once = pooled_rates(AcceptanceCurve(), *seen)
    assert np.array_equal(counts.tables[0], once)
    counts.step(0, 0, 0)
    assert np.array_equal(counts.tables[0], once)


def test_counters_may_wrap_around() -> None:
    counts, wrapping = Counts(), Counts(start=2**31 - 50)
    with np.errstate(over="ignore"):
        for each in (counts, wrapping):
            each.calibrator.assign(0, GREEDY)
            each.step(0, 100, 95)
    assert int(wrapping.tried[0, 0, 0]) < 0
    assert not np.array_equal(counts.tables[0], identity_table().numpy())
    assert np.array_equal(counts.tables, wrapping.tables)


def test_what_was_seen_long_ago_is_forgotten() -> None:
    counts = Counts()
    counts.calibrator.assign(0, GREEDY)
    for accepted in (36, 4):
        for _ in range(60 * STEPS_PER_REFRESH):
            counts.step(0, 40, accepted)
        assert counts.tables[0, 0, 0] == pytest.approx(accepted / 40, abs=0.1)


def test_what_was_counted_in_a_slot_belongs_to_the_sequence_that_leaves_it() -> None:
    """Requests are often shorter than the time between two refreshes."""
    counts = Counts()
    counts.calibrator.assign(0, GREEDY)
    counts.calibrator.assign(1, SAMPLED)
    counts.tried[0, 0, 0] += 100
    counts.calibrator.assign(0, SAMPLED)
    counts.calibrator.observe()
    assert np.array_equal(counts.tables[0], counts.tables[1])
    assert np.array_equal(counts.tables[0], identity_table().numpy()), "no sampled child was tried"
    seen = NOTHING.copy()
    seen[0, 0] = 100
    counts.calibrator.assign(0, GREEDY)
    assert np.array_equal(counts.tables[0], pooled_rates(AcceptanceCurve(), seen, NOTHING))


@pytest.mark.parametrize("num_steps", [1, 3, 5, 8])
def test_steps_in_a_row_refresh_as_often_as_single_ones(num_steps: int) -> None:
    """Each of them that comes to or over a step that is due."""
    counts = Counts()
    counts.calibrator.assign(0, GREEDY)
    refreshed = []
    for step in range(0, 4 * STEPS_PER_REFRESH, num_steps):
        counts.tables[:] = -1.0
        counts.tried[0, 0, 0] += 1
        counts.calibrator.observe(num_steps)
        if counts.tables[0, 0, 0] >= 0.0:
            refreshed.append(step + num_steps)
    later = [n * STEPS_PER_REFRESH for n in range(1, 5)]
    due = [*EARLY_REFRESHES, *later]
    ends = {-(-n // num_steps) * num_steps for n in due}
    assert refreshed == sorted(end for end in ends if end <= refreshed[-1] and end)
    assert refreshed[-1] >= 4 * STEPS_PER_REFRESH - num_steps


@pytest.mark.parametrize("lengths", [(1, 1, 1, 1), (3, 1), (4,)])
def test_no_count_is_lost_or_doubled_when_sequences_join(lengths: tuple[int, ...]) -> None:
    """However the same steps are divided among sequences, the same is learnt."""
    counts = Counts()
    for steps in lengths:
        counts.calibrator.assign(0, SAMPLED)
        for _ in range(steps):
            counts.tried[0, :3, 5] += np.int32(40)
            counts.accepted[0, :3, 5] += np.int32(10)
            counts.calibrator.observe()
    whole = Counts()
    whole.calibrator.assign(0, SAMPLED)
    for _ in range(4):
        whole.tried[0, :3, 5] += np.int32(40)
        whole.accepted[0, :3, 5] += np.int32(10)
        whole.calibrator.observe()
    assert np.array_equal(counts.tables[0], whole.tables[0])


def test_a_greedy_request_does_not_believe_what_sampled_ones_have_taught(
    make_engine: MakeEngine,
) -> None:
    speculation = SpeculationConfig(max_nodes=8, adaptive=False)
    engine = make_engine(draft=related_draft(), speculation=speculation, max_num_seqs=1)
    table = engine.iteration.workspace.calibration[0]
    sampled = SamplingParams(max_tokens=20, temperature=0.8, seed=1, ignore_eos=True)
    run_all(engine, [[5, 9, 5, 9]], [sampled])
    assert not torch.equal(table, identity_table())
    run_all(engine, [[5, 9]], [SamplingParams(max_tokens=1, temperature=0.0)])
    assert torch.equal(table, identity_table())


def test_the_dummy_trees_of_the_cost_measurement_are_not_learnt_from(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    """Some eighty of their nodes are tested and none is accepted."""
    engine = make_engine(draft=related_draft(), speculation=SpeculationConfig(max_nodes=8))
    measure_costs(engine.iteration)  # once more, as benchmarks do
    assert not engine.iteration.verdict.tried.any()
    fixed = SpeculationConfig(max_nodes=8, adaptive=False)
    engine = make_engine(draft=related_draft(), speculation=fixed)
    run_all(engine, [[5, 9, 5, 9]], [GREEDY])
    assert engine.iteration.verdict.tried.any(), "those of requests are"
