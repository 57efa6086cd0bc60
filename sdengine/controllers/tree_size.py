"""How large a tree may be: depth and nodes of a sequence, from what was accepted of those before.

Best-first trees are cut node by node on the device, so that a limit only has to keep a draft of
which nothing is known from costing much. A static tree has nothing to be cut by but its depth and
the width of its root: of every one it is known what it costs, and how often a walk goes on is
counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

from sdengine.controllers.seen_costs import SMOOTHING
from sdengine.core.cost_model import CostModel
from sdengine.core.plan import StepPlan, StepReport

FIRST_NODES = 2  # of a sequence's first tree, before anything is known of the draft
TRUST_GAINED, TRUST_LOST = 2.0, 0.8  # factors on the node limit: one step in four that accepts
# a draft token keeps it where it is
SPARE_LAYERS = 2  # recorded beyond the depth that was of use lately
FORGETTING = 0.03  # per walk, of what is known of a depth
FIRST_GUESS = 0.5  # of the first draft token, that it is accepted
GUESS_WALKS = 3.0  # that the guess counts for; a depth never tried is guessed as the one above it
SIBLING_GUESS = 0.25  # of a root's further child, that it is accepted where those before it are not
CHOOSE_EVERY = 4  # steps between two choices of a tree, 1.3 us for each that there is
EXPLORE_EVERY = 8  # steps between two with a tree beside the chosen one: what others cost and
# accept changes with machine and text, and is known of no tree that is not used,
WORTH_A_LOOK = 1.15  # unless a token there is expected to cost so many times as much


class TreeSize(Protocol):
    """Chooses the size of the next step's trees."""

    def choose(self, num_decoding: int, costs: CostModel) -> tuple[int, int]:
        """Depth and most nodes of a sequence on average, both at least 1."""
        ...

    def learn(self, plan: StepPlan, report: StepReport) -> None:
        """Takes note of a step with trees."""
        ...


def nodes_within(seconds: float, num_decoding: int, costs: CostModel, most: int) -> int:
    """Nodes of a sequence, 1 to `most`, with which a step of chains takes no longer."""
    for nodes in range(2, most + 1):
        if costs.draft_time(nodes) + costs.verify_time(num_decoding * (1 + nodes)) > seconds:
            return nodes - 1
    return most


class GrowingSize:
    """For best-first trees: few nodes at first, more with every step that accepts some.

    Args:
        max_depth: deepest tree.
        max_nodes: of a sequence's tree.
        has_layers: whether the drafter computes one layer after the other. One that looks the text
            up is as deep as it likes for nothing, and in most steps finds nothing: counted as walks
            that accepted nothing, those had left it trees of one node, with 1.93 instead of 2.24
            times plain decoding's speed (`benchmarks.modelled_budgets`, 1.1B).
    """

    def __init__(self, max_depth: int, max_nodes: int, *, has_layers: bool = True) -> None:
        self._max_depth = max_depth
        self._max_nodes = max_nodes
        self._has_layers = has_layers
        self._depth_used = float(max_depth)
        self._trusted_nodes = float(min(FIRST_NODES, max_nodes))

    def choose(self, num_decoding: int, costs: CostModel) -> tuple[int, int]:
        nodes = int(self._trusted_nodes)
        if not self._has_layers:
            return min(self._max_depth, nodes), nodes
        return min(self._max_depth, int(self._depth_used + 0.5) + SPARE_LAYERS, nodes), nodes

    def learn(self, plan: StepPlan, report: StepReport) -> None:
        num_walks = len(report.num_accepted)
        if not self._has_layers:
            num_walks = min(num_walks, report.num_nodes)
            if num_walks == 0:
                return
        deepest = max(report.num_accepted)
        # Grows at once and shrinks slowly: a layer too many costs little, one too few a token.
        rate = 0.5 if deepest > self._depth_used else SMOOTHING
        self._depth_used += rate * (deepest - self._depth_used)
        share = sum(map(bool, report.num_accepted)) / num_walks
        trusted = self._trusted_nodes * TRUST_GAINED**share * TRUST_LOST ** (1.0 - share)
        self._trusted_nodes = min(max(trusted, 1.0), float(self._max_nodes))


