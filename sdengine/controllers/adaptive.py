"""adaptive: as much speculation as pays on this machine, for this pair, right now; possibly none.

A draft token that is reached with probability r saves r * s seconds, where s is what a committed
token costs at present; its row costs what one more row adds to the target's pass. So a node is
worth its row while r >= (dT/dM) / s, and a draft layer is worth its time while the nodes it would
grow are together reached with probability T_layer / s. Both comparisons happen on the device, node
by node and layer by layer, on calibrated estimates; the controller only says what a second is worth
and how many layers to record.

Whether to speculate at all is decided here, by what both ways of decoding were seen to cost: the
first steps are plain (twelve, or three long ones that take what was measured), and two of every
fifty while speculating, of every two hundred where that clearly pays. (Costs measured before the
first request are not good enough: with caches and cores warm from decoding, a plain step of 6M
parameters took 180 us where the measurement had found 240. Between trees plain steps take longer
than plain decoding does, so there only faster ones are believed.) While speculation does not pay it
is tried again after 64, 128, ... 4096 plain steps, and not before fifty times what the trial before
has lost (which does not double), the draft's catching up included: on a prompt that it has not read
that is the larger part. What it reads beside new prompts has to be won back, too, once a trial was
won. So that a pair that never pays costs little, best-first trees begin with two nodes and grow
with what is accepted of them (`tree_size`, where static trees get depth and width), no step of a
trial stakes more than a part of what that may lose, and a trial ends as soon as it has lost that or
can hardly be won any more. Once it was won, a few steps now and then have smaller trees than usual,
to see what those take. A trial that costs speak against (`entry_price`) is put off; after 512,
1024, ... such steps it is made all the same, because costs may be wrong. All this is the engine's
knowledge, not a request's: it outlives them.
"""

from __future__ import annotations

from sdengine.controllers.accounts import HOPELESS_STEPS, Trial
from sdengine.controllers.base import AskOutlook
from sdengine.controllers.entry_price import is_worth_trying
from sdengine.controllers.pace import Pace
from sdengine.controllers.seen_costs import HICCUP
from sdengine.controllers.tree_size import TreeSize, nodes_within
from sdengine.controllers.turns import (
    FIRST_PAUSE,
    LONGEST_PAUSE,
    SETTLED_STEPS,
    TRIAL_STEPS,
    Turns,
)
from sdengine.core.cost_model import CostModel
from sdengine.core.plan import MAX_ITERATIONS, StepPlan, StepReport

