"""When acceptance tables are refitted, and for whom: often at first, then seldom; greedy and
sampled requests for themselves."""

from __future__ import annotations

from math import exp

from sdengine.core.sampling_params import SamplingParams
from sdengine.kernels.acceptance_fit import GREEDY, SAMPLED, AcceptanceTables

REMEMBERED_STEPS = 800
"""After so many a count is worth a third (1 / e)."""
STEPS_PER_REFRESH = 128
"""A refresh in numpy takes 0.1 ms, with rates by rank 0.2 ms (Zen 3); between two steps, in cold
code, up to 0.8 ms. Every 32 steps that was 1% of a step of the bundled pair."""
EARLY_REFRESHES = (1, 2, 4, 8, 16, 32, 64)
"""A draft that is sure and wrong fills its first trees to the brim: it must be found out soon."""


class Calibrator:
    """Has the tables refitted now and then.

    Args:
        tables: of the engine's slots.
    """

    def __init__(self, tables: AcceptanceTables) -> None:
        self._tables = tables
        self._steps = self._refreshed_at = 0
        self._refresh_at = EARLY_REFRESHES[0]

    def assign(self, slot: int, params: SamplingParams) -> None:
        """Gives a joining sequence the table of its kind."""
        self._tables.assign(slot, GREEDY if params.is_greedy else SAMPLED)

    @property
    def steps_to_refresh(self) -> int:
        """Drafting steps until the tables change, at least 1."""
        return max(self._refresh_at - self._steps, 1)  # an interrupt may have left one overdue

    def observe(self, num_steps: int = 1) -> None:
        """Called after drafting steps."""
        self._steps = now = self._steps + num_steps
        if now < self._refresh_at:
            return
        later = (now // STEPS_PER_REFRESH + 1) * STEPS_PER_REFRESH
        self._refresh_at = next((step for step in EARLY_REFRESHES if step > now), later)
        self._tables.refresh(exp((self._refreshed_at - now) / REMEMBERED_STEPS))
        self._refreshed_at = now
