"""rejection: recursive rejection sampling without replacement. The output's law is the target's;
the text itself depends on the drafts.

Children drawn from the draft (law Q) are tested first, in draw order, against what is left of the
target's distribution; children that were merely chosen (law DELTA, as the n-gram drafter's) after
them. What nothing accepts is drawn from the rest.

Source: DySpec, arXiv 2410.11744, Algorithm 3; RSD, arXiv 2402.14160.
"""

from __future__ import annotations

import torch

from sdengine.kernels.programs.program import Program
from sdengine.kernels.verdict import Verdict
from sdengine.runner.drafter import Proposals
from sdengine.runner.verifier import walk_arguments
from sdengine.runner.workspace import Workspace


class RejectionVerifier:
    """Tests drawn children against the residual of the target's distribution.

    Args:
        workspace: the engine's buffers.
        proposals: what the drafter drew from; None when it only ever chooses.
    """

    draws_children = True

    def __init__(self, workspace: Workspace, proposals: Proposals | None) -> None:
        self._workspace = workspace
        memory = workspace.memory
        self._proposals = proposals or Proposals(
            memory.full((1, 1), -1, torch.int32), memory.zeros(1, 1)
        )

    def verify(self, program: Program, verdict: Verdict) -> None:
        program.launch(
            "tree_verify",
            mode="rejection",
            proposal_tokens=self._proposals.tokens,
            proposal_probs=self._proposals.probs,
            **walk_arguments(self._workspace, verdict),
        )
