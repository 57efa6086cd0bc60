"""Which iterations there are: a program is recorded for each variant that is asked for."""

from __future__ import annotations

from typing import NamedTuple

from sdengine.kernels.programs.limits import NO_LIMITS, Limits


class Variant(NamedTuple):
    """What distinguishes two recorded iterations.

    Args:
        drafts: whether trees are grown; otherwise every sequence decodes plainly.
        has_penalties: whether any sequence needs its logits changed.
        catches_up: without trees: whether the drafter follows the pending tokens all the same.
        has_logprobs: whether any sequence asks for them.
        has_filters: with trees, of a drafter that minds: whether top-k, top-p or min-p leave
            tokens of any sequence out.
        limits: what it is made for.
    """

    drafts: bool
    has_penalties: bool = False
    catches_up: bool = False
    has_logprobs: bool = False
    has_filters: bool = False
    limits: Limits = NO_LIMITS

    def serves(self, other: Variant) -> bool:
        """Whether a step of the other may run as this one."""
        return self[:-1] == other[:-1] and self.limits.covers(other.limits)
