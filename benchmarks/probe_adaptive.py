"""What the adaptive budget will do: its own controller, with sampled trees for an engine.

Requests follow each other as in a measurement: the controller's trials, pauses and verdicts come
when they would. A tree is a sampled one, cut to what the controller's prices leave of it; what it
accepts is known, and what a step costs comes from the timed budgets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median

import numpy as np

from benchmarks.probe_model import TreeSampler
from sdengine.controllers.base import BudgetController
from sdengine.core.cost_model import CostModel
from sdengine.core.plan import Outlook, StepPlan, StepReport
from sdengine.runner.prices import least_layer_gain
from sdengine.runner.runner import MAX_STEADY_PENDING


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Seconds of the steps of a batch, as timed.

    Args:
        costs: how they split between draft and target.
        plain_s: a plain step.
        overhead_s: of it, outside the programs.
        missed_token_s: what the draft takes for a token that it has to read first.
        plain_steps: of a step by its mean number of nodes and layers per sequence, in plain steps.
    """

    costs: CostModel
    plain_s: float
    overhead_s: float
    missed_token_s: float
    plain_steps: Callable[[float, float], float]

    def report(
        self, accepted: list[int], num_nodes: int, num_layers: int, missing: int
    ) -> StepReport:
        """A finished step of `len(accepted)` sequences."""
        batch = len(accepted)
        draft_s = catch_up_s = 0.0
        seconds = self.plain_s
        if num_layers:
            seconds *= self.plain_steps(num_nodes / batch, num_layers)
            catch_up_s = self.missed_token_s * max(missing - batch, 0)
            draft_s = self.costs.draft_time(num_layers)
        programs_s = max(seconds - self.overhead_s, 0.5 * seconds)
        draft_s = min(draft_s, 0.5 * programs_s)
        return StepReport(
            accepted,
            num_nodes,
            batch + num_nodes,
            draft_s + catch_up_s,
            programs_s - draft_s,
            seconds + catch_up_s,
            missing <= MAX_STEADY_PENDING * batch,
        )


