"""What speculation has cost and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

FADING = 0.03  # per step, of what the verdict looks at
LOSS_FLOOR, LOSS_SHARE = 1.0, 0.02  # plain steps that a trial may lose, plus so many per step of
# the pause before it,
STAKE = 0.35  # and how much of it a single step: with trees that lose all of it when they have no
# luck, a third of the trials of a pair that gains 1.3x failed by chance
HOPELESS_STEPS, HOPELESS_WALKS, HOPELESS = 2, 3, 1.0  # steps of a trial, and walks through trees,
# after which it ends when a token costs 1 + HOPELESS / sqrt(walks) of a plain one: two standard
# errors of what a walk accepts, or more. A step of a batch is a walk for each sequence
FRUITLESS = 0.15  # how likely walks through trees that accepted nothing at all may be for a draft
# that would pay: then it ends, too


@dataclass(slots=True)
class Trial:
    """What the present trial lost against plain decoding.

    Args:
        most_loss: what it may lose.
        steps: that could be timed.
        loss: of these, in plain steps of as many sequences.
        debt: the same, but what is won cannot be lost later.
        walks: through trees, of steps that could not be timed, too.
        accepted: draft tokens.
        price: what the trees of these walks take beside a plain step by the costs, in plain steps;
            summed over the walks.
    """

    most_loss: float
    steps: int = 0
    loss: float = 0.0
    debt: float = 0.0
    walks: int = 0
    accepted: int = 0
    price: float = 0.0

    @classmethod
    def after(cls, num_plain: int) -> Trial:
        """The one that follows a pause of so many plain steps."""
        return cls(LOSS_FLOOR + LOSS_SHARE * num_plain)

    @property
    def stake(self) -> float:
        """What the next step may lose."""
        return STAKE * (self.most_loss - self.loss)

    def add(self, loss: float) -> None:
        """Counts one step."""
        self.steps += 1
        self.loss += loss
        self.owe(loss)

    def owe(self, *costs: float) -> None:
        """Counts what is to be won back, in order, though not by the trial: by itself, what the
        draft had to read before its trees."""
        debt = self.debt
        for cost in costs:
            debt += cost
            if debt < 0.0:
                debt = 0.0
        self.debt = debt

    def walk(self, trees: int, accepted: int, price: float) -> None:
        """Counts walks through so many trees of a step, what they accepted together, and what that
        step takes beside a plain one by the costs, in plain steps."""
        self.walks += trees
        self.accepted += accepted
        self.price += trees * price

    def is_lost(self, spent: Spent | None, num_decoding: int, plain_token_s: float) -> bool:
        """Whether it has lost what it may lose, or cannot be expected to turn.

        Args:
            spent: lately, by as many sequences.
            num_decoding: sequences.
            plain_token_s: seconds of a token of plain decoding.
        """
        if self.loss > self.most_loss:
            return True
        if spent is None:
            return False
        # Of this trial and of so many sequences: the last one of a batch came to a step that
        # accepted nothing, and the steps before it, of two, had gained 1.7x.
        steps = min(self.steps, round(spent.steps))
        walks = steps * num_decoding
        if steps < HOPELESS_STEPS or walks < HOPELESS_WALKS:
            return False
        plainly_s = spent.tokens * plain_token_s
        if self.accepted == 0 and self.walks > 0:
            # (1 - a)^walks: the chance of nothing, where a draft token is accepted with a chance a.
            # The first plain steps find cold caches. Trees in vain looked free beside them, and a
            # trial of 27 MB went on to its end, which cost 5% of a first request's 128 tokens. So
            # what was measured counts, too.
            most_accepted = 1.0 - FRUITLESS ** (1.0 / self.walks)
            if max(spent.seconds / plainly_s - 1.0, self.price / self.walks) > most_accepted:
                return True
        return spent.seconds > plainly_s * (1.0 + HOPELESS / sqrt(walks))


class Spent:
    """Recent seconds and the tokens they gave; older steps fade."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.tokens = 0.0
        self.steps = 0.0

    def add(self, seconds: float, tokens: int, steps: int = 1) -> None:
        """Counts a step, or as many as took so long together and gave so many tokens."""
        kept = 1.0 - FADING if steps == 1 else (1.0 - FADING) ** steps
        self.seconds = kept * self.seconds + seconds
        self.tokens = kept * self.tokens + tokens
        self.steps = kept * self.steps + steps
