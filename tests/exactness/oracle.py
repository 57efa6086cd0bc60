"""Exact laws of tree-speculative decoding on tiny vocabularies, by enumeration in rational numbers.

Everything that is drawn is enumerated with its probability, coins are integrated out, so the law of
the first tokens comes out as fractions and must EQUAL the target's. The mistakes of the field stand
beside the right rules (`Mistake`), to show that the comparison notices them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from fractions import Fraction
from itertools import product

Context = tuple[int, ...]
Law = list[Fraction]
Output = dict[Context, Fraction]

ZERO, ONE = Fraction(0), Fraction(1)


class Mistake(Enum):
    """Ways of verifying that look right and are not."""

    NONE = "none"
    STALE_DRAFT = "drawn without replacement, q not updated"
    REUSED_COIN = "the acceptance coin also picks the final token"


def normalised(weights: Law) -> Law:
    """Weights over their sum."""
    total = sum(weights, ZERO)
    return [w / total for w in weights]


@dataclass(frozen=True)
class World:
    """Target and draft laws of the next token, by context."""

    vocab: int
    target: Callable[[Context], Law]
    draft: Callable[[Context], Law]


def random_world(seed: int, vocab: int, depth_only_draft: bool = False) -> World:
    """Random rational laws with some zeros; the draft's may depend on the depth alone."""
    rng = random.Random(seed)
    laws: dict[tuple[str, Context], Law] = {}

    def law(kind: str, context: Context, low: int) -> Law:
        if (kind, context) not in laws:
            weights = [Fraction(rng.choice([low, 1, 2, 3, 5, 8])) for _ in range(vocab)]
            weights[rng.randrange(vocab)] += 1
            laws[kind, context] = normalised(weights)
        return laws[kind, context]

    return World(
        vocab,
        lambda context: law("target", context, 0),
        lambda context: law("draft", (-len(context),) if depth_only_draft else context, 0),
    )


@dataclass
class Node:
    """A node of an enumerated tree; `left` is the draft law without the tokens drawn here."""

    context: Context
    reach: Fraction
    left: Law
    children: list[int] = field(default_factory=list)
    drawn_mass: Fraction = ZERO

    @property
    def slot_value(self) -> Fraction:
        """Reach of the next child to be drawn here; 0 when the draft law is used up."""
        return self.reach * (1 - self.drawn_mass)


Tree = list[Node]


def copy_tree(tree: Tree) -> Tree:
    """Nodes with their own lists."""
    return [Node(n.context, n.reach, list(n.left), list(n.children), n.drawn_mass) for n in tree]


def add_child(world: World, tree: Tree, parent: int, token: int) -> None:
    """Appends a child whose token was drawn from the parent's remaining draft law."""
    node = tree[parent]
    prob = world.draft(node.context)[token]
    node.children.append(len(tree))
    node.drawn_mass += prob
    node.left[token] = ZERO
    context = (*node.context, token)
    tree.append(Node(context, node.reach * prob, list(world.draft(context))))


def dyspec_trees(world: World, budget: int, max_depth: int = 3) -> Iterator[tuple[Fraction, Tree]]:
    """All trees of the greedy slot algorithm with their probabilities."""

    def grow(tree: Tree, probability: Fraction) -> Iterator[tuple[Fraction, Tree]]:
        open_nodes = [n for n in tree if n.slot_value > 0 and len(n.context) < max_depth]
        if len(tree) == budget + 1 or not open_nodes:
            yield probability, tree
            return
        parent = tree.index(max(open_nodes, key=lambda n: n.slot_value))
        left = normalised(tree[parent].left)
        for token in range(world.vocab):
            if left[token] == 0:
                continue
            branch = copy_tree(tree)
            add_child(world, branch, parent, token)
            yield from grow(branch, probability * left[token])

    yield from grow([Node((), ONE, list(world.draft(())))], ONE)


def pruned_by_node_value(
    trees: Iterator[tuple[Fraction, Tree]], keep: int
) -> Iterator[tuple[Fraction, Tree]]:
    """A mistake: drops drawn nodes by their own value, that is by their own token."""
    for probability, tree in trees:
        ranked = sorted(range(1, len(tree)), key=lambda i: -tree[i].reach)[:keep]
        pruned = copy_tree(tree)
        for node in pruned:
            node.children = [c for c in node.children if c in ranked]
        yield probability, pruned


def deterministic_tree(world: World, budget: int, width: int) -> Tree:
    """The most probable draft tokens at every node, breadth first: nothing is drawn."""
    tree = [Node((), ONE, list(world.draft(())))]
    for parent in range(budget):
        if parent >= len(tree):
            break
        law = world.draft(tree[parent].context)
        for token in sorted(range(world.vocab), key=lambda t: -law[t])[:width]:
            if len(tree) <= budget and law[token] > 0:
                add_child(world, tree, parent, token)
    return tree


