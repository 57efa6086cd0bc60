"""What a plan's trees are cut by, as the kernels find it."""

from __future__ import annotations

import numpy as np
import pytest

from sdengine.core.cost_model import CostModel
from sdengine.core.plan import StepPlan
from sdengine.runner.prices import PROMISED, SAME_RATE, Prices
from tests.engine.conftest import MakeEngine, related_draft

COSTS = CostModel((1, 2, 4, 8), (1.0, 1.2, 1.8, 3.4), 0.2, 0.05)
RATE = 2.0


def test_a_plan_becomes_thresholds(make_engine: MakeEngine) -> None:
    workspace = make_engine(draft=related_draft()).iteration.workspace
    prices, thresholds = Prices(workspace), workspace.thresholds.numpy()

    prices.write(StepPlan(2, 5, RATE, COSTS))
    expected = RATE * COSTS.row_costs(len(thresholds))
    assert thresholds == pytest.approx(expected, rel=1e-6) and expected[1:].all()
    assert workspace.total_budget.item() == 5
    assert workspace.min_layer_gain.item() == pytest.approx(PROMISED * 0.05 * RATE)

    prices.write(StepPlan(2, 7, RATE * (1.0 + 0.9 * SAME_RATE)))
    assert thresholds == pytest.approx(expected, rel=1e-6), "the same rate, as well as it is known"
    assert workspace.total_budget.item() == 7

    prices.write(StepPlan(2, 7, 2.0 * RATE))
    assert thresholds == pytest.approx(2.0 * expected, rel=1e-6), "the costs of the first plan"
    assert workspace.min_layer_gain.item() == pytest.approx(2.0 * PROMISED * 0.05 * RATE)

    dearer = CostModel(COSTS.rows, tuple(2.0 * t for t in COSTS.verify_s), 0.2, 0.1)
    prices.write(StepPlan(2, 7, 2.0 * RATE, dearer))
    assert thresholds == pytest.approx(4.0 * expected, rel=1e-6)

    prices.write(StepPlan(2, 7))
    assert not np.any(thresholds) and workspace.min_layer_gain.item() == 0.0
