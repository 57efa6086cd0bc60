"""The measured T(M), corrected by the steps that were seen since.

Costs measured at start-up are minima of a pass that repeats itself. In decoding other things happen
between two passes, and they do not slow every row count alike: on a shared server passes of 5 to 9
rows over 1.1B weights took 1.2-1.4 times as long as measured, those of 1 to 3 rows 1.0-1.1. Priced
by the measurement, trees were twice as large as the best ones. Plain steps one after the other say
nothing of a row among trees: on the same server they took 1.1 ms over 27 MB of weights where a step
of the draft without a tree took 1.5 and one of six rows 1.9, and by 1.1 hardly a tree was worth it.
Rows that were not seen yet are taken to be as slow as the others among trees: believed as measured,
larger trees looked cheap beside the first ones, and made a third of the engines give up. The same
of fewer rows can be wrong for good: where arithmetic takes twice what was measured, and a pass over
one row does not, trees of four sequences stayed so large that they lost 8% to plain decoding. So
now and then a few steps have smaller ones (`fewer_rows`).

Layers of the draft are further from what was measured: more than one node goes on, and the context
is longer (two cores, 1M of weights: 0.05 to 0.10 ms, measured 0.04).
"""

from __future__ import annotations

from bisect import bisect_left

from sdengine.core.cost_model import CostModel

STEPS_KEPT = 30.0  # that a ratio is the mean of
FADING_STEPS = 200.0  # without a look at a ratio, after which it counts half; with 1000, rows that
# some other process had slowed once looked dear long after
MEASURED_AS = 0.2  # steps that the measurement, at the machine's present pace, counts for
SMOOTHING = 0.08  # of the machine's pace: some 12 steps
HICCUP = 2.0  # a time so many times what is expected is the machine's, not the step's
FIRST_MODELS = (1, 2, 4, 8, 16, 32)  # steps with trees after which there is a model
REFRESH_EVERY = 64  # steps between two models; one costs some 100 us where a device prices rows
LOOK_EVERY = 16  # steps before it is asked again whether fewer rows are to be looked at,
LOOK_AGE = 300  # which is not needed for so many after a pass over them,
LOOK_SHARE = 0.5  # and not done for less than this share of the usual ones


