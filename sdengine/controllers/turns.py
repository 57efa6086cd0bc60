"""Turns: which steps are plain and which have trees.

    first plain steps -> trial -> trees <-> two plain steps for comparison
                         ^   |      |
                         |   v      v
                         +-- pause <+

The controller says how a trial went and whether speculation still pays; here is only counted.
"""

from __future__ import annotations

from sdengine.core.plan import MAX_ITERATIONS

TRIAL_STEPS = 16  # speculative steps before a verdict: of 6, chance alone moved the mean by 11%
# Plain steps before it is asked again whether a trial can win its price back: a row of them. When
# that was half of one, four sequences that never tried took 5% more time than a plain engine.
PUT_OFF_STEPS = MAX_ITERATIONS
# And after so many all the same, at first, because what was measured may be wrong by now.
FIRST_PATIENCE, MOST_PATIENCE = 512, 16384

# After 4, trees at the machine's present pace met the measurement's fastest plain step: pairs that
# gained 1.3x failed their first trial. Those after PROMPT_STEPS are believed, here four.
FIRST_PLAIN_STEPS = 12
# Fewer do when so many in a row take what was expected, to a factor, and that is so long that
# weights come from memory, whatever came before (27 MB take 1.3 ms on two cores).
SURE_STEPS, SURE, LONG_STEP_S = 3, 1.1, 0.001

FIRST_PAUSE = 64  # plain steps between the first two trials, at least
LONGEST_PAUSE = 4096
PROMPT_STEPS = 8  # plain steps after a prompt that are slow: its weights have left the caches
SETTLED_STEPS = 16  # plain steps after which decoding is as fast as if it had always been plain
LOOK_EVERY = 8  # of plain steps once they are settled: looking at each took 2% of a step, at one
# of four 1%; the last ones before trees are all looked at
LAST_LOOKS = 4

PROBE_STEPS, PROBE_EVERY = 2, 48  # plain steps among trees, to keep the comparison fresh
RARE_PROBES = 4  # times rarer while trees clearly pay: two steps of fifty took 2% from a pair that
# gains 2.6x


class Turns:
    """Counts steps.

    Attributes:
        plain_left: plain steps to come before trees; 0: it is their turn.
        trial_left: steps of the trial under way; 0 or less: it was won.
        plain_run: plain steps since the last tree.
        is_beginning: whether these are the first plain steps.
        is_paused: whether trees failed, and their next trial has not come yet.
        is_put_off: whether no trial is worth its price for now.
    """

    def __init__(self) -> None:
        self.plain_left = FIRST_PLAIN_STEPS
        self.trial_left = TRIAL_STEPS
        self.plain_run = SETTLED_STEPS - PROMPT_STEPS
        self.is_beginning = True
        self.is_paused = self.is_put_off = False
        self._num_sure = 0  # of the first plain steps, as expected and in a row
        self._until_probe = PROBE_EVERY
        self._least_pause = FIRST_PAUSE  # of the next
        self._pause = FIRST_PAUSE  # the last
        self._patience, self._waited = FIRST_PATIENCE, 0  # plain steps of a trial that is put off

    def put_off(self) -> int:
        """Lets a trial wait; returns for how many plain steps."""
        self.is_put_off = True
        self.plain_left = PUT_OFF_STEPS
        self._waited += PUT_OFF_STEPS
        return PUT_OFF_STEPS

    @property
    def is_overdue(self) -> bool:
        """Whether the trial was put off for so long that it should be made however dear it looks;
        twice as long after each that was lost."""
        return self._waited >= self._patience

    @property
    def num_plain_in_a_row(self) -> int:
        """Plain steps before anything else can be decided, at least one. Nothing has to be decided
        just then while a trial is put off: requests do not begin with a row, and a rest of one cost
        four sequences that never tried 1% of their time."""
        return PUT_OFF_STEPS if self.is_put_off else max(self.plain_left, 1)

    def rests(self) -> bool:
        """Counts a plain step in the midst of many, of which nothing need be learned."""
        if (
            not (self.is_paused or self.is_put_off)
            or self.plain_left <= LAST_LOOKS
            or self.plain_run < SETTLED_STEPS
            or self.plain_run % LOOK_EVERY == 0
        ):
            return False
        self.plain_left -= 1
        self.plain_run += 1
        return True

    def count_plain(self) -> int:
        """Counts a plain step; returns the steps of the pause that it ended, else 0."""
        ended = self._pause if self.is_paused and self.plain_left == 1 else 0
        if ended:
            self.is_paused = False
            self.trial_left = TRIAL_STEPS
        self.plain_left = max(self.plain_left - 1, 0)
        self.plain_run += 1
        return ended

    def count_trees(self, steps: int = 1) -> bool:
        """Counts steps with trees whose turn it was; returns whether they belong to a trial."""
        self.is_put_off = False
        self._waited = 0
        self.trial_left -= steps
        self._until_probe -= steps
        return self.trial_left >= 0

    def expect_plain(self, expected_s: float, seen_s: float) -> None:
        """Ends the first plain steps as soon as they say nothing new."""
        is_sure = expected_s > LONG_STEP_S and expected_s / SURE < seen_s < expected_s * SURE
        self._num_sure = self._num_sure + 1 if is_sure else 0
        if self._num_sure == SURE_STEPS:
            self.plain_left = 0
        self.is_beginning = self.plain_left > 0

    @property
    def is_probe_due(self) -> bool:
        """Whether plain steps have to be looked at again."""
        return self._until_probe <= 0 and self.plain_left == 0

    def probe(self, is_clear: bool) -> None:
        """The next steps are plain; the ones after them come later where trees clearly pay."""
        self._until_probe = PROBE_EVERY * (RARE_PROBES if is_clear else 1)
        self.plain_left = PROBE_STEPS

    def won(self) -> None:
        """A trial was: should trees come to fail, they are soon tried again."""
        self._least_pause, self._patience = FIRST_PAUSE, FIRST_PATIENCE

    def pause(self, owed: int) -> None:
        """The next steps are plain: so many, or twice as many as the last time.

        What is owed does not double: a machine that stood still for a step had a good pair decode a
        thousand steps plainly, and after a second unlucky trial four thousand.
        """
        self.plain_left = self._pause = max(self._least_pause, owed)
        self._least_pause = min(2 * self._least_pause, LONGEST_PAUSE)
        self._patience = min(2 * self._patience, MOST_PATIENCE)
        self.is_paused = True
