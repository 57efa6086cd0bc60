"""What a verifier does: launches between the target's logits and the commit."""

from __future__ import annotations

from typing import Any, Protocol

from sdengine.kernels.calibration import CELLS
from sdengine.kernels.programs.memory import Memory
from sdengine.kernels.programs.program import Program
from sdengine.kernels.verdict import Verdict
from sdengine.runner.workspace import Sizes, Workspace


def allocate_verdict(memory: Memory, sizes: Sizes) -> Verdict:
    """A verdict for all slots and the deepest tree, exchanged with the host."""
    b, depth = sizes.max_num_seqs, max(sizes.max_depth, 1)
    return Verdict(
        num_accepted=memory.results(b),
        path=memory.results(b, depth),
        out_tokens=memory.results(b, depth + 1),
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
        "sampling": state.sampling,
        "scratch": workspace.walk_scratch,
    }


def walk_results(workspace: Workspace, verdict: Verdict) -> dict[str, Any]:
    """The trees that `tree_verify` walks and what it writes, whatever decides the walk."""
    return {
        "tree": workspace.token_tree,
        "num_seqs": workspace.num_seqs,
        "verdict": verdict,
    }
