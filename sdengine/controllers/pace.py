"""Pace: what a token costs at present, by plain decoding and by speculation."""

from __future__ import annotations

from sdengine.controllers.accounts import Spent
from sdengine.controllers.seen_costs import HICCUP, SeenCosts
from sdengine.core.cost_model import CostModel
from sdengine.core.plan import StepReport

KNOWN_STEPS = 8.0  # of as many sequences say nothing yet: the last sequence of a batch is
# on its own for a few, and one step that accepted nothing ended speculation for all
PLAIN_RATE = 0.15  # of what a plain step took, in the running mean; more of the first ones, which
# have what was measured for a prior: after four it is a fifth of the mean
LEAST_GAIN = 0.1  # accepted tokens per step and sequence below which no verdict is for speculation,
LAYERS_EARNED = 2.0  # or as many as so many first draft layers cost: looking an n-gram up is free,
# and asking for a tenth of a token kept it off for most of a text that repeats itself at times


class Pace:
    """Seconds that steps take, seen and measured.

    Args:
        measured: on this machine for this pair.

    Attributes:
        costs: as they are at present.
        are_costs_new: whether they have changed since this was last set to False.
    """

    def __init__(self, measured: CostModel) -> None:
        self.costs = measured
        self.are_costs_new = True
        self._seen_costs = SeenCosts(measured)
        layer = measured.draft_time(1) / measured.verify_time(1)
        self._least_tokens = 1.0 + min(LEAST_GAIN, LAYERS_EARNED * layer)
        self._spent: dict[int, Spent] = {}  # by decoding sequences, while speculating
        self._plain_s: dict[int, float] = {}  # of a plain step, by decoding sequences,
        self._num_plain: dict[int, int] = {}  # and how many were seen
        self._newest = 0  # decoding sequences that speculated last

    def add_pass(self, report: StepReport, is_plain: bool) -> None:
        """Takes in what a steady step's target pass took."""
        if self._seen_costs.add(report.num_rows, report.verify_time_s, is_plain=is_plain):
            self.renew_costs()

    def renew_costs(self) -> None:
        """Takes in what was seen up to now."""
        self.costs = self._seen_costs.model()
        self.are_costs_new = True

    def fewer_rows(self) -> int | None:
        """Rows of a few steps with smaller trees than usual, if those are to be looked at."""
        return self._seen_costs.fewer_rows()

    def add_draft(self, report: StepReport) -> None:
        """Takes in what a steady step's draft layers took."""
        self._seen_costs.add_draft(report.num_layers, report.first_layer_s, report.draft_time_s)

    def add_plain(self, num_decoding: int, seen_s: float) -> None:
        """Takes in a plain step. Slower and faster ones count alike: where faster ones were
        believed sooner, a noisy machine's plain steps were taken for 10% shorter than they are, and
        trees that gained 1.15 failed every trial."""
        old = self.plain_step_s(num_decoding)
        self._num_plain[num_decoding] = num_seen = self._num_plain.get(num_decoding, 0) + 1
        rate = max(PLAIN_RATE, 1.0 / (num_seen + 1))
        self._plain_s[num_decoding] = old + rate * (min(seen_s, HICCUP * old) - old)

    def add_trees(self, num_decoding: int, seconds: float, tokens: int, steps: int = 1) -> None:
        """Takes in steady steps with trees and what they committed together."""
        spent = self._spent.get(num_decoding) or Spent()
        spent.add(seconds, tokens, steps)
        self._spent[num_decoding] = spent  # now: an interrupt must not leave one of no tokens
        self._newest = num_decoding

    def forget_trees(self, num_decoding: int) -> None:
        """The next trial starts from what is known then, not from the one that failed."""
        self._spent.pop(num_decoding, None)

    def plain_step_s(self, num_decoding: int) -> float:
        """Seconds of a plain step: as seen, else as measured."""
        seen = self._plain_s.get(num_decoding)
        return self.costs.verify_time(num_decoding) if seen is None else seen

    def longest_step_s(self, num_decoding: int) -> float:
        """Seconds of a step with trees of which the rest is the machine's, not the step's; at
        least twice a plain step's."""
        plain_s = self.plain_step_s(num_decoding)
        spent = self._spent.get(num_decoding)
        return HICCUP * (plain_s if spent is None else max(spent.seconds / spent.steps, plain_s))

    def token_s(self, num_decoding: int) -> float:
        """Seconds per committed token of the whole batch, at best what plain decoding takes."""
        plain = self.plain_step_s(num_decoding) / num_decoding
        spent = self._spent.get(num_decoding)
        if spent is not None:
            return min(spent.seconds / spent.tokens, plain)
        other = self._spent.get(self._newest)
        if other is None:
            return plain
        share = other.seconds / other.tokens / (self.plain_step_s(self._newest) / self._newest)
        return plain * min(share, 1.0)

    def spent(self, num_decoding: int) -> Spent | None:
        """What so many sequences have spent lately on steps with trees."""
        return self._spent.get(num_decoding)

    def accepts_nothing(self, num_decoding: int) -> bool:
        """Whether so many sequences, as far as is known, get hardly any drafted token."""
        spent = self._known(num_decoding)
        return spent is not None and not self._has_gained(spent, num_decoding)

    def pays(self, num_decoding: int, share: float) -> bool:
        """Whether a token has lately cost no more than such a share of a plain one, as far as is
        known, and drafted tokens were accepted."""
        spent = self._known(num_decoding)
        if spent is None:
            return True
        plain = self.plain_step_s(num_decoding) / num_decoding
        is_cheap = spent.seconds <= spent.tokens * share * plain
        return is_cheap and self._has_gained(spent, num_decoding)

    def _known(self, num_decoding: int) -> Spent | None:
        """What so many sequences have spent, if that was steps enough to judge by."""
        spent = self._spent.get(num_decoding)
        return None if spent is None or spent.steps <= KNOWN_STEPS else spent

    def _has_gained(self, spent: Spent, num_decoding: int) -> bool:
        return spent.tokens >= self._least_tokens * num_decoding * spent.steps
