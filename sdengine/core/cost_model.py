"""What a step costs on this machine: time of the target's forward by rows, and of draft layers."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import as_strided

LOOK_AHEAD = 16  # rows that a stair may be long
DECLINE = 0.8  # worth of a node over that of the one taken before it
_WORTH = np.cumsum(DECLINE ** np.arange(LOOK_AHEAD))[:, None]  # of the next 1, 2, ... rows


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
        """Seconds that a node must be worth to become row M + 1 of a step: [max_rows], index M.

        Kernels work in groups of rows, so times go up in stairs: the first row of a stair costs the
        whole of it, the others nothing. Nodes come in order of worth, so a row is looked at
        together with those that follow: it may cost what it and the next k rows add, for the best
        k, if each node is worth DECLINE of the one before. On a stair prices are therefore low, at
        its foot high; where times are convex the price is just what the row adds.
        """
        # Beyond the measurements every row adds the same: 2000 rows cost 0.55 ms to price, 64 0.09.
        priced = min(max_rows, self.rows[-1] + 1)
        times = self._verify_times(priced + LOOK_AHEAD)
        later = as_strided(times[1:], (LOOK_AHEAD, priced), times.strides * 2, writeable=False)
        prices = np.zeros(max_rows)
        prices[1:priced] = np.min((later - times[:priced]) / _WORTH, axis=0)[:-1]
        prices[priced:] = prices[priced - 1]
        return prices

    def _verify_times(self, max_rows: int) -> np.ndarray:
        """`verify_time` of 1, 2, ... max_rows rows."""
        rows, times = np.asarray(self.rows), np.asarray(self.verify_s)
        wanted = np.arange(1, max_rows + 1)
        inside: np.ndarray = np.interp(wanted, rows, times)
        if len(rows) == 1:
            return inside
        slope = float((times[-1] - times[-2]) / (rows[-1] - rows[-2]))
        inside += slope * np.maximum(wanted - rows[-1], 0)
        return inside

    def draft_time(self, depth: int) -> float:
        """Seconds to grow a tree of `depth` layers."""
        return 0.0 if depth == 0 else self.draft_first_s + (depth - 1) * self.draft_layer_s