TRIAL_SHARE = 0.02  # of the steps of a pause, that speculation may have lost before it,
MOST_PAUSES = 4  # unless the pause came to so many of the longest
LONGEST_CATCH_UP = 8.0  # steps that a draft may take to read a prompt; more is the machine's: one
# that stood still for 0.4 s meanwhile had an engine decode 16384 steps plainly
MOST_CREDIT = 30.0  # plain steps that it gained earlier and may lose again without a longer pause
MOST_DEBT = 12.0  # plain steps that speculation may lose since it last stood even, before it ends:
# judged by the mean of the last 30 steps a pair that gained 1.27x was stopped a third of the time
TOLERANCE = 1.03  # a verdict against speculation needs more than the noise of the comparison
CLEAR = 0.85  # of a plain token, below which speculation pays beyond doubt
SETTLED_RUN = MAX_ITERATIONS  # iterations in a row of speculation that won its trial
LEARN_EVERY = SETTLED_RUN  # steps of it that are looked at together: after a pass over weights none
# of this code is in the caches, and one report takes 75 us, four 120, eight 50 by the shorter way
OVERDUE_TOKENS = 2 * TRIAL_STEPS  # left to a sequence, for a trial that was put off for long
LOOK_STEPS = 2  # with smaller trees
TRIAL_RUN = 4  # iterations in a row while speculation is on trial; one until the first could be
# timed, two as long as the trial may soon be lost. Plain steps come many in a row, and the host's
# work that one of them is spared (up to 0.2 ms of the bundled pair's 1.2) must not be held against
# trees of 2.4 ms; a second tree in vain costs 0.14 ms, a call of its own 0.2


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
        self._turns = Turns()
        self._pace = Pace(costs)
        self._size = size
        self._max_batch_nodes = max_batch_nodes
        self._prices_nodes = prices_nodes
        self._trial = Trial.after(FIRST_PAUSE)
        self._credit = 0.0  # plain steps that speculation has gained, less what trials lost
        self._look_left, self._look_rows = 0, 0  # steps with smaller trees, and their rows
        self._doubts_costs = False  # on a trial against what they say
        self._has_looked = False  # and it was not taken in what those take
        self._reports: list[tuple[StepPlan, StepReport]] = []  # not looked at yet

    def plan(self, num_decoding: int, outlook: AskOutlook | None = None) -> StepPlan:
        """Plain decoding during a pause, otherwise a tree priced at the current speed."""
        turns, pace = self._turns, self._pace
        if num_decoding == 0 or turns.plain_left > 0:
            return StepPlan(0, 0, num_iterations=turns.num_plain_in_a_row)
        if self._is_put_off(num_decoding, outlook):
            return StepPlan(0, 0, num_iterations=turns.put_off())
        depth, nodes = self._size.choose(num_decoding, pace.costs)
        if turns.trial_left > 0 and self._prices_nodes:
            longest_s = pace.plain_step_s(num_decoding) * (1.0 + self._trial.stake)
            nodes = nodes_within(longest_s, num_decoding, pace.costs, nodes)
            depth = min(depth, nodes)
        limit = nodes * num_decoding
        if self._max_batch_nodes is not None:
            limit = min(limit, self._max_batch_nodes)
        num_iterations = self._num_in_a_row()
        if not self._prices_nodes:
            return StepPlan(depth, limit, num_iterations=num_iterations, max_seq_nodes=nodes)
        if self._looks_at_fewer():
            limit = min(limit, max(self._look_rows - num_decoding, 1))
            num_iterations = 1
        costs = pace.costs if pace.are_costs_new else None
        pace.are_costs_new = False
        rate = 1.0 / pace.token_s(num_decoding)
        if self._doubts_costs and self._trial.steps == 0:
            rate = 0.0  # or no node may seem worth its row
        return StepPlan(depth, limit, rate, costs, num_iterations)

    def _looks_at_fewer(self) -> bool:
        """Whether the next step is one of a few with smaller trees, to see what those take."""
        if self._look_left == 0 and self._turns.trial_left <= 0:
            num_rows = self._pace.fewer_rows()
            if num_rows is not None:
                self._look_left, self._look_rows = LOOK_STEPS, num_rows
                self._has_looked = True
        is_look = self._look_left > 0
        self._look_left -= is_look
        return is_look

    def _is_put_off(self, num_decoding: int, outlook: AskOutlook | None) -> bool:
        """Whether a trial would begin that cannot win its beginning back."""
        if outlook is None or self._turns.trial_left != TRIAL_STEPS:
            return False
        ahead = outlook()
        if self._turns.is_overdue and ahead.tokens_left >= OVERDUE_TOKENS:
            self._doubts_costs = True
            return False
        return not is_worth_trying(self._pace.costs, num_decoding, ahead)

    def _num_in_a_row(self) -> int:
        """Iterations with trees that follow one another before this is asked again."""
        trial_left = self._turns.trial_left
        if trial_left > 0:
            trial = self._trial
            is_open = trial.steps < HOPELESS_STEPS or trial.accepted == 0
            return min(1 if trial.steps == 0 else 2 if is_open else TRIAL_RUN, trial_left)
        return SETTLED_RUN

    def observe(self, plan: StepPlan, report: StepReport) -> None:
        """Updates the running means and the verdict.

        A report may come after the next plan was made. So one more step may speculate after the
        verdict against it, or be plain at the end of a pause: neither says anything new.
        """
        if self._reports and not self._is_like_others(plan, report):
            self._take_in_settled()
        if not self._is_settled(plan, report):
            self._take_in(plan, report)
            return
        self._reports.append((plan, report))
        if len(self._reports) >= LEARN_EVERY:
            self._take_in_settled()

    def _is_settled(self, plan: StepPlan, report: StepReport) -> bool:
        """Whether a step is one of many of speculation that won its trial."""
        if plan.depth == 0 or not report.is_steady or not report.num_accepted:
            return False
        return self._turns.trial_left <= 0 and self._turns.plain_left == 0

    def _is_like_others(self, plan: StepPlan, report: StepReport) -> bool:
        """Whether a step may be looked at together with those that were not looked at yet."""
        _, last = self._reports[-1]
        num_decoding = len(last.num_accepted)
        return self._is_settled(plan, report) and len(report.num_accepted) == num_decoding

    def _learn_draft(self, report: StepReport) -> None:
        if report.is_steady and report.num_layers:
            self._pace.add_draft(report)

    def _take_in(self, plan: StepPlan, report: StepReport) -> None:
        num_decoding, turns = len(report.num_accepted), self._turns
        is_plain = plan.depth == 0
        if num_decoding == 0 or (is_plain and turns.rests()):
            return
        if report.is_steady:
            self._pace.add_pass(report, is_plain)
        if is_plain:
            self._learn_plain(num_decoding, report)
            return
        self._learn_draft(report)
        turns.plain_run = 0
        if turns.plain_left > 0:
            return
        self._learn_trees(num_decoding, plan, report)
        is_trial = turns.count_trees()
        if self._is_lost(num_decoding) if is_trial else self._is_in_debt(num_decoding):
            self._stop(num_decoding)
        elif turns.trial_left == 0:
            self._judge(num_decoding)
        self._probe_if_due(num_decoding)

    def _take_in_settled(self) -> None:
        """What `_take_in` does, for the steady steps of speculation that won its trial which were
        not looked at yet, with a third of the calls. Tokens and seconds count in all of them: in
        every other one, a drafter that is right once in twelve steps was taken for useless."""
        reports, self._reports = self._reports, []
        turns, pace = self._turns, self._pace
        num_decoding = len(reports[-1][1].num_accepted)
        turns.plain_run = 0
        for _, report in reports if self._has_looked else reports[1::2]:
            pace.add_pass(report, is_plain=False)
        if self._has_looked and self._look_left == 0:
            self._has_looked = False
            pace.renew_costs()
        plain_s, longest_s = pace.plain_step_s(num_decoding), pace.longest_step_s(num_decoding)
        all_tokens, all_seconds, losses = 0, 0.0, []
        for plan, report in reports:
            self._size.learn(plan, report)
            tokens = num_decoding + sum(report.num_accepted)
            seconds = report.step_s if report.step_s < longest_s else longest_s
            losses.append(seconds / plain_s - tokens / num_decoding)
            all_tokens += tokens
            all_seconds += seconds
        self._trial.owe(*losses)
        self._earn(all_tokens / num_decoding - all_seconds / plain_s)
        pace.add_trees(num_decoding, all_seconds, all_tokens, len(reports))
        # The last one stands for the others: each took 3 us of a step of 300.
        self._learn_draft(reports[-1][1])
        turns.count_trees(len(reports))
        if self._is_in_debt(num_decoding):
            self._stop(num_decoding)
        self._probe_if_due(num_decoding)

    def _learn_plain(self, num_decoding: int, report: StepReport) -> None:
        turns, pace = self._turns, self._pace
        pause = turns.count_plain()
        if pause:
            self._trial, self._doubts_costs = Trial.after(pause), False
        if not report.is_steady:
            return
        expected, seen = pace.plain_step_s(num_decoding), report.step_s
        if turns.is_beginning:
            turns.expect_plain(expected, seen)
        # Steps after a prompt or after trees are slower than plain decoding is: their weights have
        # left the caches (a pair of 6M: 1.2 and 0.7 instead of 0.5 ms, and trees seemed to pay).
        if seen < expected or turns.plain_run > SETTLED_STEPS:
            pace.add_plain(num_decoding, seen)

    def _learn_trees(self, num_decoding: int, plan: StepPlan, report: StepReport) -> None:
        self._size.learn(plan, report)
        costs, plain_s = self._pace.costs, self._pace.plain_step_s(num_decoding)
        accepted = sum(report.num_accepted)
        tokens = num_decoding + accepted
        plainly_s = tokens * plain_s / num_decoding
        draft_s, num_nodes = costs.draft_time(plan.depth), report.num_nodes
        expected = draft_s + costs.verify_time(report.num_rows)
        own_rows = num_decoding + num_nodes  # without those of a prompt beside
        trees_s = draft_s + costs.verify_time(own_rows)
        price = trees_s / costs.verify_time(num_decoding) - 1.0
        self._trial.walk(min(num_nodes, num_decoding), accepted, price)
        if not report.is_steady:
            longest = LONGEST_CATCH_UP * expected
            if report.num_rows == own_rows:
                cost = min(report.step_s, longest) - plainly_s
            else:  # a prompt beside it, which the draft reads, too
                cost = max(min(report.draft_time_s, longest) - draft_s, 0.0)
            self._earn(-cost / plain_s)
            self._trial.owe(cost / plain_s)
            return
        work = report.draft_time_s + report.verify_time_s
        rest = max(min(report.step_s - work, expected), 0.0)  # a device may have begun before
        seconds = min(work, HICCUP * expected, report.step_s) + rest
        gain = (plainly_s - seconds) / plain_s
        self._earn(gain)
        self._trial.add(-gain)
        self._pace.add_trees(num_decoding, seconds, tokens)

    def _earn(self, gain: float) -> None:
        """Credits what was gained over plain decoding, in plain steps."""
        self._credit = min(self._credit + gain, MOST_CREDIT)

    def _is_in_debt(self, num_decoding: int) -> bool:
        """Whether speculation that won its trial has lost too much since it last stood even."""
        return self._trial.debt > MOST_DEBT or self._pace.accepts_nothing(num_decoding)

    def _is_lost(self, num_decoding: int) -> bool:
        pace = self._pace
        plain_s = pace.plain_step_s(num_decoding) / num_decoding
        return self._trial.is_lost(pace.spent(num_decoding), num_decoding, plain_s)

    def _probe_if_due(self, num_decoding: int) -> None:
        if self._turns.is_probe_due:
            self._turns.probe(self._pace.pays(num_decoding, CLEAR))

    def _judge(self, num_decoding: int) -> None:
        if self._pace.pays(num_decoding, TOLERANCE):
            self._turns.won()
        else:
            self._stop(num_decoding)

    def _stop(self, num_decoding: int) -> None:
        """Decodes plainly for a while: for a time that doubles, or longer, until what speculation
        has lost is a small part of it."""
        self._turns.pause(-int(max(self._credit / TRIAL_SHARE, -MOST_PAUSES * LONGEST_PAUSE)))
        self._credit = max(self._credit, 0.0)
        self._pace.forget_trees(num_decoding)
