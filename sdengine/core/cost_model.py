"""What a step costs on this machine: time of the target's forward by rows, and of draft layers."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from sdengine.kernels.row_prices import write_row_prices

LONGEST_S = 3600.0
"""No step takes so long: what says so is damaged."""


def can_be_measured(
    rows: Sequence[int], verify_s: Sequence[float], draft_s: Sequence[float]
) -> bool:
    """Whether row counts rise from 1 and have a time each, those of passes above 0, and none is
    negative, not a number or LONGEST_S."""
    return (
        len(rows) == len(verify_s)
        and list(rows[:1]) == [1]
        and list(rows) == sorted(set(rows))
        and all(0.0 < seconds < LONGEST_S for seconds in verify_s)
        and all(0.0 <= seconds < LONGEST_S for seconds in draft_s)
    )


@dataclass(frozen=True, slots=True)
class CostModel:
    """Measured times in seconds.

    Args:
        rows: measured row counts of the target's forward, ascending from 1.
        verify_s: time of forward, verification and commit at those row counts; made non-decreasing.
        draft_first_s: the draft's first layer (catching up with the last committed tokens).
        draft_layer_s: every further draft layer.
        draft_read_s: every token that the draft reads beside those of its first layer; 0 for a
            drafter that reads nothing.
    """

    rows: tuple[int, ...]
    verify_s: tuple[float, ...]
    draft_first_s: float
    draft_layer_s: float
    draft_read_s: float = 0.0

    @classmethod
    def from_samples(
        cls,
        rows: Sequence[int],
        verify_s: Sequence[float],
        draft_first_s: float,
        draft_layer_s: float,
        draft_read_s: float,
    ) -> CostModel:
        """From noisy times: a larger forward is never cheaper, so a dip is noise."""
        monotone = list(accumulate(map(float, reversed(verify_s)), min))
        times = tuple(reversed(monotone))
        return cls(tuple(rows), times, draft_first_s, draft_layer_s, draft_read_s)

    def verify_time(self, num_rows: int) -> float:
        """Seconds of a target step over so many rows (linear between and beyond measurements)."""
        rows, times = self.rows, self.verify_s
        if num_rows <= rows[0] or len(rows) == 1:
            return times[0]
        # Called every step: numpy's interpolation of one number takes 8 us, this 1.
        right = min(bisect_left(rows, num_rows), len(rows) - 1)
        slope = (times[right] - times[right - 1]) / (rows[right] - rows[right - 1])
        return times[right] + slope * (num_rows - rows[right])

    def row_costs(self, max_rows: int) -> np.ndarray:
        """Seconds that a node must be worth to become row M + 1 of a step: [max_rows], index M; see
        `sdengine.kernels.row_prices`."""
        prices = np.zeros(max_rows, dtype=np.float32)
        write_row_prices(self.rows, self.verify_s, 1.0, prices)
        return prices

    def draft_time(self, depth: int) -> float:
        """Seconds to grow a tree of `depth` layers."""
        return 0.0 if depth == 0 else self.draft_first_s + (depth - 1) * self.draft_layer_s
