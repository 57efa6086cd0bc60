"""A drafter of your own: the continuation of the latest earlier occurrence, and no other.

A drafter describes launches on the engine's buffers; the verifier makes every drafter exact.
"""

from __future__ import annotations

import torch

from sdengine import Engine, SamplingParams, SpeculationConfig
from sdengine.kernels.ngram_match import ngram_scratch_size
from sdengine.kernels.programs.program import Program
from sdengine.runner.variant import Variant
from sdengine.runner.workspace import Workspace

WHEN_REPEATING = "def first(a):\n    return a[0]\n\ndef second(a):\n    return a[1]\n\ndef "


class LatestOccurrence:
    """One chain: what followed the last three tokens when they came before."""

    cache = proposals = cost_key = None  # it has no model, and it does not draw its tokens
    uses_filters = False  # nor has it a law whose tail could be left out

    def __init__(self, workspace: Workspace) -> None:
        sizes = workspace.sizes
        self.max_depth, self.tree_room = sizes.max_depth, sizes.max_nodes + 1
        self.workspace = workspace
        size = ngram_scratch_size(sizes.max_num_seqs, 1, sizes.max_depth)
        self.scratch = workspace.memory.zeros(size, dtype=torch.int64)  # where the engine runs

    def propose(self, program: Program, variant: Variant) -> None:
        workspace, state = self.workspace, self.workspace.state
        program.launch(
            "ngram_match",
            history=state.history,
            history_lens=state.history_lens,
            node_budgets=state.node_budgets,
            depth_limits=state.depth_limits,
            stop_tokens=workspace.stop_tokens,
            num_seqs=workspace.num_seqs,
            scratch=self.scratch,
            tree=workspace.draft_tree,
            min_ngram=3,
            max_ngram=3,
            max_depth=self.max_depth,
            max_children=1,
            max_matches=1,
            calibration=workspace.calibration,
            root_values=state.root_values,
        )

    def catch_up(self, program: Program) -> None:
        """It knows nothing but the history."""


def complete(engine: Engine) -> tuple[str, float]:
    params = SamplingParams(max_tokens=64, temperature=0)
    engine.add_request("r", WHEN_REPEATING, params)
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                stats = output.metrics.speculation
                text = output.outputs[0].text
    return text, 1.0 if stats is None else stats.mean_acceptance_length


ngram = SpeculationConfig(method="ngram", max_nodes=8, max_depth=8, adaptive=False)
own = Engine("python-completion", speculation=ngram, make_drafter=LatestOccurrence)
text, acceptance_length = complete(own)
plain_text, _ = complete(Engine("python-completion", speculation=None))
print(text)
print(f"--- {acceptance_length:.2f} tokens per target forward")
print("same text as plain decoding" if text == plain_text else "DIFFERENT TEXT")