def depth_keyed_trees(
    world: World, budget: int, max_depth: int = 3
) -> Iterator[tuple[Fraction, Tree]]:
    """A mistake: nodes of one depth share their draft noise. With a draft law that depends on the
    depth alone they then draw the same tokens in the same order."""
    orders = [list(draw_orders(world.draft((0,) * depth))) for depth in range(max_depth)]
    for combination in product(*orders):
        probability = ONE
        for order_probability, _ in combination:
            probability *= order_probability
        tree = [Node((), ONE, list(world.draft(())))]
        while len(tree) <= budget:
            open_nodes = [n for n in tree if n.slot_value > 0 and len(n.context) < max_depth]
            if not open_nodes:
                break
            node = max(open_nodes, key=lambda n: n.slot_value)
            order = combination[len(node.context)][1]
            add_child(world, tree, tree.index(node), order[len(node.children)])
        yield probability, tree


def draw_orders(law: Law) -> Iterator[tuple[Fraction, list[int]]]:
    """Orders of drawing the whole support without replacement, with their probabilities."""
    support = [t for t in range(len(law)) if law[t] > 0]
    if not support:
        yield ONE, []
        return
    total = sum(law, ZERO)
    for token in support:
        rest = [ZERO if t == token else w for t, w in enumerate(law)]
        for probability, order in draw_orders(rest):
            yield probability * law[token] / total, [token, *order]


def add_output(output: Output, tokens: Context, probability: Fraction) -> None:
    """Adds probability to an outcome."""
    if probability:
        output[tokens] = output.get(tokens, ZERO) + probability


def rejection_output(world: World, tree: Tree, mistake: Mistake = Mistake.NONE) -> Output:
    """Law of the emitted tokens given the tree: recursive rejection sampling, coins integrated out.

    Written literally, with residual vectors: R <- norm(max(0, R - D)), D <- norm(D without y).
    """
    output: Output = {}

    def visit(index: int, probability: Fraction) -> None:
        node = tree[index]
        residual = list(world.target(node.context))
        proposal = list(world.draft(node.context))
        low = ZERO  # with a reused coin: what is known of it, U > low
        for child in node.children:
            token = tree[child].context[-1]
            ratio = min(ONE, residual[token] / proposal[token])
            if mistake is Mistake.REUSED_COIN:
                accepted, new_low = max(ZERO, ratio - low), max(low, ratio)
                visit_child(child, probability * accepted)
                low = new_low
            else:
                visit_child(child, probability * ratio)
                probability *= 1 - ratio
            left = [max(ZERO, r - d) for r, d in zip(residual, proposal)]
            if not any(left):
                return
            residual = normalised(left)
            if mistake is not Mistake.STALE_DRAFT:
                proposal[token] = ZERO
                if not any(proposal):
                    break
                proposal = normalised(proposal)
        emit_final(node.context, residual, probability, low)

    def visit_child(child: int, probability: Fraction) -> None:
        if probability:
            visit(child, probability)

    def emit_final(context: Context, residual: Law, probability: Fraction, low: Fraction) -> None:
        edge = ZERO
        for token, mass in enumerate(residual):
            above = max(ZERO, edge + mass - max(low, edge)) if low else mass
            add_output(output, (*context, token), probability * above)
            edge += mass

    visit(0, ONE)
    return output


def chosen_output(world: World, tree: Tree) -> Output:
    """The same tree with every child taken as chosen (law DELTA): accepted with its residual
    probability, struck out on rejection. Exact for any tree that is independent of the coins."""
    output: Output = {}

    def visit(index: int, probability: Fraction) -> None:
        node = tree[index]
        left = list(world.target(node.context))
        mass = ONE
        for child in node.children:
            token = tree[child].context[-1]
            accepted = left[token] / mass
            if accepted:
                visit(child, probability * accepted)
            probability *= 1 - accepted
            mass -= left[token]
            left[token] = ZERO
            if not mass:
                return
        for token, weight in enumerate(left):
            add_output(output, (*node.context, token), probability * weight / mass)

    visit(0, ONE)
    return output


def first_tokens(world: World, output: Output, count: int) -> Output:
    """Joint law of the first `count` tokens; later steps supply what is missing, by the target."""
    joint: Output = {}
    for tokens, probability in output.items():
        if len(tokens) >= count:
            add_output(joint, tokens[:count], probability)
            continue
        for token, mass in enumerate(world.target(tokens)):
            for rest, p in first_tokens(
                world, {(*tokens, token): probability * mass}, count
            ).items():
                add_output(joint, rest, p)
    return joint


def target_tokens(world: World, count: int) -> Output:
    """Joint law of the first tokens under plain decoding."""
    return first_tokens(world, {(): ONE}, count)


def mixture(parts: Iterator[tuple[Fraction, Output]]) -> Output:
    """Average of output laws over trees."""
    total: Output = {}
    for probability, output in parts:
        for tokens, p in output.items():
            add_output(total, tokens, probability * p)
    return total