class StaticSize:
    """For static trees: of those that a configuration allows, the one by which a token is expected
    to cost least. They are ordered by size: a root with 1, 2, ... children up to its width, then
    trees of whole levels.

    Args:
        level_widths: children of every node at depth 1, 2, ...
        max_batch_nodes: of a step; larger trees than fit are not chosen, unless none fits.
    """

    def __init__(self, level_widths: Sequence[int], max_batch_nodes: int | None = None) -> None:
        level_nodes = accumulate(level_widths, lambda nodes, width: nodes * width)
        self._width = level_widths[0]
        # Of trees of one level, then of two, three, ...
        self._nodes = (*range(1, self._width), *accumulate(level_nodes))
        self._max_batch_nodes = max_batch_nodes
        # Of every root with so many children, then of every further level:
        self._tried = [0.0] * len(self._nodes)  # walks that came to it
        self._passed = [0.0] * len(self._nodes)  # and went on
        self._chosen: dict[int, tuple[int, int, int]] = {}  # by decoding sequences
        self._num_steps = 0

    def choose(self, num_decoding: int, costs: CostModel) -> tuple[int, int]:
        self._num_steps += 1
        if self._num_steps % CHOOSE_EVERY == 0:
            self._chosen.clear()
        chosen = self._chosen.get(num_decoding)
        if chosen is None:
            chosen = self._chosen[num_decoding] = self._rank(num_decoding, costs)
        turn = self._num_steps % (2 * EXPLORE_EVERY)
        tree = chosen[0 if turn % EXPLORE_EVERY else 1 if turn else 2]
        return self._depth(tree), self._nodes[tree]

    def learn(self, plan: StepPlan, report: StepReport) -> None:
        walks = len(report.num_accepted)
        if report.num_nodes == 0:
            return  # no room for a tree, or its sequence's last token
        ends = [0] * (plan.depth + 1)
        for accepted in report.num_accepted:
            ends[accepted] += 1
        root = min(plan.max_seq_nodes, self._width) - 1
        # Trees that were not tried are forgotten, too, so that one is tried again some day.
        kept = (1.0 - FORGETTING) ** walks
        self._tried = [kept * tried for tried in self._tried]
        self._passed = [kept * passed for passed in self._passed]
        for tree, ended in enumerate(ends[:-1], start=root):
            self._tried[tree] += walks
            walks -= ended
            self._passed[tree] += walks

    def _depth(self, tree: int) -> int:
        return max(tree - self._width + 2, 1)

    def _rank(self, num_decoding: int, costs: CostModel) -> tuple[int, int, int]:
        """The tree by which a token costs least, the one before it and the one after it, each
        itself where it is not worth a look."""
        tokens, reach, rate = 1.0, 1.0, FIRST_GUESS
        token_s: list[float] = []
        for tree, nodes in enumerate(self._nodes):
            rows = num_decoding * nodes
            if tree > 0 and self._max_batch_nodes is not None and rows > self._max_batch_nodes:
                break
            if 0 < tree < self._width:
                rate += SIBLING_GUESS * (1.0 - rate)
            rate = (self._passed[tree] + GUESS_WALKS * rate) / (self._tried[tree] + GUESS_WALKS)
            if tree < self._width:
                tokens, reach = 1.0 + rate, rate
            else:
                reach *= rate
                tokens += reach
            seconds = costs.draft_time(self._depth(tree)) + costs.verify_time(num_decoding + rows)
            token_s.append(seconds / tokens)
        best = token_s.index(min(token_s))
        most = WORTH_A_LOOK * token_s[best]
        before = best > 0 and token_s[best - 1] < most
        after = best + 1 < len(token_s) and token_s[best + 1] < most
        return best, best - before, best + after
