"""What a budget controller decides and what it learns from."""

from __future__ import annotations

from typing import Protocol

from sdengine.core.plan import StepPlan, StepReport


class BudgetController(Protocol):
    """plan before, observe after every step that decodes."""

    def plan(self, num_decoding: int) -> StepPlan:
        """Budget of the next step for so many decoding sequences."""

    def observe(self, plan: StepPlan, report: StepReport) -> None:
        """Learns from a finished step."""
