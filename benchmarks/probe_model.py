"""From samples of a few budgets to the speed of every one.

What a step accepts comes from the largest trees: the best-first tree of n nodes is the first n
nodes of a larger one. But steps start where the one before ended, at other places of the text for
each budget: a large tree's where it failed, which is where the text is hard. So what the samples
say is held against the steps that requests took at a ladder of budgets, and corrected by as much,
between two rungs by what lies between (without it, predictions for texts that repeat themselves
were 7 to 9% low, on a clock without noise). What a step costs comes from the steps themselves, at
the same ladder, each beside plain steps of the same minute, because what surrounds the kernels and
what the machine does meanwhile are part of it; the cost model only says how costs run between two
rungs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, log
from statistics import fmean, harmonic_mean, median
from typing import TYPE_CHECKING

import numpy as np

from sdengine.core.cost_model import CostModel
from sdengine.kernels.token_tree import ROOT_AND_NODES

if TYPE_CHECKING:
    from sdengine.core.plan import StepReport
    from sdengine.engine import Engine

__all__ = ["Prediction", "Rung", "TreeSampler", "Turn", "neighbours", "predict", "step_cost"]


@dataclass(frozen=True, slots=True)
class Prediction:
    """One budget.

    Args:
        budget: draft tokens per sequence and step.
        tokens_per_step: per sequence, bonus token included.
        draft_layers: mean depth of the trees.
        plain_steps: what a step costs, in plain steps of the same batch.
        speedup: over plain decoding, for requests of the sampled length.
    """

    budget: int
    tokens_per_step: float
    draft_layers: float
    plain_steps: float
    speedup: float


@dataclass(frozen=True, slots=True)
class Turn:
    """A batch, decoded plainly and with trees.

    Args:
        plain_s: mean of a plain step.
        step_s: of one with trees, next to it.
        group: which batch.
        requests: tokens of each, and steps that they took with trees.
    """

    plain_s: float
    step_s: float
    group: int
    requests: Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Rung:
    """What a step of one budget cost: `plain_steps` plain steps of `plain_s` seconds next to it;
    and the turns that say so."""

    budget: int
    plain_steps: float
    plain_s: float = 0.0
    turns: Sequence[Turn] = ()

    @classmethod
    def from_turns(cls, budget: int, turns: Sequence[Turn]) -> Rung:
        """From a budget's turns."""
        ratio = median(turn.step_s / turn.plain_s for turn in turns)
        return cls(budget, ratio, median(turn.plain_s for turn in turns), turns)

    def correction(self, samplers: Sequence[TreeSampler]) -> float:
        """Steps that the samples give its requests, over those that they took."""
        expected = taken = 0.0
        tokens = {g: samplers[g].tokens(self.budget) for g in {turn.group for turn in self.turns}}
        for turn in self.turns:
            sampled = tokens[turn.group]
            expected += sum(steps_of_a_request(sampled, count) for count, _ in turn.requests)
            taken += sum(steps for _, steps in turn.requests)
        return expected / taken if taken else 1.0


