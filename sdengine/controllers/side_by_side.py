"""What a speculative step costs in plain steps, by steps that stood next to each other.

A shared machine has its moods: a neighbour on the same core makes every step take 1.6 times as
long, for a second or for a minute. Plain steps are rare while speculating, and a mean over them
beside a mean over all others compares the moods. So each change from one kind of step to the other
is one comparison, of the last steps before it with the first after it, and the comparisons are
averaged.
"""

from __future__ import annotations

from math import exp, log

from sdengine.controllers.seen_costs import HICCUP

NEEDED_PLAIN, NEEDED_SPECULATIVE = 2, 6  # steps in a row for a comparison
LAST_STEPS = 8  # that speak for a run of steps
LAST_COMPARISONS = 8  # that speak for the present


class SideBySide:
    """Learns the ratio from steps of one batch size, in order.

    Attributes:
        ratio: seconds of a speculative over those of a plain step; None until both were seen.
    """

    def __init__(self) -> None:
        self.ratio: float | None = None
        self._num_comparisons = 0
        self._is_plain: bool | None = None
        self._count = 0
        self._mean = 0.0
        self._before: float | None = None

    def interrupt(self) -> None:
        """The next step does not follow the last one."""
        self._is_plain = None

    def add(self, is_plain: bool, seconds: float) -> None:
        """One step."""
        needed = NEEDED_PLAIN if is_plain else NEEDED_SPECULATIVE
        if is_plain != self._is_plain:
            needed_before = NEEDED_SPECULATIVE if is_plain else NEEDED_PLAIN
            follows = self._is_plain is not None and self._count >= needed_before
            self._before = self._mean if follows else None
            self._is_plain, self._count, self._mean = is_plain, 0, seconds
        self._count += 1
        rate = 1.0 / min(self._count, LAST_STEPS)
        self._mean += rate * (min(seconds, HICCUP * self._mean) - self._mean)
        if self._count == needed and self._before is not None:
            self._compare(self._before / self._mean if is_plain else self._mean / self._before)

    def _compare(self, ratio: float) -> None:
        self._num_comparisons += 1
        old = log(ratio) if self.ratio is None else log(self.ratio)
        rate = 1.0 / min(self._num_comparisons, LAST_COMPARISONS)
        self.ratio = exp(old + rate * (log(ratio) - old))
