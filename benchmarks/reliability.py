"""Whether the drafter's estimates come true: predicted against seen acceptance, in bins.

Every child of a node that a walk visited is one observation: the drafter said, after calibration,
how probable it was that this child would be the accepted one, and the walk says whether it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sdengine.kernels.token_tree import ROOT_AND_NODES

if TYPE_CHECKING:
    from sdengine.engine import Engine

__all__ = ["NUM_BINS", "ReliabilityBin", "TreeObserver", "expected_error"]

NUM_BINS = 10


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Children whose predicted acceptance fell into one tenth of [0, 1].

    Args:
        predicted: mean of what was predicted.
        seen: share that was accepted.
        count: children.
    """

    predicted: float
    seen: float
    count: int


class TreeObserver:
    """Collects observations from the trees of an engine; call it after every step.

    Args:
        engine: a speculating engine.
    """

    def __init__(self, engine: Engine) -> None:
        iteration = engine.iteration
        tree, verdict = iteration.workspace.token_tree, iteration.verdict
        self._engine = engine
        self._wants = iteration.workspace.state.wants_logits.numpy()
        self._num_nodes = tree.num_nodes.numpy()
        self._parents = tree.parents.numpy()
        self._reach = tree.reach.numpy()
        self._num_accepted = verdict.num_accepted.numpy()
        self._path = verdict.path.numpy()
        self._count = np.zeros(NUM_BINS, dtype=np.int64)
        self._predicted = np.zeros(NUM_BINS)
        self._accepted = np.zeros(NUM_BINS, dtype=np.int64)

    def __call__(self) -> None:
        """Adds what the last step's walks say; nothing when it drafted nothing."""
        if self._engine.last_report.num_nodes == 0:
            return
        for slot in np.flatnonzero(self._wants == ROOT_AND_NODES):
            self._observe(slot)

    def _observe(self, slot: int) -> None:
        end = int(self._num_nodes[slot]) + 1
        is_accepted = np.zeros(end, dtype=bool)
        is_accepted[self._path[slot, : self._num_accepted[slot]]] = True
        is_visited = is_accepted.copy()
        is_visited[0] = True
        parents = self._parents[slot, 1:end]
        tested = np.flatnonzero(is_visited[parents])
        reach = self._reach[slot, :end]
        above = reach[parents[tested]]  # 0 of a static tree's node that was not believed in
        predicted = np.divide(reach[1:][tested], above, out=np.zeros_like(above), where=above > 0)
        bins = np.minimum((predicted * NUM_BINS).astype(np.int64), NUM_BINS - 1)
        np.add.at(self._count, bins, 1)
        np.add.at(self._predicted, bins, predicted)
        np.add.at(self._accepted, bins, is_accepted[1:][tested])

    def bins(self) -> list[ReliabilityBin]:
        """The bins that hold anything, from low to high predictions."""
        return [
            ReliabilityBin(float(p / n), float(a / n), int(n))
            for p, a, n in zip(self._predicted, self._accepted, self._count)
            if n
        ]


def expected_error(bins: Sequence[ReliabilityBin]) -> float:
    """Mean of |predicted - seen| over the children (expected calibration error); 0 without any."""
    total = sum(b.count for b in bins)
    return sum(b.count * abs(b.predicted - b.seen) for b in bins) / total if total else 0.0
