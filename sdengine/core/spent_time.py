"""What an engine's decoding steps took: running totals, of which a request has a difference."""

from __future__ import annotations

from dataclasses import dataclass

Totals = tuple[float, float, float]
"""Seconds spent proposing, verifying, and on everything else."""


@dataclass(slots=True)
class SpentTime:
    """Time of the steps that committed tokens.

    A request that lasts from one step to another took what was spent between them, once, however
    many completions it has: so no step has to be counted for each of its sequences.

    Args:
        draft_s: time spent proposing.
        verify_s: time spent in the target forward and the verifier.
        other_s: everything else between two steps.
        before: what the three were before the newest step.
    """

    draft_s: float = 0.0
    verify_s: float = 0.0
    other_s: float = 0.0
    before: Totals = (0.0, 0.0, 0.0)

    def add(self, draft_s: float, verify_s: float, other_s: float) -> None:
        """Counts a step."""
        self.before = (self.draft_s, self.verify_s, self.other_s)
        self.draft_s += draft_s
        self.verify_s += verify_s
        self.other_s += other_s

    def since(self, before: Totals) -> Totals:
        """What was spent since the totals were `before`."""
        draft_s, verify_s, other_s = before
        return self.draft_s - draft_s, self.verify_s - verify_s, self.other_s - other_s