class Replay:
    """Decodes batches of one size with a controller.

    Args:
        controller: as a new engine has it.
        times: of the steps.
        seed: of which sampled tree comes when.
    """

    def __init__(self, controller: BudgetController, times: StepTimes, seed: int) -> None:
        self._controller = controller
        self._times = times
        self._rng = np.random.default_rng(seed)
        self._costs = times.costs

    def run(self, sampler: TreeSampler, batch: int, num_tokens: int) -> float:
        """Seconds from the first token of a batch of requests to its last, per token of each."""
        controller, times = self._controller, self._times
        room = float(num_tokens)
        plan = controller.plan(batch, lambda: Outlook(sampler.prompt_tokens, room))
        self._take_costs(plan)
        accepted, nodes, layers = self._step(plan, sampler, np.full(batch, num_tokens))
        missing = 0 if layers else sampler.prompt_tokens
        prompt = times.report(accepted, nodes, layers, 0)
        rows = prompt.num_rows + sampler.prompt_tokens
        controller.observe(plan, replace(prompt, num_rows=rows, is_steady=False))
        left = np.full(batch, num_tokens) - 1 - np.array(accepted)
        decoded, seconds = int(left.max()), 0.0
        while (going := left > 0).any():
            size = int(going.sum())
            outlook = Outlook(missing + size, float(left[going].mean()))
            plan = controller.plan(size, lambda known=outlook: known)
            self._take_costs(plan)
            accepted, nodes, layers = self._step(plan, sampler, left[going])
            report = times.report(accepted, nodes, layers, missing + size)
            missing = 0 if layers else missing + size
            controller.observe(plan, report)
            seconds += report.step_s
            left[going] -= 1 + np.array(accepted)
        return seconds / max(decoded, 1)

    def _take_costs(self, plan: StepPlan) -> None:
        if plan.costs is not None:
            self._costs = plan.costs

    def _step(
        self, plan: StepPlan, sampler: TreeSampler, left: np.ndarray
    ) -> tuple[list[int], int, int]:
        """Accepted tokens of each sequence, nodes of all, and layers that were grown."""
        batch = len(left)
        if plan.depth == 0:
            return [0] * batch, 0, 0
        trees = [sampler.tree(int(self._rng.integers(sampler.num_trees))) for _ in range(batch)]
        rooms = [min(plan.depth, int(tokens) - 1) for tokens in left]
        values, depths = [values for values, _, _ in trees], [depths for _, depths, _ in trees]
        num_layers = self._count_layers(plan, values, depths, rooms)
        kept = self._keep(plan, values, [d <= min(num_layers, r) for d, r in zip(depths, rooms)])
        accepted = []
        for (_, _, places), mask in zip(trees, kept):
            hits = mask[places - 1]
            accepted.append(len(hits) if hits.all() else int(np.argmin(hits)))
        return accepted, int(sum(mask.sum() for mask in kept)), num_layers

    def _count_layers(
        self,
        plan: StepPlan,
        values: list[np.ndarray],
        depths: list[np.ndarray],
        rooms: list[int],
    ) -> int:
        """Layers that run, by `tree_expand`'s rule: one more while what its nodes promise beyond
        what a newcomer costs is together worth a layer."""
        batch = len(values)
        most = batch + sum(map(len, values)) + 1
        prices = self._costs.row_costs(most)[batch:] * plan.tokens_per_s
        least_gain = least_layer_gain(self._costs.draft_layer_s, plan.tokens_per_s)
        for layer in range(1, plan.depth):
            grown = [v[d <= min(layer, room)] for v, d, room in zip(values, depths, rooms)]
            cost = _newcomer_cost(np.concatenate(grown), prices)
            gain, has_rows = 0.0, False
            for value, depth, room in zip(values, depths, rooms):
                if layer >= room:
                    continue
                promised = value[depth == layer]
                promised = promised[promised >= cost] - cost
                gain += float(promised.sum())
                has_rows = has_rows or len(promised) > 0
            if not has_rows or gain < least_gain:
                return layer
        return plan.depth

    def _keep(
        self, plan: StepPlan, values: list[np.ndarray], kept: list[np.ndarray]
    ) -> list[np.ndarray]:
        """Which nodes of every tree are verified, of those that were grown: the engine's rules, on
        whole trees."""
        batch = len(values)
        owners = np.concatenate([np.full(len(v), b) for b, v in enumerate(values)])
        places = np.concatenate([np.arange(len(v)) for v in values])
        chosen = np.concatenate(kept)
        order = np.flatnonzero(chosen)[np.argsort(-np.concatenate(values)[chosen], kind="stable")]
        order = order[: plan.max_batch_nodes]
        worth = np.concatenate(values)[order]
        prices = self._costs.row_costs(batch + len(order) + 1)[batch : batch + len(order)]
        too_dear = worth < prices * plan.tokens_per_s
        order = order[: int(np.argmax(too_dear)) if too_dear.any() else len(order)]
        result = [np.zeros(len(v), dtype=bool) for v in values]
        for index in order:
            result[owners[index]][places[index]] = True
        return result


def _newcomer_cost(values: np.ndarray, prices: np.ndarray) -> float:
    """What a child has to be worth beside the nodes of the batch: the place of the last one that
    would be selected, or one more row."""
    ranked = np.sort(values)[::-1]
    too_dear = ranked < prices[: len(ranked)]
    num_kept = int(np.argmax(too_dear)) if too_dear.any() else len(ranked)
    price = float(prices[num_kept])
    return min(float(ranked[num_kept - 1]), price) if num_kept else price


def replay_speedup(
    controllers: Sequence[BudgetController],
    samplers: Sequence[TreeSampler],
    times: StepTimes,
    batch_size: int,
    num_tokens: int,
    warm_up: int,
    repeats: int,
) -> float:
    """Speed over plain decoding as a measurement would find it: of all batches together, each the
    median over its repeats; mean over controllers, which see other samples.

    Args:
        controllers: as new engines have them.
        samplers: of each batch.
        times: of the steps.
        batch_size: sequences at once.
        num_tokens: of a request.
        warm_up: tokens of a first batch, which is not counted.
        repeats: of every batch, one after the other.
    """
    found = []
    for seed, controller in enumerate(controllers):
        replay = Replay(controller, times, seed)
        replay.run(samplers[0], batch_size, warm_up)
        token_s = [
            median(replay.run(s, batch_size, num_tokens) for _ in range(repeats)) for s in samplers
        ]
        found.append(times.plain_s / fmean(token_s))
    return float(np.mean(found))
