"""coupled: the target draws its token at every visited node with noise that depends on seed and
position only; the walk follows these tokens while they are in the tree.

Plain decoding draws the very same tokens, so drafts can change speed but never the text. At
temperature 0 there is no noise: this is the longest greedy match.

Source: fixed-noise (drafter-invariant) speculation, arXiv 2408.07978, over trees.
"""

from __future__ import annotations

from sdengine.kernels.programs.program import Program
from sdengine.kernels.verdict import Verdict
from sdengine.runner.verifier import walk_arguments
from sdengine.runner.workspace import Workspace


class CoupledVerifier:
    """Walks along the target's own tokens.

    Args:
        workspace: the engine's buffers.
    """

    draws_children = False

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def verify(self, program: Program, verdict: Verdict) -> None:
        program.launch("tree_verify", mode="coupled", **walk_arguments(self._workspace, verdict))
