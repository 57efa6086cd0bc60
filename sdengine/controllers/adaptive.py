"""adaptive: as much speculation as pays on this machine, for this pair, right now; possibly none.

A draft token that is reached with probability r saves r * s seconds, where s is what a committed
token costs at present; its row costs what one more row adds to the target's pass. So a node is
worth its row while r >= (dT/dM) / s, and a draft layer is worth its time while the nodes it would
grow are together reached with probability T_layer / s. Both comparisons happen on the device, node
by node and layer by layer, on calibrated estimates; the controller only says what a second is worth
and how many layers to record.

Whether to speculate at all is decided here, by what both ways of decoding were seen to cost: the
first steps are plain (sixteen, or three long ones that take what was measured), and two of every
fifty while speculating, of every two hundred where that clearly pays. (Costs measured before the
first request are not good enough: with caches and cores warm from decoding, a plain step of 6M
parameters took 180 us where the measurement had found 240. Between trees plain steps take longer
than plain decoding does, so there only faster ones are believed.) While speculation does not pay it
is tried again after 64, 128, ... 4096 plain steps, and not before fifty times what the trial before
has lost (which does not double), the draft's catching up included: on a prompt that it has not read
that is the larger part. So that a pair that never pays costs little, best-first trees begin with
two nodes and grow with what is accepted of them (`tree_size`, where static trees get their depth),
no step of a trial stakes more than a part of what that may lose, and a trial ends as soon as it has
lost that or can hardly be won any more. All this is the engine's knowledge, not a request's: it
outlives them.
"""

from __future__ import annotations

from sdengine.controllers.accounts import HOPELESS_STEPS, Spent, Trial
from sdengine.controllers.base import AskOutlook
from sdengine.controllers.entry_price import is_worth_trying
from sdengine.controllers.seen_costs import HICCUP, SeenCosts
from sdengine.controllers.tree_size import TreeSize, nodes_within
from sdengine.core.cost_model import CostModel
from sdengine.core.plan import StepPlan, StepReport

TRIAL_STEPS = 16  # speculative steps before a verdict: of 6, chance alone moved the mean by 11%
PUT_OFF_STEPS = 8  # plain steps before it is asked again whether a trial can win its price back
FIRST_PAUSE = 64  # plain steps between the first two trials, at least
LONGEST_PAUSE = 4096
TRIAL_SHARE = 0.02  # of the steps of a pause, that speculation may have lost before it,
MOST_PAUSES = 4  # unless the pause came to so many of the longest
LONGEST_CATCH_UP = 8.0  # steps that a draft may take to read a prompt; more is the machine's: one
# that stood still for 0.4 s meanwhile had an engine decode 16384 steps plainly
MOST_CREDIT = 30.0  # plain steps that it gained earlier and may lose again without a longer pause
KNOWN_STEPS = 8.0  # of as many sequences, before they say anything: the last sequence of a batch is
# on its own for a few, and one step that accepted nothing ended speculation for all
MOST_DEBT = 12.0  # plain steps that speculation may lose since it last stood even, before it ends:
# judged by the mean of the last 30 steps a pair that gained 1.27x was stopped a third of the time
TOLERANCE = 1.03  # a verdict against speculation needs more than the noise of the comparison
LEAST_GAIN = 0.1  # accepted tokens per step and sequence below which no verdict is for speculation;
LAYERS_EARNED = 2.0  # or as many as so many first draft layers cost: looking an n-gram up is free,
# and asking for a tenth of a token kept it off for most of a text that repeats itself at times
FIRST_PLAIN_STEPS = 16  # after 4, trees at the machine's present pace met the measurement's
# fastest plain step: pairs that gained 1.3x failed their first trial
SURE_STEPS, SURE = 3, 1.1  # fewer do when so many in a row take what was expected, to a factor,
LONG_STEP_S = 0.001  # and that is so long that weights come from memory, whatever came before (27
# MB take 1.3 ms on two cores)
PROMPT_STEPS = 8  # plain steps after a prompt that are slow: its weights have left the caches
PROBE_STEPS, PROBE_EVERY = 2, 48  # plain steps while speculating, to keep the comparison fresh;
CLEAR, CLEAR_PROBES = 0.75, 4  # so many times rarer while a token costs less than such a share of a
# plain one: two steps of fifty took 2% from a pair that gains 2.6x
SETTLED_STEPS = 16  # plain steps after which decoding is as fast as if it had always been plain
LOOK_EVERY = 4  # plain steps of a pause, once it is settled: looking at each took 2% of a step
PLAIN_RATE = 0.15  # of what a plain step took, in the running mean
LEARN_EVERY = 8  # steps of speculation that won its trial, which are looked at together: after a
# pass over weights none of this code is in the caches, and one report takes 75 us, four 120
TRIAL_RUN = 4  # iterations in a row while speculation is on trial, after the first two: it may be
# lost after each, but plain steps come eight in a row, and the host's work that one of them is
# spared (up to 0.2 ms of the bundled pair's 1.2) must not be held against trees of 2.4 ms


