"""What a budget controller decides and what it learns from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from sdengine.core.plan import Outlook, StepPlan, StepReport

AskOutlook = Callable[[], Outlook]
"""Asked only where the answer matters: it takes a look at every sequence."""


class BudgetController(Protocol):
    """plan before, observe after every step that decodes."""

    def plan(self, num_decoding: int, outlook: AskOutlook | None = None) -> StepPlan:
        """Budget of the next step for so many decoding sequences.

        Args:
            num_decoding: sequences that draw a token.
            outlook: what they have before them; None: not known.
        """

    def observe(self, plan: StepPlan, report: StepReport) -> None:
        """Learns from a finished step."""
