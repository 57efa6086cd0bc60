"""ngram: continuations of earlier occurrences of the last tokens, as a small tree. Needs no model.

Source: prompt lookup decoding; several continuations are merged into one tree.
"""

from __future__ import annotations

import torch

from sdengine.kernels.ngram_match import ngram_scratch_size
from sdengine.kernels.programs.program import Program
from sdengine.runner.variant import Variant
from sdengine.runner.workspace import Workspace

MAX_MATCHES = 16
"""Occurrences that vote; the scan for more ends there."""


class NgramDrafter:
    """Looks up the sequence's own history.

    Args:
        workspace: the engine's buffers.
        min_ngram: shortest run of tokens that counts as an occurrence.
        max_ngram: longest.
        calibrate: correct estimates by the workspace's tables.
    """

    cache = None
    proposals = None
    cost_key = None
    uses_filters = False

    def __init__(
        self, workspace: Workspace, min_ngram: int, max_ngram: int, *, calibrate: bool = True
    ) -> None:
        sizes = workspace.sizes
        self.max_depth = sizes.max_depth
        self.tree_room = sizes.max_nodes + 1
        self._workspace = workspace
        self._min_ngram = min_ngram
        self._max_ngram = max_ngram
        self._calibration = workspace.calibration if calibrate else None
        size = ngram_scratch_size(sizes.max_num_seqs, MAX_MATCHES, sizes.max_depth)
        self._scratch = workspace.memory.zeros(size, dtype=torch.int64)

    def propose(self, program: Program, variant: Variant) -> None:
        workspace, state = self._workspace, self._workspace.state
        program.launch(
            "ngram_match",
            history=state.history,
            history_lens=state.history_lens,
            node_budgets=state.node_budgets,
            depth_limits=state.depth_limits,
            stop_tokens=workspace.stop_tokens,
            num_seqs=workspace.num_seqs,
            scratch=self._scratch,
            tree=workspace.draft_tree,
            min_ngram=self._min_ngram,
            max_ngram=self._max_ngram,
            max_depth=self.max_depth,
            max_children=workspace.sizes.num_candidates,
            max_matches=MAX_MATCHES,
            calibration=self._calibration,
            root_values=state.root_values,
        )

    def catch_up(self, program: Program) -> None:
        """Nothing to do: the history is all it knows."""
