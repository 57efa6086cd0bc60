"""The law of trees grown by `tree_expand`, by enumeration over everything that the draft may draw.

Whether a slot is kept must not depend on the token drawn for it. Two ways in which it once did are
kept as negative controls: a layer that runs by the sum of what its nodes reach, and a frontier that
is chosen by what its nodes reach: a lucky draw then lets in, or keeps out, children of other nodes
that are worth more than the slot itself.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import product
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from sdengine.kernels import tree_expand_reference
from sdengine.kernels.calibration import CELLS, bin_centers
from tests.exactness import oracle
from tests.kernels.test_tree_select import select
from tests.kernels.tree_worlds import World, grow, paths_of

torch.set_num_threads(1)
VOCAB = 3
Laws = dict[oracle.Context, oracle.Law]


def law_at(laws: Laws) -> Callable[[oracle.Context], oracle.Law]:
    """The named laws; elsewhere the first token is certain, which adds nothing to enumerate."""
    certain = [Fraction(1), *[Fraction(0)] * (VOCAB - 1)]
    return lambda context: laws.get(tuple(context), certain)


def largest_error(draft: Laws, target: Laws, backend: str = "cpu", **settings: Any) -> float:
    """Of the law of the first token after a step, over all orders in which the draft may draw at
    the root and below it."""
    world = oracle.World(VOCAB, law_at(target), law_at(draft))
    contexts: list[oracle.Context] = [(), *((token,) for token in range(VOCAB))]
    orders = [list(oracle.draw_orders(world.draft(context))) for context in contexts]
    output: oracle.Output = {}
    for drawn in product(*orders):
        probability = Fraction(1)
        grown = World(layers=2, k=VOCAB, vocab=VOCAB, rule="slot", **settings)
        for context, (chance, order) in zip(contexts, drawn):
            probability *= chance
            probs = np.zeros(VOCAB, np.float32)
            probs[: len(order)] = [float(world.draft(context)[token]) for token in order]
            grown.tables[(0, *context)] = (order + [-1] * (VOCAB - len(order)), probs)
        for tokens, p in oracle.rejection_output(world, tree_of(grown, backend, world)).items():
            oracle.add_output(output, tokens, probability * p)
    got, expected = oracle.first_tokens(world, output, 1), oracle.target_tokens(world, 1)
    return float(max(abs(got.get(t, Fraction(0)) - expected[t]) for t in expected))


def tree_of(grown: World, backend: str, world: oracle.World) -> oracle.Tree:
    """The grown tree, cut by its prices, as the oracle's."""
    tree = grow(grown, backend).tree
    if grown.prices is not None:
        tree = select(tree, torch.tensor(grown.prices), 1)
    nodes = [oracle.Node(path, Fraction(1), list(world.draft(path))) for path in paths_of(tree, 0)]
    for i in range(1, len(nodes)):
        nodes[int(tree.parents[0, i])].children.append(i)
    return nodes


def fractions(*parts: int) -> oracle.Law:
    return [Fraction(part, sum(parts)) for part in parts]


GAINS = (0.3, 0.5, 0.7)


def gain_error(gain: float, backend: str = "cpu") -> float:
    """A lucky first token brings a layer in whose other node's children are worth more."""
    draft = {(): fractions(6, 3, 1), (0,): fractions(2, 4, 4)}
    target = {(): fractions(2, 4, 4)}
    return largest_error(draft, target, backend, nodes=3, min_gain=gain)


def width_error(backend: str = "cpu") -> float:
    """A lucky second token takes the only place in the frontier from the first."""
    table = torch.zeros(1, *CELLS)
    centers = bin_centers().numpy()
    first = np.interp(centers, [0, 0.2, 0.3, 0.5, 1], [0, 0.3, 0.45, 0.6, 1])
    later = np.interp(centers, [0, 0.286, 0.714, 1], [0, 0.3, 1, 1])
    table[0, 0], table[0, 1:] = torch.from_numpy(first), torch.from_numpy(later)
    draft, target = {(): fractions(3, 5, 2)}, {(): fractions(1, 6, 3)}
    return largest_error(draft, target, backend, nodes=2, width=1, calibration=table)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_what_a_node_drew_decides_about_its_own_children_only(backend: str) -> None:
    assert max(gain_error(gain, backend) for gain in GAINS) == 0.0
    assert width_error(backend) == 0.0


def test_a_layer_that_runs_by_its_sum_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_expand_reference, "_layer_share", lambda args: np.float32(0))
    monkeypatch.setattr(
        tree_expand_reference,
        "_is_worth_running",
        lambda gain, args: gain >= args["min_layer_gain"].numpy()[0],
    )
    assert max(gain_error(gain, "reference") for gain in GAINS) > 0.004


def test_a_frontier_chosen_by_reach_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_expand_reference, "_promise", lambda node: node.reach)
    assert width_error("reference") > 0.02


@pytest.mark.parametrize("has_table", [False, True])
@pytest.mark.parametrize("has_prices", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_grown_trees_keep_the_target_s_law(seed: int, has_table: bool, has_prices: bool) -> None:
    """With whatever the engine cuts trees by: budget, prices, worth of a layer, width, table."""
    random = Random(seed)

    def law(support: int) -> oracle.Law:
        chosen = random.sample(range(VOCAB), support)
        return fractions(*(random.choice([1, 2, 3, 5, 8]) * (t in chosen) for t in range(VOCAB)))

    draft: Laws = {(): law(3)} | {(token,): law(random.choice([1, 2])) for token in range(VOCAB)}
    table = None
    if has_table:
        rates = torch.rand(1, *CELLS, generator=torch.Generator().manual_seed(seed))
        table = rates.sort(-1).values
    error = largest_error(
        draft,
        {(): law(3)},
        nodes=random.choice([2, 3, 4]),
        width=random.choice([1, 2, 64]),
        min_gain=random.choice([0.05, 0.1, 0.2, 0.4]),
        prices=sorted(random.choices([0.0, 0.1, 0.2, 0.3, 0.5], k=8)) if has_prices else None,
        calibration=table,
    )
    assert error == 0.0
