"""What a step may speculate, and what it turned out to do: the words between controller and
runner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sdengine.core.config import MAX_TREE_NODES
from sdengine.core.cost_model import CostModel

MAX_ITERATIONS = 16
"""In a row, that the engine's faces ask for. A small model's host work between two iterations is a
tenth of one, shared by sixteen of them a hundredth."""
STREAM_SECONDS = 0.008
"""That iterations in a row may take where somebody reads along, who cannot tell."""
UNSEEN_SECONDS = 0.03
"""And where nobody sees a token before the last one."""


@dataclass(slots=True)
class StepPlan:
    """How much the next step speculates.

    Args:
        depth: draft layers to run; 0 is plain decoding.
        max_batch_nodes: most tree nodes of the whole step. Its sequences share them, none with more
            than `max_seq_nodes` and `SpeculationConfig.max_nodes`.
        tokens_per_s: what a second is worth; nodes and layers that promise less than they cost at
            this rate are left out. 0 keeps every node.
        costs: what rows and layers cost from this step on; None as before.
        num_iterations: most iterations in a row that it may serve.
        max_seq_nodes: most tree nodes of a sequence.
    """

    depth: int
    max_batch_nodes: int
    tokens_per_s: float = 0.0
    costs: CostModel | None = None
    num_iterations: int = 1
    max_seq_nodes: int = MAX_TREE_NODES


@dataclass(slots=True)
class Outlook:
    """What the sequences of the next step have before them.

    Args:
        draft_backlog: tokens that the draft has to read before it grows a tree, of all sequences.
        tokens_left: that a decoding sequence may still generate, mean; stops are not foreseen.
    """

    draft_backlog: int
    tokens_left: float


@dataclass(slots=True)
class StepReport:
    """What an iteration did.

    Args:
        num_accepted: per decoding sequence, draft tokens accepted.
        num_nodes: tree nodes verified over all sequences.
        num_rows: rows of the target's forward, prefill included.
        draft_time_s: time spent growing trees.
        verify_time_s: time of the target's forward, verification and commit.
        step_s: the whole of it on the host, preparing and reading included, which iterations in a
            row share; what a user waits for.
        is_steady: whether it was free of prefill and draft catch-up, so that its times can be
            learned from.
        num_layers: draft layers that ran, if that is known; else 0.
        first_layer_s: time of the first of them.
    """

    num_accepted: Sequence[int]
    num_nodes: int
    num_rows: int
    draft_time_s: float
    verify_time_s: float
    step_s: float
    is_steady: bool
    num_layers: int = 0
    first_layer_s: float = 0.0
