"""coupled: the target draws its token at every node with noise that depends on seed and position
only; the walk follows these tokens while they are in the tree.

Plain decoding draws the very same tokens, so drafts can change speed but never the text. At
temperature 0 there is no noise: this is the longest greedy match.

Source: fixed-noise (drafter-invariant) speculation, arXiv 2408.07978, over trees.
"""

from __future__ import annotations

from sdengine.kernels.program import Program
from sdengine.runner.verifier import Verdict
from sdengine.runner.workspace import Workspace


class CoupledVerifier:
    """Samples at every node, then walks.

    Args:
        workspace: the engine's buffers.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def verify(self, program: Program, verdict: Verdict) -> None:
        workspace, state = self._workspace, self._workspace.state
        program.launch(
            "sample",
            logits=workspace.logits,
            row_seq=workspace.target_rows.row_seq,
            positions=workspace.target_rows.positions,
            temperature=state.temperature,
            top_k=state.top_k,
            top_p=state.top_p,
            min_p=state.min_p,
            seeds=state.seeds,
            out_tokens=workspace.target_tokens,
            num_rows=workspace.num_logits,
            rows=workspace.sampled_rows,
        )
        program.launch(
            "tree_verify",
            mode="coupled",
            tree=workspace.token_tree,
            logit_starts=workspace.cu_logits,
            wants_logits=state.wants_logits,
            num_seqs=workspace.num_seqs,
            target_tokens=workspace.target_tokens,
            num_accepted=verdict.num_accepted,
            path=verdict.path,
            out_tokens=verdict.out_tokens,
            final_node=verdict.final_node,
            tried=verdict.tried,
            accepted=verdict.accepted,
        )