class TreeSampler:
    """Notes, after every step, where in the order of values the accepted nodes stood.

    The best-first tree of n nodes is the first n nodes of a larger one. So with a budget of n the
    walk would have gone as far as the accepted nodes are among the first n. Steps too near the end
    of a request for the deepest tree are left out: they commit less than a step can, and fewer
    tokens than a request has left are counted by `steps_of_a_request` already.

    Args:
        engine: with trees of a fixed size.
        last_report: of its last step, with the times that count.
    """

    def __init__(self, engine: Engine, last_report: Callable[[], StepReport]) -> None:
        iteration = engine.iteration
        workspace = iteration.workspace
        self._last_report = last_report
        self._wants = workspace.state.wants_logits.numpy()
        self._values = workspace.draft_tree.values.numpy()
        self._depths = workspace.draft_tree.depths.numpy()
        self._num_nodes = workspace.draft_tree.num_nodes.numpy()
        self._ids = workspace.token_tree.creation_ids.numpy()
        self._num_accepted = iteration.verdict.num_accepted.numpy()
        self._path = iteration.verdict.path.numpy()
        self._max_emit = workspace.state.max_emit.numpy()
        self._max_depth = workspace.sizes.max_depth
        self._trees: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._overheads_s: list[float] = []
        self._prompts: list[tuple[int, float]] = []  # pending tokens, and the draft's time for them
        self._needed: list[np.ndarray] = []  # per walk: budget that each accepted node needs
        self._deepest: list[np.ndarray] = []  # per tree: depth of its first 1, 2, ... nodes

    def __call__(self) -> None:
        """Adds the last step; a steady one without trees committed a token for each sequence."""
        report = self._last_report()
        if report.num_nodes:
            self._note_times(report)
            for slot in np.flatnonzero(self._wants == ROOT_AND_NODES):
                if self._max_emit[slot] > self._max_depth:
                    self._observe(slot)
        elif report.is_steady:
            nothing = np.zeros(0, dtype=np.int64)
            self._needed += [nothing] * len(report.num_accepted)
            self._deepest += [np.zeros(1, dtype=np.int64)] * len(report.num_accepted)

    def _observe(self, slot: int) -> None:
        end = int(self._num_nodes[slot]) + 1
        order = np.argsort(-self._values[slot, 1:end], kind="stable")
        place = np.empty(end, dtype=np.int64)
        place[0], place[1 + order] = 0, np.arange(1, end)
        values, depths = self._values[slot, 1:end][order], self._depths[slot, 1:end][order]
        path = self._ids[slot, self._path[slot, : self._num_accepted[slot]]]
        self._trees.append((values, depths, place[path]))
        self._needed.append(np.maximum.accumulate(place[path]))
        self._deepest.append(np.maximum.accumulate([0, *depths]))

    def _note_times(self, report: StepReport) -> None:
        pending = report.num_rows - report.num_nodes
        if report.is_steady:
            self._overheads_s.append(report.step_s - report.draft_time_s - report.verify_time_s)
        elif pending > len(report.num_accepted):
            self._prompts.append((pending, report.draft_time_s))

    @property
    def num_trees(self) -> int:
        """How many trees were sampled."""
        return len(self._trees)

    def tree(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Values and depths of a tree's nodes, likeliest first, and the places, from 1 on, of those
        accepted, from the root on."""
        return self._trees[index]

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens of the batch."""
        return sum(pending for pending, _ in self._prompts)

    @property
    def overhead_s(self) -> float:
        """Of a step, outside the programs: median."""
        return median(self._overheads_s) if self._overheads_s else 0.0

    def missed_token_s(self, draft_s: float) -> float:
        """What the draft takes for a token that it has to read, beside `draft_s` for a tree."""
        if not self._prompts:
            return 0.0
        return max(sum(s - draft_s for _, s in self._prompts) / self.prompt_tokens, 0.0)

    def tokens(self, budget: int) -> np.ndarray:
        """Tokens that every step would have committed."""
        return 1 + np.array([np.sum(needed <= budget) for needed in self._needed])

    def nodes(self, budget: int) -> float:
        """Mean size of the trees: not every drafter fills its budget."""
        return float(np.mean([min(budget, len(deepest) - 1) for deepest in self._deepest]))

    def draft_layers(self, budget: int) -> float:
        """Mean depth of the trees."""
        return float(np.mean([d[min(budget, len(d) - 1)] for d in self._deepest]))


def steps_of_a_request(tokens: np.ndarray, count: float) -> float:
    """Steps that a request of `count` tokens takes when steps commit as `tokens` does.

    The last step commits what is left, on average (E[t^2] / E[t] - 1) / 2 tokens less than it could
    (renewal theory); of 64 tokens at three a step that is one in thirty.
    """
    mean = tokens.mean()
    overshoot = ((tokens.astype(float) ** 2).mean() / mean - 1.0) / 2.0
    return float((count + overshoot) / mean)


def predict(
    samplers: Sequence[TreeSampler],
    costs: CostModel,
    rungs: list[Rung],
    budgets: Sequence[int],
    batch_size: int,
    num_tokens: int,
) -> list[Prediction]:
    """Speeds of some budgets.

    Args:
        samplers: trees of at least those sizes, of each batch; a speed-up is of all batches
            together, as what is measured is, so that one that accepts little weighs more.
        costs: how costs run between rungs.
        rungs: measured steps, budgets ascending.
        budgets: nodes per sequence.
        batch_size: sequences at once.
        num_tokens: of a request.
    """
    cost = step_cost(samplers, costs, rungs, batch_size)
    correction = _between_rungs(rungs, [rung.correction(samplers) for rung in rungs])

    def predict_one(budget: int) -> Prediction:
        layers = fmean(s.draft_layers(budget) for s in samplers)
        timed = [rung.plain_steps for rung in neighbours(rungs, budget)]
        # The model is noisy, too.
        plain_steps = min(max(cost(float(budget), layers), min(timed)), max(timed))
        found = [s.tokens(budget) for s in samplers]
        factor = correction(budget)
        rate = factor * harmonic_mean([tokens_per_step(tokens, num_tokens) for tokens in found])
        tokens = factor * float(np.concatenate(found).mean())
        return Prediction(budget, tokens, layers, plain_steps, rate / plain_steps)

    return [predict_one(budget) for budget in budgets]


def tokens_per_step(tokens: np.ndarray, count: int) -> float:
    """Of requests of `count` tokens; the first step, beside the prompt, is not counted."""
    decoded = count - tokens.mean()
    return float(decoded / steps_of_a_request(tokens, decoded))


def _between_rungs(rungs: list[Rung], factors: list[float]) -> Callable[[float], float]:
    """A factor of every rung, and for other budgets what lies between those next to them."""
    places = [log(rung.budget) for rung in rungs]
    logs = [log(factor) for factor in factors]
    return lambda nodes: exp(float(np.interp(log(max(nodes, 1.0)), places, logs)))


def step_cost(
    samplers: Sequence[TreeSampler], costs: CostModel, rungs: list[Rung], batch_size: int
) -> Callable[[float, float], float]:
    """What a step costs in plain steps, by nodes of a sequence and draft layers.

    The cost model, times what the rungs next to that many nodes took over it.
    """

    def model(nodes: float, layers: float) -> float:
        further = max(layers - 1.0, 0.0) * costs.draft_layer_s
        rows = int(batch_size * (1 + nodes) + 0.5)
        return costs.draft_time(1) + further + costs.verify_time(rows)

    def at(n: int) -> float:
        nodes, layers = (
            fmean(x) for x in zip(*((s.nodes(n), s.draft_layers(n)) for s in samplers))
        )
        return model(nodes, layers)

    factor = _between_rungs(rungs, [rung.plain_steps / at(rung.budget) for rung in rungs])

    def cost(nodes: float, layers: float) -> float:
        return model(nodes, layers) * factor(nodes)

    return cost


def neighbours(rungs: list[Rung], budget: int) -> list[Rung]:
    """The rungs next to a budget: its own, or that below and that above."""
    own = [rung for rung in rungs if rung.budget == budget]
    below = [rung for rung in rungs if rung.budget < budget]
    above = [rung for rung in rungs if rung.budget > budget]
    return own or below[-1:] + above[:1]
