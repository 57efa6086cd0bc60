"""What speculation has cost and what came of it."""

from __future__ import annotations

from dataclasses import dataclass

FADING = 0.03  # per step, of what the verdict looks at


@dataclass(slots=True)
class Trial:
    """What the present trial lost against plain decoding.

    Args:
        steps: that could be timed.
        loss: of these, in plain steps of as many sequences.
        debt: the same, but what is won cannot be lost later.
    """

    steps: int = 0
    loss: float = 0.0
    debt: float = 0.0

    def add(self, loss: float) -> None:
        """Counts one step."""
        self.steps += 1
        self.loss += loss
        self.debt = max(self.debt + loss, 0.0)


class Spent:
    """Recent seconds and the tokens they gave; older steps fade."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.tokens = 0.0
        self.steps = 0.0

    def add(self, seconds: float, tokens: int) -> None:
        """Counts one step."""
        self.seconds += seconds - FADING * self.seconds
        self.tokens += tokens - FADING * self.tokens
        self.steps += 1 - FADING * self.steps