class AdaptiveController:
    """Chooses depth and the price of a row from measured costs and observed speed.

    Args:
        costs: measured on this machine for this pair.
        size: chooses how large trees may be.
        max_batch_nodes: tree nodes per step, None for no further limit.
        prices_nodes: whether trees may leave out nodes that are not worth their row; static ones
            may not.
    """

    def __init__(
        self,
        costs: CostModel,
        size: TreeSize,
        max_batch_nodes: int | None = None,
        prices_nodes: bool = True,
    ) -> None:
        self._costs = costs  # as they are at present
        self._seen_costs = SeenCosts(costs)
        self._are_costs_new = True
        self._prices_nodes = prices_nodes
        self._size = size
        self._max_batch_nodes = max_batch_nodes
        layer = costs.draft_time(1) / costs.verify_time(1)
        self._least_tokens = 1.0 + min(LEAST_GAIN, LAYERS_EARNED * layer)
        self._spent: dict[int, Spent] = {}  # by decoding sequences, while speculating
        self._plain_s: dict[int, float] = {}  # of a plain step, by decoding sequences
        self._newest = 0  # decoding sequences that speculated last
        self._steps_left = TRIAL_STEPS
        self._until_probe = PROBE_EVERY
        self._pause = FIRST_PAUSE  # the least of the next
        self._paused_for = FIRST_PAUSE  # steps of the last
        self._plain_left = FIRST_PLAIN_STEPS
        self._is_beginning = True
        self._num_sure = 0  # of the first plain steps, as expected and in a row
        self._is_paused = False
        self._reports: list[tuple[StepPlan, StepReport]] = []  # not looked at yet
        self._trial = Trial.after(FIRST_PAUSE)
        self._credit = 0.0  # plain steps that speculation has gained, less what trials lost
        self._plain_run = SETTLED_STEPS - PROMPT_STEPS  # plain steps since the last tree

    def plan(self, num_decoding: int, outlook: AskOutlook | None = None) -> StepPlan:
        """Plain decoding during a pause, otherwise a tree priced at the current speed."""
        if num_decoding == 0 or self._plain_left > 0:
            return StepPlan(0, 0, num_iterations=max(self._plain_left, 1))
        begins = self._steps_left == TRIAL_STEPS and outlook is not None
        if begins and not is_worth_trying(self._costs, num_decoding, outlook()):
            self._plain_left = PUT_OFF_STEPS
            return StepPlan(0, 0, num_iterations=PUT_OFF_STEPS)
        depth, nodes = self._size.choose(num_decoding, self._costs)
        if self._steps_left > 0 and self._prices_nodes:
            plain_s = num_decoding * self._plain_seconds(num_decoding)
            longest_s = plain_s * (1.0 + self._trial.stake)
            nodes = nodes_within(longest_s, num_decoding, self._costs, nodes)
            depth = min(depth, nodes)
        limit = nodes * num_decoding
        if self._max_batch_nodes is not None:
            limit = min(limit, self._max_batch_nodes)
        num_iterations = self._num_in_a_row()
        if not self._prices_nodes:
            return StepPlan(depth, limit, num_iterations=num_iterations)
        costs = self._costs if self._are_costs_new else None
        self._are_costs_new = False
        tokens_per_s = 1.0 / self._token_seconds(num_decoding)
        return StepPlan(depth, limit, tokens_per_s, costs, num_iterations)

    def _num_in_a_row(self) -> int:
        """Iterations with trees that follow one another before this is asked again."""
        if self._steps_left > 0:
            is_first = self._trial.steps < HOPELESS_STEPS
            return 1 if is_first else min(TRIAL_RUN, self._steps_left)
        return max(LEARN_EVERY - len(self._reports), 1)

    def observe(self, plan: StepPlan, report: StepReport) -> None:
        """Updates the running means and the verdict.

        A report may come after the next plan was made. So one more step may speculate after the
        verdict against it, or be plain at the end of a pause: neither says anything new.
        """
        self._reports.append((plan, report))
        is_settled = plan.depth > 0 and self._steps_left <= 0 and self._plain_left == 0
        if is_settled and len(self._reports) < LEARN_EVERY:
            return
        reports, self._reports = self._reports, []
        for observed in reports:
            self._take_in(*observed)
        self._learn_draft(report)  # stands for the others: each took 3 us of a step of 300

    def _take_in(self, plan: StepPlan, report: StepReport) -> None:
        num_decoding = len(report.num_accepted)
        if num_decoding == 0 or (plan.depth == 0 and self._rests()):
            return
        is_plain = plan.depth == 0
        if report.is_steady and self._seen_costs.add(
            report.num_rows, report.verify_time_s, is_plain=is_plain
        ):
            self._costs = self._seen_costs.model()
            self._are_costs_new = True
        if is_plain:
            self._learn_plain(num_decoding, report)
            return
        self._plain_run = 0
        if self._plain_left > 0:
            return
        self._learn(num_decoding, plan, report)
        self._steps_left -= 1
        self._until_probe -= 1
        is_trial = self._steps_left >= 0
        if self._is_lost(num_decoding) if is_trial else self._is_in_debt(num_decoding):
            self._stop(num_decoding)
        elif self._steps_left == 0:
            self._judge(num_decoding)
        if self._until_probe <= 0 and self._plain_left == 0:
            is_clear = self._pays(num_decoding, CLEAR)
            self._until_probe = PROBE_EVERY * (CLEAR_PROBES if is_clear else 1)
            self._plain_left = PROBE_STEPS

    def _learn_draft(self, report: StepReport) -> None:
        if report.is_steady and report.num_layers:
            seconds = report.draft_time_s
            self._seen_costs.add_draft(report.num_layers, report.first_layer_s, seconds)

    def _rests(self) -> bool:
        """Counts a plain step in the midst of a pause, of which nothing need be learned."""
        if (
            not self._is_paused
            or self._plain_left <= LOOK_EVERY
            or self._plain_run < SETTLED_STEPS
            or self._plain_run % LOOK_EVERY == 0
        ):
            return False
        self._plain_left -= 1
        self._plain_run += 1
        return True

    def _plain_seconds(self, num_decoding: int) -> float:
        """Seconds per token of plain decoding: as seen, else as measured."""
        step_s = self._plain_s.get(num_decoding)
        if step_s is None:
            step_s = self._costs.verify_time(num_decoding)
        return step_s / num_decoding

    def _learn_plain(self, num_decoding: int, report: StepReport) -> None:
        if self._plain_left == 1 and self._is_paused:
            self._is_paused = False
            self._steps_left = TRIAL_STEPS
            self._trial = Trial.after(self._paused_for)
        self._plain_left = max(self._plain_left - 1, 0)
        self._plain_run += 1
        if not report.is_steady:
            return
        old, seen = self._plain_seconds(num_decoding) * num_decoding, report.step_s
        if self._is_beginning:
            self._begin(old, seen)
        # Steps after a prompt or after trees are slower than plain decoding is: their weights have
        # left the caches (a pair of 6M: 1.2 and 0.7 instead of 0.5 ms, and trees seemed to pay).
        if seen >= old and self._plain_run <= SETTLED_STEPS:
            return
        # Slower and faster steps count alike. Where faster ones were believed sooner, a noisy
        # machine's plain steps were taken for 10% shorter than they are: trees that gained 1.15
        # failed every trial.
        rate = PLAIN_RATE if num_decoding in self._plain_s else 0.5
        self._plain_s[num_decoding] = old + rate * (min(seen, HICCUP * old) - old)

    def _begin(self, expected_s: float, seen_s: float) -> None:
        """Ends the first plain steps as soon as they say nothing new."""
        is_sure = expected_s > LONG_STEP_S and expected_s / SURE < seen_s < expected_s * SURE
        self._num_sure = self._num_sure + 1 if is_sure else 0
        if self._num_sure == SURE_STEPS:
            self._plain_left = 0
        self._is_beginning = self._plain_left > 0

    def _token_seconds(self, num_decoding: int) -> float:
        """Seconds per committed token of the whole batch, at best what plain decoding takes."""
        plain = self._plain_seconds(num_decoding)
        spent = self._spent.get(num_decoding)
        if spent is not None:
            return min(spent.seconds / spent.tokens, plain)
        other = self._spent.get(self._newest)
        if other is None:
            return plain
        share = other.seconds / other.tokens / self._plain_seconds(self._newest)
        return plain * min(share, 1.0)

    def _learn(self, num_decoding: int, plan: StepPlan, report: StepReport) -> None:
        self._size.learn(plan.depth, report)
        tokens = num_decoding + sum(report.num_accepted)
        plain_s = self._plain_seconds(num_decoding)
        expected = self._costs.draft_time(plan.depth) + self._costs.verify_time(report.num_rows)
        if not report.is_steady:
            if report.num_rows == num_decoding + report.num_nodes:  # no prompt beside it
                seconds = min(report.step_s, LONGEST_CATCH_UP * expected)
                self._earn(tokens * plain_s - seconds, num_decoding * plain_s)
            return
        work = report.draft_time_s + report.verify_time_s
        seconds = min(work, HICCUP * expected) + min(report.step_s - work, expected)
        self._trial.add(-self._earn(tokens * plain_s - seconds, num_decoding * plain_s))
        spent = self._spent.get(num_decoding)
        if spent is None:
            spent = self._spent[num_decoding] = Spent()
        spent.add(seconds, tokens)
        self._newest = num_decoding

    def _earn(self, gain_s: float, step_s: float) -> float:
        """Credits a gain over plain decoding; returns it in plain steps, which take `step_s`."""
        gain = gain_s / step_s
        self._credit = min(self._credit + gain, MOST_CREDIT)
        return gain

    def _is_in_debt(self, num_decoding: int) -> bool:
        """Whether speculation that won its trial has lost too much since it last stood even."""
        spent = self._known(num_decoding)
        if spent is not None and spent.tokens < self._least_tokens * num_decoding * spent.steps:
            return True
        return self._trial.debt > MOST_DEBT

    def _is_lost(self, num_decoding: int) -> bool:
        plain_s, spent = self._plain_seconds(num_decoding), self._spent.get(num_decoding)
        return self._trial.is_lost(spent, num_decoding, plain_s)

    def _judge(self, num_decoding: int) -> None:
        if self._pays(num_decoding, TOLERANCE):
            self._pause = FIRST_PAUSE
        else:
            self._stop(num_decoding)

    def _pays(self, num_decoding: int, share: float) -> bool:
        """Whether a token has lately cost no more than such a share of a plain one, as far as is
        known, and drafted tokens were accepted."""
        spent = self._known(num_decoding)
        return spent is None or (
            spent.seconds <= spent.tokens * share * self._plain_seconds(num_decoding)
            and spent.tokens >= self._least_tokens * num_decoding * spent.steps
        )

    def _known(self, num_decoding: int) -> Spent | None:
        """What so many sequences have spent lately, if that was steps enough to judge by."""
        spent = self._spent.get(num_decoding)
        return None if spent is None or spent.steps < KNOWN_STEPS else spent

    def _stop(self, num_decoding: int) -> None:
        """Decodes plainly for a while: for a time that doubles, or longer, until what speculation
        has lost is a small part of it."""
        owed = -int(max(self._credit / TRIAL_SHARE, -MOST_PAUSES * LONGEST_PAUSE))
        # What is owed does not double: a machine that stood still for a step had a good pair decode
        # a thousand steps plainly, and after a second unlucky trial four thousand.
        self._plain_left = self._paused_for = max(self._pause, owed)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        self._credit = max(self._credit, 0.0)
        self._is_paused = True
        # The next trial starts from what is known then, not from the trial that failed.
        self._spent.pop(num_decoding, None)
