"""Penalties, logit bias and masked stop tokens: their tables by slot, and the launch that applies
them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sdengine.core.sampling_params import SamplingParams
from sdengine.core.sequence import Sequence
from sdengine.kernels.program import Program
from sdengine.runner.workspace import Workspace


@dataclass(frozen=True, slots=True, eq=False)
class PenaltyBuffers:
    output_counts: torch.Tensor | None

    @classmethod
    def allocate(cls, b: int, v: int) -> PenaltyBuffers:
        return cls(None)


def describe_penalties(program: Program, workspace: Workspace, buffers: PenaltyBuffers) -> None:
    raise AssertionError


class PenaltyTables:
    def __init__(self, buffers: PenaltyBuffers) -> None:
        self.is_needed = False

    def admit(self, sequence: Sequence) -> None:
        pass

    def release(self, slot: int) -> None:
        pass
