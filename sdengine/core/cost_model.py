"""What a step costs on this machine: time of the target's forward by rows, and of draft layers."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np


@dataclass(frozen=True, slots=True)
class CostModel:
    """Measured times in seconds.

    Args:
        rows: measured row counts of the target's forward, ascending from 1.
        verify_s: time of forward, verification and commit at those row counts; made non-decreasing.
        draft_first_s: the draft's first layer (catching up with the last committed tokens).
        draft_layer_s: every further draft layer.
    """

    rows: tuple[int, ...]
    verify_s: tuple[float, ...]
    draft_first_s: float
    draft_layer_s: float

    @classmethod
    def from_samples(
        cls,
        rows: Sequence[int],
        verify_s: Sequence[float],
        draft_first_s: float,
        draft_layer_s: float,
    ) -> CostModel:
        """From noisy medians: a larger forward is never cheaper, so a dip is noise."""
        monotone = np.minimum.accumulate(np.asarray(verify_s, dtype=float)[::-1])[::-1]
        return cls(tuple(rows), tuple(monotone.tolist()), draft_first_s, draft_layer_s)

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
        """Seconds that row M + 1 adds to a step of M rows: [max_rows] float64, index M; never
        decreasing.

        Taken from the convex hull of the measurements: kernels work in groups of rows, so times go
        up in stairs, and a row is charged its share of the stair, not the whole of it.
        """
        hull = _lower_hull(self.rows, self.verify_s)
        slopes = [(t1 - t0) / (m1 - m0) for (m0, t0), (m1, t1) in pairwise(hull)]
        edges = [m for m, _ in hull[1:-1]]
        index = np.searchsorted(edges, np.arange(max_rows), side="right")
        return np.asarray(slopes or [0.0])[index]

    def draft_time(self, depth: int) -> float:
        """Seconds to grow a tree of `depth` layers."""
        return 0.0 if depth == 0 else self.draft_first_s + (depth - 1) * self.draft_layer_s


def _lower_hull(rows: Sequence[int], times: Sequence[float]) -> list[tuple[int, float]]:
    """Corners of the largest convex function below the points (rows ascending)."""
    hull: list[tuple[int, float]] = []
    for m, t in zip(rows, times):
        while len(hull) > 1:
            (m0, t0), (m1, t1) = hull[-2:]
            if (t1 - t0) * (m - m1) < (t - t1) * (m1 - m0):
                break
            hull.pop()
        hull.append((m, t))
    return hull
