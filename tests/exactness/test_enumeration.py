"""Exact laws: the output's law equals the target's to the last fraction, and mistakes show."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import product

import pytest

from . import oracle
from .oracle import Mistake, Output, Tree, World

COUNT = 3
CASES = [(3, budget, seed) for budget in (1, 2, 3, 4) for seed in range(4)]
CASES += [(3, 5, 0), (3, 5, 1), (4, 2, 0), (4, 3, 1), (4, 4, 2)]


def joint(
    world: World, trees: Iterator[tuple[Fraction, Tree]], mistake: Mistake = Mistake.NONE
) -> Output:
    """Law of the first tokens of one speculative step and what follows it."""
    parts = ((p, oracle.rejection_output(world, tree, mistake)) for p, tree in trees)
    return oracle.first_tokens(world, oracle.mixture(parts), COUNT)


def largest_error(got: Output, expected: Output) -> Fraction:
    return max(
        abs(got.get(t, Fraction(0)) - expected.get(t, Fraction(0))) for t in {*got, *expected}
    )


@pytest.mark.parametrize("vocab,budget,seed", CASES)
def test_rejection_on_dyspec_trees_is_exact(vocab: int, budget: int, seed: int) -> None:
    world = oracle.random_world(seed, vocab)
    assert joint(world, oracle.dyspec_trees(world, budget)) == oracle.target_tokens(world, COUNT)


@pytest.mark.parametrize("seed", range(8))
def test_chosen_children_are_exact_on_any_tree(seed: int) -> None:
    world = oracle.random_world(seed, 3)
    output = oracle.chosen_output(world, oracle.deterministic_tree(world, 4, 2))
    assert oracle.first_tokens(world, output, COUNT) == oracle.target_tokens(world, COUNT)
    pruned = oracle.pruned_by_node_value(oracle.dyspec_trees(world, 4), keep=2)
    parts = ((p, oracle.chosen_output(world, tree)) for p, tree in pruned)
    law = oracle.first_tokens(world, oracle.mixture(parts), COUNT)
    assert law == oracle.target_tokens(world, COUNT)


WORLDS = [oracle.random_world(seed, 3) for seed in range(6)]


def worst(laws: Iterator[tuple[World, Output]]) -> float:
    """Largest error over worlds."""
    return float(max(largest_error(law, oracle.target_tokens(w, COUNT)) for w, law in laws))


@pytest.mark.parametrize("mistake", [Mistake.STALE_DRAFT, Mistake.REUSED_COIN])
def test_a_wrong_rule_is_noticed(mistake: Mistake) -> None:
    laws = ((w, joint(w, oracle.dyspec_trees(w, 4), mistake)) for w in WORLDS)
    assert worst(laws) > 0.005


def test_pruning_drawn_nodes_by_their_own_value_is_noticed() -> None:
    laws = (
        (w, joint(w, oracle.pruned_by_node_value(oracle.dyspec_trees(w, 4), keep=2)))
        for w in WORLDS
    )
    assert worst(laws) > 0.005


def test_a_deterministic_tree_verified_as_drawn_is_noticed() -> None:
    laws = (
        (w, joint(w, iter([(Fraction(1), oracle.deterministic_tree(w, 4, 2))]))) for w in WORLDS
    )
    assert worst(laws) > 0.05


def test_draft_noise_keyed_by_depth_is_noticed() -> None:
    worlds = [oracle.random_world(seed, 3, depth_only_draft=True) for seed in range(6)]
    exact = ((w, joint(w, oracle.dyspec_trees(w, 4))) for w in worlds)
    assert worst(exact) == 0.0
    shared = ((w, joint(w, oracle.depth_keyed_trees(w, 4))) for w in worlds)
    assert worst(shared) > 0.001


def coupled_output(
    world: World, noise: tuple[int, ...], cells: int, prune: bool
) -> tuple[int, ...]:
    """One coupled step: noise[t] decides every draw at position t, the tree's and the target's."""

    def token(law: list[Fraction], t: int) -> int:
        point = Fraction(2 * noise[t] + 1, 2 * cells)
        edge = Fraction(0)
        for candidate, mass in enumerate(law):
            edge += mass
            if point < edge:
                return candidate
        raise AssertionError("a law sums to 1")

    tree = {()}
    frontier: list[tuple[int, ...]] = [()]
    while frontier:
        context = frontier.pop()
        if len(context) == COUNT:
            continue
        best = token(world.draft(context), len(context))
        candidates = {best} if prune and best == 0 else {best, (best + 1) % world.vocab}
        children = [(*context, t) for t in candidates]
        tree.update(children)
        frontier += children
    path: tuple[int, ...] = ()
    while len(path) < COUNT:
        path = (*path, token(world.target(path), len(path)))
        if path not in tree:
            return path
    return path


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("prune", [False, True])
def test_coupled_walks_are_exact_with_any_tree(seed: int, prune: bool) -> None:
    cells = 10  # laws in tenths, so that ten noise values hit them exactly
    laws = oracle.random_world(seed, 3)

    def in_tenths(law: list[Fraction]) -> list[Fraction]:
        first = Fraction(int(law[0] * cells), cells)
        second = Fraction(int(law[1] * cells), cells)
        return [first, second, 1 - first - second]

    world = World(3, lambda c: in_tenths(laws.target(c)), lambda c: in_tenths(laws.draft(c)))
    output: Output = {}
    for noise in product(range(cells), repeat=COUNT):
        tokens = coupled_output(world, noise, cells, prune)
        oracle.add_output(output, tokens, Fraction(1, cells**COUNT))
    assert any(len(tokens) == COUNT for tokens in output)
    assert oracle.first_tokens(world, output, COUNT) == oracle.target_tokens(world, COUNT)
