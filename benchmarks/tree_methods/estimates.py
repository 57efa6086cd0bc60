"""Means and their errors over prompts, alone and of two methods on the same prompts.

Steps of one prompt resemble one another, so that errors are taken over prompts: (tokens, steps) of
each, and the ratio of their sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

__all__ = ["paired_ratio", "ratio", "standard_error"]

Counts = Sequence[Sequence[int]]


def ratio(counts: Counts) -> float:
    """Tokens per step of all prompts together."""
    return sum(tokens for tokens, _ in counts) / sum(steps for _, steps in counts)


def standard_error(counts: Counts) -> float:
    """Of `ratio`, linearised; 0 with one prompt."""
    mean, steps = ratio(counts), sum(s for _, s in counts)
    return _root_of_squares([(t - mean * s) / steps for t, s in counts])


def paired_ratio(ours: Counts, theirs: Counts) -> tuple[float, float]:
    """How many times as many tokens a step `ours` are on the same prompts, and the standard error
    of that."""
    assert len(ours) == len(theirs), (len(ours), len(theirs))
    times = ratio(ours) / ratio(theirs)
    shares = [_shares(counts) for counts in (ours, theirs)]
    return times, times * _root_of_squares([a - b for a, b in zip(*shares)])


def _shares(counts: Counts) -> list[float]:
    """By what each prompt moves the logarithm of the ratio."""
    mean, tokens = ratio(counts), sum(t for t, _ in counts)
    return [(t - mean * s) / tokens for t, s in counts]


def _root_of_squares(parts: Sequence[float]) -> float:
    """Standard error of a sum of independent parts whose mean is 0."""
    count = len(parts)
    return sqrt(count / (count - 1) * sum(x * x for x in parts)) if count > 1 else 0.0