class SeenCosts:
    """Seen over measured times at the measured row counts; a pass in between tells of both sides.

    Args:
        measured: at start-up, on this machine.

    Attributes:
        pace: the machine's slowness over all steps, 1 as measured.
    """

    def __init__(self, measured: CostModel) -> None:
        self.pace = 1.0
        self._measured = measured
        self._places = [self._place(rows) for rows in range(measured.rows[-1] + 1)]
        self._num_steps = 0
        self._num_trees = 0  # steps with trees
        self._usual_rows = 0.0  # of them, the newest STEPS_KEPT
        self._tree_ratio = 0.0  # of them all, the newest STEPS_KEPT
        self._ratios = [0.0] * len(measured.rows)
        self._weights = [0.0] * len(measured.rows)
        self._seen_at = [0] * len(measured.rows)
        self._passed_at = [-LOOK_AGE] * len(measured.rows)  # by this row count or one near it
        self._look_at = 2 * LOOK_EVERY  # the step that may be next to look at fewer rows
        self._first_layer = _Seconds(measured.draft_first_s)
        self._later_layers = _Seconds(measured.draft_layer_s)

    def add_draft(self, num_layers: int, first_s: float, draft_s: float) -> None:
        """A tree that was grown in so many layers, at least one; what the first and all took."""
        self._first_layer.add(first_s, self.pace)
        if num_layers > 1:
            self._later_layers.add((draft_s - first_s) / (num_layers - 1), self.pace)

    def add(self, num_rows: int, seconds: float, *, is_plain: bool) -> bool:
        """One target pass, seen; returns whether `model` is due again. A plain step's only says how
        fast the machine is."""
        places = self._places
        left, share, usual_s = places[num_rows] if num_rows < len(places) else self._place(num_rows)
        ratio = seconds / usual_s
        if ratio > HICCUP * self.pace:
            usual = self._ratio(left)
            if share > 0.0:
                usual += share * (self._ratio(left + 1) - usual)
            ratio = min(ratio, HICCUP * max(self.pace, usual))
        self.pace += SMOOTHING * (ratio - self.pace)
        self._num_steps += 1
        if not is_plain:
            self._num_trees += 1
            self._tree_ratio += (ratio - self._tree_ratio) / min(self._num_trees, STEPS_KEPT)
            self._usual_rows += (num_rows - self._usual_rows) / min(self._num_trees, STEPS_KEPT)
            self._passed_at[left + (share >= 0.5)] = self._num_steps
            self._blend(left, 1.0 - share, ratio)
            if share > 0.0:
                self._blend(left + 1, share, ratio)
            if self._num_trees in FIRST_MODELS:
                return True
        return self._num_steps % REFRESH_EVERY == 0

    def model(self) -> CostModel:
        """Costs as they are at present."""
        measured = self._measured
        times = [t * self._ratio(i) for i, t in enumerate(measured.verify_s)]
        return CostModel.from_samples(
            measured.rows,
            times,
            self._first_layer.mean(self.pace),
            self._later_layers.mean(self.pace),
            measured.draft_read_s * self.pace,
        )

    def fewer_rows(self) -> int | None:
        """Fewer rows than steps with trees usually have, if it is time to see what a pass over them
        takes at present; None most of the time."""
        now, usual = self._num_steps, self._usual_rows
        if now < self._look_at:
            return None
        self._look_at = now + LOOK_EVERY
        for num_rows, passed_at in zip(reversed(self._measured.rows), reversed(self._passed_at)):
            is_fewer = LOOK_SHARE * usual <= num_rows < usual - 0.5  # usual is a mean
            if is_fewer and now - passed_at >= LOOK_AGE:
                return num_rows
        return None

    def _blend(self, index: int, share: float, ratio: float) -> None:
        weight = self._kept(index) + share
        self._ratios[index] += (ratio - self._ratios[index]) * share / weight
        self._weights[index] = min(weight, STEPS_KEPT)
        self._seen_at[index] = self._num_steps

    def _kept(self, index: int) -> float:
        """Steps that a ratio stands for now; they fade while other row counts are used."""
        age = self._num_steps - self._seen_at[index]
        return self._weights[index] * FADING_STEPS / (FADING_STEPS + age)

    def _ratio(self, index: int) -> float:
        kept = self._kept(index)
        return (kept * self._ratios[index] + MEASURED_AS * self._usual()) / (kept + MEASURED_AS)

    def _usual(self) -> float:
        """Ratio of a row count of which nothing is known."""
        known = min(self._num_trees, STEPS_KEPT)
        return (known * self._tree_ratio + MEASURED_AS * self.pace) / (known + MEASURED_AS)

    def _place(self, num_rows: int) -> tuple[int, float, float]:
        """The measured row count at or before `num_rows`, how far it is to the next, 0 to 1, and
        seconds as measured."""
        rows, seconds = self._measured.rows, self._measured.verify_time(num_rows)
        right = bisect_left(rows, num_rows)
        if right == len(rows) or rows[right] == num_rows or right == 0:
            return min(right, len(rows) - 1), 0.0, seconds
        share = (num_rows - rows[right - 1]) / (rows[right] - rows[right - 1])
        return right - 1, share, seconds


class _Seconds:
    """What happens in steps with trees took: as measured, at the machine's pace, until seen."""

    def __init__(self, measured: float) -> None:
        self._measured = measured
        self._mean = 0.0
        self._num_seen = 0

    def add(self, seconds: float, pace: float) -> None:
        """Seen once."""
        if self._num_seen:
            seconds = min(seconds, HICCUP * self.mean(pace))
        self._num_seen += 1
        self._mean += (seconds - self._mean) / min(self._num_seen, STEPS_KEPT)

    def mean(self, pace: float) -> float:
        """Lately."""
        measured = self._measured * pace
        if not self._num_seen:
            return measured
        known = min(self._num_seen, STEPS_KEPT)
        return (known * self._mean + MEASURED_AS * measured) / (known + MEASURED_AS)
