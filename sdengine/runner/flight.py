"""Iterations from their start to their reading, and what they turn out to have committed."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

from sdengine.core.plan import StepPlan
from sdengine.core.sequence import Sequence
from sdengine.scheduler.scheduler import Schedule


@dataclass(slots=True)
class Flight:
    """An iteration, or several in a row, that were started and have not been read.

    Args:
        schedule: who takes part.
        plan: how much it speculates.
        num_iterations: how many follow one another, 1 where more than a token of a sequence is
            pending.
        is_drafting: whether trees are grown.
        is_following: whether the draft's cache follows the tokens that are computed.
        num_missing: draft tokens computed for that, at most; 0 when it does not follow.
        is_catching_up: whether a draft computes more of them than in steady decoding; in the first
            iteration only.
        num_tokens: pending tokens that the target computes, over all sequences.
        prepared_at: when the host began with it; `time.perf_counter`.
    """

    schedule: Schedule
    plan: StepPlan
    num_iterations: int
    is_drafting: bool
    is_following: bool
    num_missing: int
    is_catching_up: bool
    num_tokens: int
    prepared_at: float

    @property
    def is_needed(self) -> bool:
        """Whether any of its sequences goes on."""
        return any(not entry.sequence.is_finished for entry in self.schedule.scheduled)

    @property
    def max_tokens(self) -> int:
        """Most tokens that an iteration commits of a sequence."""
        return self.plan.depth + 1 if self.is_drafting else 1


@dataclass(slots=True)
class Commit:
    """What a step committed for one sequence.

    Args:
        sequence: whose.
        token_ids: in order, of all iterations; a last token of -1 marks logits that are not finite.
        num_accepted: how many of them are draft tokens (all but the last), per iteration.
        num_nodes: draft tokens that were verified, per iteration.
        slot: where it ran.
    """

    sequence: Sequence
    token_ids: list[int]
    num_accepted: SequenceOf[int]
    num_nodes: SequenceOf[int]
    slot: int

    def end_with(self, index: int) -> None:
        """Forgets what was committed after a token that is the last one of its iteration."""
        del self.token_ids[index + 1 :]
        num_iterations = num_tokens = 0
        while num_tokens <= index:
            num_tokens += self.num_accepted[num_iterations] + 1
            num_iterations += 1
        self.num_accepted = self.num_accepted[:num_iterations]
        self.num_nodes = self.num_nodes[:num_iterations]
