"""Steps that take what a table says instead of what the clock says.

Two runs on a shared machine differ by more than what two budgets differ by. Here tokens, trees and
acceptance are an engine's own, and only seconds come from a table, so that a run says the same
every time, also of machines that are not at hand.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sdengine.controllers.base import AskOutlook, BudgetController
from sdengine.core.cost_model import CostModel, can_be_measured
from sdengine.core.plan import StepPlan, StepReport
from sdengine.errors import ConfigError
from sdengine.runner.runner import MAX_STEADY_PENDING

if TYPE_CHECKING:
    from sdengine.core.config import SpeculationConfig
    from sdengine.engine import Engine

__all__ = ["TABLES", "ModelledSteps", "ModelledTime", "StepCosts", "read_step_costs"]


class ModelledSteps(Protocol):
    """Says what steps take, in their order."""

    def report(self, seen: StepReport, num_layers: int, num_missed: int) -> StepReport:
        """A step with modelled times instead of its own."""
        ...


@dataclass(frozen=True, slots=True)
class StepCosts:
    """What a step takes.

    Args:
        costs: of the target's rows and the draft's layers.
        overhead_s: of every step, outside the programs.
        lookup_s: of a drafter without a model.
    """

    costs: CostModel
    overhead_s: float
    lookup_s: float

    def of_lookups(self) -> StepCosts:
        """The same where the drafter looks the text's own repetitions up."""
        costs = replace(
            self.costs, draft_first_s=self.lookup_s, draft_layer_s=0.0, draft_read_s=0.0
        )
        return replace(self, costs=costs)

    def report(self, seen: StepReport, num_layers: int, num_missed: int) -> StepReport:
        """A step with these times instead of its own.

        Args:
            seen: the step.
            num_layers: of the draft; 0 when it grew no tree.
            num_missed: tokens that the draft read, beyond those of a steady step.
        """
        draft_s = self.costs.draft_time(num_layers)
        first_layer_s = min(draft_s, self.costs.draft_first_s)
        draft_s += num_missed * self.costs.draft_read_s
        verify_s = self.costs.verify_time(seen.num_rows)
        return replace(
            seen,
            draft_time_s=draft_s,
            verify_time_s=verify_s,
            step_s=draft_s + verify_s + self.overhead_s,
            first_layer_s=first_layer_s,
        )


class ModelledTime:
    """A budget controller that tells another one what steps take by a table; the clock of a run.

    Args:
        engine: whose steps they are.
        controller: plans and learns.
        step_costs: the table.
        steps: what tells a step's times instead of the table.
    """

    def __init__(
        self,
        engine: Engine,
        controller: BudgetController,
        step_costs: StepCosts,
        steps: ModelledSteps | None = None,
    ) -> None:
        state = engine.iteration.workspace.state
        self._draft_pending = state.draft_pending_lens.numpy()
        self._controller = controller
        self.step_costs = step_costs
        self._steps = steps or step_costs
        self.last_report: StepReport = engine.last_report  # with the table's times
        self._seconds = 0.0

    @classmethod
    def of(
        cls,
        engine: Engine,
        config: SpeculationConfig | None,
        step_costs: StepCosts,
        measured: StepCosts | None = None,
        with_noise: Callable[[StepCosts], ModelledSteps] | None = None,
    ) -> ModelledTime:
        """Puts itself between an engine and the controller that it would have.

        Args:
            engine: whose steps these are.
            config: its speculation.
            step_costs: what they take.
            measured: what the controller is told at its start; None for the same.
            with_noise: what steps take instead of the table alone.
        """
        from sdengine.factory.kinds import make_controller

        drafter = engine.iteration.drafter
        if config is not None and not config.needs_draft_model:
            step_costs, measured = step_costs.of_lookups(), measured and measured.of_lookups()
        told = measured or step_costs
        controller = make_controller(config, drafter, lambda: told.costs)
        steps = None if with_noise is None else with_noise(step_costs)
        engine.controller = time = cls(engine, controller, step_costs, steps)
        return time

    def __call__(self) -> float:
        """Seconds of all steps so far."""
        return self._seconds

    def plan(self, num_decoding: int, outlook: AskOutlook | None = None) -> StepPlan:
        """The controller's plan."""
        return self._controller.plan(num_decoding, outlook)

    def observe(self, plan: StepPlan, report: StepReport) -> None:
        """Lets the controller learn from the step as the table has it, and time pass."""
        num_layers = report.num_layers or (1 if plan.depth else 0)  # one look-up
        steady = MAX_STEADY_PENDING * len(report.num_accepted)
        missed = max(int(self._draft_pending.sum()) - steady, 0)
        self.last_report = modelled = self._steps.report(report, num_layers, missed)
        self._seconds += modelled.step_s
        self._controller.observe(plan, modelled)


