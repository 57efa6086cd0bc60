"""What a verifier does: launches between the target's logits and the commit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from sdengine.kernels.calibration import CELLS
from sdengine.kernels.programs.memory import Memory
from sdengine.kernels.programs.program import Program
from sdengine.runner.workspace import Workspace


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """What a verifier writes; int32.

    Args:
        num_accepted: [B].
        path: [B, D] accepted nodes.
        out_tokens: [B, D + 1] their tokens and the target's own last one.
        final_node: [B] last accepted node.
        tried, accepted: [B, 8, 32] children tested and of these accepted, by class of their rank
            and bin of their estimate; added to.
    """

    num_accepted: torch.Tensor
    path: torch.Tensor
    out_tokens: torch.Tensor
    final_node: torch.Tensor
    tried: torch.Tensor
    accepted: torch.Tensor

    @classmethod
    def allocate(cls, memory: Memory, max_num_seqs: int, max_depth: int) -> Verdict:
        """Buffers for B slots and trees of depth D."""
        b, depth = max_num_seqs, max(max_depth, 1)
        return cls(
            num_accepted=memory.results(b),
            path=memory.results(b, depth),
            out_tokens=memory.results(b, depth + 1),
            final_node=memory.zeros(b, dtype=torch.int32),
            tried=memory.totals(b, *CELLS),
            accepted=memory.totals(b, *CELLS),
        )


class Verifier(Protocol):
    """Turns logits into a verdict.

    `draws_children`: whether the children of sampled requests are draws of the draft's, so that how
    likely one is accepted depends on how many were rejected before it, too.
    """

    draws_children: bool

    def verify(self, program: Program, verdict: Verdict) -> None:
        """Appends the launches."""


def walk_arguments(workspace: Workspace, verdict: Verdict) -> dict[str, Any]:
    """Arguments of `tree_verify` that every verifier shares: trees, logits, parameters, outputs."""
    state = workspace.state
    return {
        **walk_results(workspace, verdict),
        "logit_starts": workspace.cu_logits,
        "wants_logits": state.wants_logits,
        "logits": workspace.logits,
        "tree_starts": workspace.target_rows.tree_starts,
        "temperature": state.temperature,
        "top_k": state.top_k,
        "top_p": state.top_p,
        "min_p": state.min_p,
        "seeds": state.seeds,
        "scratch": workspace.walk_scratch,
    }


def walk_results(workspace: Workspace, verdict: Verdict) -> dict[str, Any]:
    """The trees that `tree_verify` walks and what it writes, whatever decides the walk."""
    return {
        "tree": workspace.token_tree,
        "num_seqs": workspace.num_seqs,
        "num_accepted": verdict.num_accepted,
        "path": verdict.path,
        "out_tokens": verdict.out_tokens,
        "final_node": verdict.final_node,
        "tried": verdict.tried,
        "accepted": verdict.accepted,
    }
