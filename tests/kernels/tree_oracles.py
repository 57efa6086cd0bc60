"""What tree_expand must equal: a heap growing one node at a time, and brute force over node sets.

Both read the same candidate tables as the kernel and know nothing of layers, rows or merging.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from math import fsum

import numpy as np

from sdengine.kernels.tree_expand_reference import calibrated_acceptance, rank_table
from tests.kernels.tree_worlds import World

F32 = np.float32


@dataclass(frozen=True)
class Slot:
    """A chance to draw: the `rank`-th child of the node at `path` of sequence b.

    `ranks` is the path of ranks down to this slot: with the depth in front it orders creation.
    """

    b: int
    path: tuple[int, ...]
    ranks: tuple[int, ...]
    token: int
    value: np.float32
    reach: np.float32

    @property
    def child(self) -> tuple[int, ...]:
        """Token path of the node this slot makes."""
        return (*self.path, self.token)

    @property
    def order(self) -> tuple[float, int, int, tuple[int, ...]]:
        """Best first: value descending, then depth, sequence and creation order."""
        return (-float(self.value), len(self.ranks), self.b, self.ranks)


def slots_at(
    world: World,
    b: int,
    path: tuple[int, ...],
    ranks: tuple[int, ...],
    reach: np.float32,
    value: np.float32,
) -> list[Slot]:
    """All slots of one node, first draw first: DySpec's keys, calibrated, made monotone."""
    if len(path) >= world.limits[b] or (path and path[-1] in world.stops):
        return []
    tokens, probs = world.candidates(b, path)
    by_slot = "slot" in world.rule
    left = [F32(0 if by_slot else 1)]
    for p in reversed(probs) if by_slot else probs:
        left.append(F32(left[-1] + p) if by_slot else max(F32(left[-1] - p), F32(1e-6)))
    if by_slot:
        left.reverse()
    slots: list[Slot] = []
    chance, bound = reach, value
    for j in range(min(world.max_children, len(tokens))):
        if not probs[j] > 0 or (by_slot and not left[j] > 1e-6):
            break
        estimate = min(F32(probs[j] / left[j]), F32(1))
        table = rank_table(world.calibration, b, j)
        accept = calibrated_acceptance(estimate, table)
        child_reach = F32(chance * accept)
        key = F32(1) if "uniform" in world.rule else min(chance if by_slot else child_reach, bound)
        if world.rule == "slot" and table is not None:
            hope = F32(0)  # what a draw from the rest can expect, smallest rank last
            for p in reversed(probs[j:]):
                share = min(F32(p / left[j]), F32(1))
                hope = F32(hope + F32(share * calibrated_acceptance(share, table)))
            key = min(F32(chance * min(hope, F32(1))), bound)
        if not key > 0:
            break
        if world.rule == "node":
            child_reach = key
        slots.append(Slot(b, path, (*ranks, j), tokens[j], key, child_reach))
        chance, bound = F32(chance * (F32(1) - accept)), key
    return slots


def heap_tree(world: World) -> list[Slot]:
    """DySpec's algorithm 1: pop the best slot, draw, push its next sibling and its first child.

    One heap over the batch; a sequence whose own budget is spent is passed over.
    """
    heap: list[tuple[tuple[float, int, int, tuple[int, ...]], Slot, tuple[Slot, ...]]] = []

    def push(slots: list[Slot] | tuple[Slot, ...]) -> None:
        if slots:
            heapq.heappush(heap, (slots[0].order, slots[0], tuple(slots[1:])))

    budgets = [min(n, world.nodes) for n in world.node_budgets]
    for b in range(world.live):
        push(slots_at(world, b, (), (), world.root_value(b), world.root_value(b)))
    drawn: list[Slot] = []
    while heap and len(drawn) < world.total_budget:
        _, slot, siblings = heapq.heappop(heap)
        if budgets[slot.b] <= 0:
            continue
        budgets[slot.b] -= 1
        drawn.append(slot)
        push(siblings)
        push(slots_at(world, slot.b, slot.child, slot.ranks, slot.reach, slot.value))
    return drawn


def connected_sets(world: World, limit: int) -> Iterator[frozenset[Slot]]:
    """Every set of at most `limit` slots of sequence 0, closed under parent and earlier sibling."""
    start = slots_at(world, 0, (), (), world.root_value(0), world.root_value(0))
    seen = {frozenset()}
    stack: list[tuple[frozenset[Slot], tuple[tuple[Slot, ...], ...]]] = [
        (frozenset(), (tuple(start),) if start else ())
    ]
    while stack:
        chosen, fronts = stack.pop()
        yield chosen
        if len(chosen) == limit:
            continue
        for at, front in enumerate(fronts):
            slot = front[0]
            bigger = chosen | {slot}
            if bigger in seen:
                continue
            seen.add(bigger)
            below = slots_at(world, 0, slot.child, slot.ranks, slot.reach, slot.value)
            rest = (*fronts[:at], *fronts[at + 1 :])
            rest += tuple(tuple(f) for f in (front[1:], below) if f)
            stack.append((bigger, rest))


def best_total(world: World, limit: int) -> float:
    """The largest sum of values any connected set reaches."""
    return max(fsum(float(s.value) for s in chosen) for chosen in connected_sets(world, limit))