def read_step_costs(name: str) -> StepCosts:
    """A table by name, or from a JSON file with the keys of `TABLES`' entries.

    Raises:
        ConfigError: neither, or a file that does not hold a table.
    """
    if name in TABLES:
        return _table(**TABLES[name])
    expected = f"one of {', '.join(TABLES)}, or a JSON file with {', '.join(_KEYS)}"
    try:
        return _table(**json.loads(Path(name).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError.from_parts(expected, f"{name}: {error}") from None


def _table(
    rows: list[int],
    verify_ms: list[float],
    draft_first_ms: float,
    draft_layer_ms: float,
    draft_read_ms: float,
    overhead_ms: float,
    lookup_ms: float,
) -> StepCosts:
    """Raises: ValueError, TypeError: not a table."""
    others = (draft_first_ms, draft_layer_ms, draft_read_ms, overhead_ms, lookup_ms)
    verify_s, other_s = ([1e-3 * float(ms) for ms in times] for times in (verify_ms, others))
    if not can_be_measured(rows, verify_s, other_s):
        raise ValueError(
            "rows must rise from 1, with one of verify_ms for each; times must be finite and not "
            "negative, those of rows positive"
        )
    first_s, layer_s, read_s, overhead_s, lookup_s = other_s
    costs = CostModel.from_samples(rows, verify_s, first_s, layer_s, read_s)
    return StepCosts(costs, overhead_s, lookup_s)


_KEYS = (
    "rows",
    "verify_ms",
    "draft_first_ms",
    "draft_layer_ms",
    "draft_read_ms",
    "overhead_ms",
    "lookup_ms",
)

# The price of reading was measured for the two tables of 13M with dot products; elsewhere it is a
# row of the target among many, smaller by as much as a layer of the draft is than a plain step.
TABLES: dict[str, dict[str, Any]] = {
    # A TinyLlama's shape and a 68M draft, bfloat16, two cores of a Zen 3 server (AVX2) in a quiet
    # hour, as the adaptive budget measures them.
    "1.1b-avx2": {
        "rows": [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64],
        "verify_ms": [62.9, 63.2, 66.6, 70.9, 76.9, 104.0, 143.5, 192.6, 281.5, 378.3, 755.4],
        "draft_first_ms": 2.3,
        "draft_layer_ms": 1.4,
        "draft_read_ms": 0.26,
        "overhead_ms": 0.2,
        "lookup_ms": 0.02,
    },
    # The same sizes on two cores of a Zen 4 server with dot products of bfloat16 (2026-11-29),
    "1.1b-avx512-bf16": {
        "rows": [1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 64],
        "verify_ms": [56, 57, 58, 58, 59, 59, 60, 62, 79, 120, 158, 316],
        "draft_first_ms": 2.3,
        "draft_layer_ms": 1.9,
        "draft_read_ms": 0.17,
        "overhead_ms": 0.1,
        "lookup_ms": 0.02,
    },
    # and the bundled pair there, in its caches, as steps with trees had it (2026-11-30): with both
    # cores in one core complex, where a fifth row costs little and a sixth a seventh of a pass,
    "13m-avx512-bf16": {
        "rows": [1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 64],
        "verify_ms": [0.32, 0.37, 0.40, 0.40, 0.44, 0.51, 0.66, 0.93, 1.22, 1.79, 2.40, 4.7],
        "draft_first_ms": 0.058,
        "draft_layer_ms": 0.016,
        "draft_read_ms": 0.0031,
        "overhead_ms": 0.04,
        "lookup_ms": 0.01,
    },
    # and in two.
    "13m-avx512-bf16-apart": {
        "rows": [1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 64],
        "verify_ms": [0.30, 0.34, 0.39, 0.46, 0.53, 0.61, 0.78, 1.10, 1.43, 2.10, 2.80, 5.4],
        "draft_first_ms": 0.060,
        "draft_layer_ms": 0.030,
        "draft_read_ms": 0.005,
        "overhead_ms": 0.04,
        "lookup_ms": 0.01,
    },
    # The bundled pair on two cores of a Zen 5 server, which starts two dot products a cycle
    # (2026-12-01): as decoding had it, cores in one core complex and in two,
    "13m-two-dots": {
        "rows": [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 24, 32, 64],
        "verify_ms": [
            *(0.250, 0.257, 0.268, 0.275, 0.282, 0.291, 0.345, 0.365, 0.400),
            *(0.50, 0.64, 0.94, 1.21, 2.3),
        ],
        "draft_first_ms": 0.028,
        "draft_layer_ms": 0.020,
        "draft_read_ms": 0.0016,
        "overhead_ms": 0.009,
        "lookup_ms": 0.005,
    },
    "13m-two-dots-apart": {
        "rows": [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 24, 32, 64],
        "verify_ms": [
            *(0.255, 0.275, 0.295, 0.312, 0.335, 0.360, 0.415, 0.455, 0.500),
            *(0.66, 0.86, 1.2, 1.55, 3.0),
        ],
        "draft_first_ms": 0.030,
        "draft_layer_ms": 0.026,
        "draft_read_ms": 0.0023,
        "overhead_ms": 0.011,
        "lookup_ms": 0.005,
    },
    # and as engines had measured it at their start, in one.
    "13m-two-dots-start-up": {
        "rows": [1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 64],
        "verify_ms": [
            *(0.222, 0.222, 0.227, 0.230, 0.239, 0.252, 0.323, 0.441),
            *(0.570, 0.835, 1.104, 2.189),
        ],
        "draft_first_ms": 0.048,
        "draft_layer_ms": 0.010,
        "draft_read_ms": 0.0015,
        "overhead_ms": 0.009,
        "lookup_ms": 0.005,
    },
    # The bundled pair on the Zen 3 server, whose cache holds most of it (the cost curve of
    # benchmarks/results/amd-epyc-avx2-2-threads, 2026-11-27).
    "13m-avx2": {
        "rows": [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64],
        "verify_ms": [1.03, 1.10, 1.25, 1.37, 1.37, 1.81, 2.11, 3.81, 5.25, 7.55, 13.39],
        "draft_first_ms": 0.043,
        "draft_layer_ms": 0.029,
        "draft_read_ms": 0.0051,
        "overhead_ms": 0.12,
        "lookup_ms": 0.01,
    },
    # The same pair on 2026-11-28, when the cache held all of it: what an engine's first steps with
    # trees took (beyond 12 rows one and a half times the next table),
    "13m-avx2-cached": {
        "rows": [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64],
        "verify_ms": [0.60, 0.78, 0.95, 1.15, 1.65, 2.2, 3.2, 4.2, 6.2, 8.2, 15.0],
        "draft_first_ms": 0.045,
        "draft_layer_ms": 0.035,
        "draft_read_ms": 0.012,
        "overhead_ms": 0.07,
        "lookup_ms": 0.01,
    },
    # and what the adaptive budget had measured before them, passes one after the other.
    "13m-avx2-start-up": {
        "rows": [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64],
        "verify_ms": [0.57, 0.58, 0.69, 0.79, 1.05, 1.41, 2.0, 2.77, 3.9, 5.48, 11.5],
        "draft_first_ms": 0.041,
        "draft_layer_ms": 0.034,
        "draft_read_ms": 0.011,
        "overhead_ms": 0.07,
        "lookup_ms": 0.01,
    },
    # What decoding took in a busier hour of that day: layers of the draft, whose weights are cold
    # after the target's, two to three times what an engine measures at its start.
    "13m-avx2-decoding": {
        "rows": [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 64],
        "verify_ms": [0.93, 1.12, 1.28, 1.42, 1.56, 1.72, 2.3, 2.4, 3.15, 4.1, 5.8, 7.6, 14.2],
        "draft_first_ms": 0.095,
        "draft_layer_ms": 0.075,
        "draft_read_ms": 0.017,
        "overhead_ms": 0.07,
        "lookup_ms": 0.01,
    },
    # Llama-3.1-8B's and Llama-3.2-1B's shapes, bfloat16, H200 (benchmarks/results/nvidia-h200);
    # between 2 and 65 rows nothing was measured.
    "8b-h200": {
        "rows": [1, 2, 65, 129],
        "verify_ms": [4.18, 4.22, 5.36, 6.80],
        "draft_first_ms": 0.94,
        "draft_layer_ms": 0.94,
        "draft_read_ms": 0.0051,
        "overhead_ms": 0.05,
        "lookup_ms": 0.02,
    },
}
