"""Noise of modelled steps: what it draws, and what the adaptive budget makes of it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.modelled_budgets import main
from benchmarks.step_costs import StepCosts
from benchmarks.step_noise import ALONE, HICCUPS, Noise, NoisySteps
from sdengine.core.cost_model import CostModel
from sdengine.core.plan import StepReport

QUIET = StepCosts(CostModel((1, 8), (1e-3, 2e-3), 1e-4, 1e-4, 1e-6), 1e-5, 1e-5)
SLOWER = StepCosts(CostModel((1, 8), (2e-3, 4e-3), 2e-4, 2e-4, 2e-6), 1e-5, 1e-5)
TREES = StepReport([2], 3, 4, 0.0, 0.0, 0.0, is_steady=True)
PLAIN = StepReport([0], 0, 1, 0.0, 0.0, 0.0, is_steady=True)
FAINT = 1e-9  # a drift that cannot be seen; what does not depend on it stays


def times(noise: Noise, count: int, index: int = 0, step: StepReport = TREES) -> np.ndarray:
    """[count] of a target pass beside what the table says."""
    steps = NoisySteps(QUIET, noise=noise, index=index)
    layers = 3 if step.num_nodes else 0
    quiet = QUIET.report(step, layers, 0).verify_time_s
    return np.array([steps.report(step, layers, 0).verify_time_s for _ in range(count)]) / quiet


def test_a_seed_and_an_index_make_a_life() -> None:
    noise = Noise(0.1, seed=3)
    assert np.array_equal(times(noise, 50), times(noise, 50))
    assert not np.array_equal(times(noise, 50), times(noise, 50, index=1))
    assert not np.array_equal(times(noise, 50), times(Noise(0.1, seed=4), 50))


def test_steps_drift_together() -> None:
    logs = np.log(times(Noise(0.1), 4000))
    calm = logs[logs < 0.5]  # without hiccups
    assert 0.07 < calm.std() < 0.14
    assert np.corrcoef(calm[:-1], calm[1:])[0, 1] > 0.7
    assert abs(np.corrcoef(calm[:-1000], calm[1000:])[0, 1]) < 0.3


def test_one_in_a_hundred_takes_much_longer() -> None:
    slow = times(Noise(FAINT), 4000) > 1.001
    assert 0.5 * HICCUPS < slow.mean() < 1.5 * HICCUPS


def test_plain_steps_after_others_are_faster() -> None:
    found = np.minimum(times(Noise(FAINT), 60, step=PLAIN), 1.0)
    assert found[0] == pytest.approx(1.0) and found[40] == pytest.approx(ALONE, abs=0.01)


def test_parts_add_up() -> None:
    steps = NoisySteps(QUIET, noise=Noise(0.3), index=0)
    for missed in (0, 5):
        report = steps.report(TREES, 3, missed)
        parts = report.draft_time_s + report.verify_time_s + QUIET.overhead_s
        assert report.step_s == pytest.approx(parts)
        assert 0 < report.first_layer_s < report.draft_time_s


def test_the_cores_are_elsewhere_for_half_of_the_time() -> None:
    found = times(Noise(FAINT, elsewhere=SLOWER), 20_000)
    assert 0.3 < np.mean(found > 1.9) * 1.5 < 1.2, "of the steps a third, which take twice as long"
    changes = np.abs(np.diff(found > 1.9))
    assert 20 < changes.sum() < 1000, "and not by the step"


OPTIONS = ["--num-threads", "1", "--step-costs", "13m-two-dots", "--temperatures", "0.6"]
NOISE = ["--noise", "0.1", "--elsewhere", "13m-two-dots-apart", "--engines", "2"]


def speedups(capsys: pytest.CaptureFixture[str], *options: str) -> list[float]:
    """Of every line of the table."""
    assert main([*OPTIONS, *options, "--json"]) == 0
    return [row["speedup"] for row in json.loads(capsys.readouterr().out)["rows"]]


def test_the_adaptive_budget_holds_its_own_in_noise(capsys: pytest.CaptureFixture[str]) -> None:
    """Told what engines had measured at their start, a quarter off. Six engines of 1280 tokens
    reach 1.00 of the best fixed budget, five nodes; these two have more of their beginning."""
    told = ["--measured", "13m-two-dots-start-up", "--held-out", "6", "--max-tokens", "128"]
    adaptive, best = speedups(capsys, *NOISE, *told, "--budgets", "adaptive", "5")
    assert adaptive > 0.93 * best > 1.5


def test_two_runs_say_the_same_and_a_quiet_one_does_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    few = ["--held-out", "1", "--max-tokens", "24", "--methods", "ngram", "--budgets", "2"]
    noisy = [speedups(capsys, *NOISE, *few) for _ in range(2)]
    assert noisy[0] == noisy[1] != speedups(capsys, *few)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--noise", "-0.1"], "--noise from 0 to 1"),
        (["--noise", "nan"], "--noise from 0 to 1"),
        (["--engines", "0"], "--engines of at least 1"),
        (["--elsewhere", "13m-two-dots"], "--elsewhere with --noise"),
        (["--noise", "0.1", "--elsewhere", "nowhere"], "a JSON file"),
    ],
)
def test_what_makes_no_sense_is_refused(
    options: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(options) == 2
    assert expected in capsys.readouterr().err
