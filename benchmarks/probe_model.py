"""From one sample of large trees to the speed of every smaller budget."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from sdengine.core.cost_model import CostModel

if TYPE_CHECKING:
    from sdengine.engine import Engine

__all__ = ["Prediction", "StepCosts", "TreeSampler", "between", "predict"]


@dataclass(frozen=True, slots=True)
class Prediction:
    """One budget.

    Args:
        budget: draft tokens per sequence and step.
        tokens_per_step: per sequence, bonus token included.
        draft_layers: mean depth of the trees.
        step_s: of the whole batch.
        speedup: over plain decoding.
    """

    budget: int
    tokens_per_step: float
    draft_layers: float
    step_s: float
    speedup: float


@dataclass(frozen=True, slots=True)
class StepCosts:
    """The cost model, and by what the sampled steps differed from it (context, batch, machine)."""

    costs: CostModel
    draft_factor: float
    verify_factor: float

    def step_s(self, num_rows: float, layers: float, other_s: float) -> float:
        """Seconds of a step over so many rows with trees of a mean depth."""
        costs = self.costs
        draft = costs.draft_first_s + (layers - 1) * costs.draft_layer_s if layers else 0.0
        verify = costs.verify_time(int(num_rows + 0.5))
        return self.draft_factor * draft + self.verify_factor * verify + other_s


def between(small: StepCosts, large: StepCosts, share: float) -> StepCosts:
    """Costs of a tree whose size lies that share of the way from a small sample's to a large one's:
    layers of large trees are wide, and cost more than the cost model's narrow ones."""
    mixed = [
        (1.0 - share) * getattr(small, name) + share * getattr(large, name)
        for name in ("draft_factor", "verify_factor")
    ]
    return StepCosts(large.costs, *mixed)


class TreeSampler:
    """Notes, after every step, where in the order of values the accepted nodes stood.

    The best-first tree of n nodes is the first n nodes of a larger one. So with a budget of n the
    walk would have gone as far as the accepted nodes are among the first n.

    Args:
        engine: with trees of a fixed size.
    """

    def __init__(self, engine: Engine) -> None:
        iteration = engine.iteration
        workspace = iteration.workspace
        self._engine = engine
        self._wants = workspace.state.wants_logits.numpy()
        self._values = workspace.draft_tree.values.numpy()
        self._depths = workspace.draft_tree.depths.numpy()
        self._num_nodes = workspace.draft_tree.num_nodes.numpy()
        self._ids = workspace.token_tree.creation_ids.numpy()
        self._num_accepted = iteration.verdict.num_accepted.numpy()
        self._path = iteration.verdict.path.numpy()
        self._needed: list[np.ndarray] = []  # per walk: budget that each accepted node needs
        self._deepest: list[np.ndarray] = []  # per tree: depth of its first 1, 2, ... nodes
        self._steps: list[tuple[float, float, float, int, int]] = []

    def __call__(self) -> None:
        """Adds the last step."""
        report = self._engine.last_report
        if report.num_nodes == 0:
            return
        slots = np.flatnonzero(self._wants == 1)
        for slot in slots:
            self._observe(slot)
        if report.is_steady and len(slots) == len(report.num_accepted):  # none has just finished
            layers = max(int(self._deepest[-1 - i][-1]) for i in range(len(slots)))
            other = report.step_s - report.draft_time_s - report.verify_time_s
            times = report.draft_time_s, report.verify_time_s, other
            self._steps.append((*times, report.num_rows, layers))

    def _observe(self, slot: int) -> None:
        end = int(self._num_nodes[slot]) + 1
        order = np.argsort(-self._values[slot, 1:end], kind="stable")
        place = np.empty(end, dtype=np.int64)
        place[0], place[1 + order] = 0, np.arange(1, end)
        path = self._ids[slot, self._path[slot, : self._num_accepted[slot]]]
        self._needed.append(np.maximum.accumulate(place[path]))
        self._deepest.append(np.maximum.accumulate([0, *self._depths[slot, 1:end][order]]))

    def tokens_per_step(self, budget: int) -> float:
        """Mean tokens that a step would have committed."""
        return 1.0 + float(np.mean([np.sum(needed <= budget) for needed in self._needed]))

    def nodes(self, budget: int) -> float:
        """Mean size of the trees: not every drafter fills its budget."""
        return float(np.mean([min(budget, len(deepest) - 1) for deepest in self._deepest]))

    def draft_layers(self, budget: int) -> float:
        """Mean depth of the trees."""
        return float(np.mean([d[min(budget, len(d) - 1)] for d in self._deepest]))

    @property
    def other_s(self) -> float:
        """Median time of a step that is neither drafting nor verifying."""
        return median(step[2] for step in self._steps)

    def draft_factor(self, costs: CostModel) -> float:
        """How much longer drafting took than the cost model says."""
        ratios = [
            draft / costs.draft_time(layers)
            for draft, _, _, _, layers in self._steps
            if costs.draft_time(layers) > 0
        ]
        return median(ratios) if ratios else 1.0

    def verify_factor(self, costs: CostModel) -> float:
        """How much longer target passes took than the cost model says."""
        return median(verify / costs.verify_time(rows) for _, verify, _, rows, _ in self._steps)


def predict(
    sampler: TreeSampler, costs: StepCosts, budget: int, batch_size: int, plain_s: float
) -> Prediction:
    """Speed of one budget.

    Args:
        sampler: trees of at least that size.
        costs: of a step.
        budget: nodes per sequence.
        batch_size: sequences at once.
        plain_s: a plain step of the batch.
    """
    tokens, layers = sampler.tokens_per_step(budget), sampler.draft_layers(budget)
    rows = batch_size * (1 + sampler.nodes(budget))
    step_s = costs.step_s(rows, layers, sampler.other_s)
    return Prediction(budget, tokens, layers, step_s, tokens * plain_s / step_s)
