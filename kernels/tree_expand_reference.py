"""Reference of tree_expand: sorted lists of nodes, float32 arithmetic in the kernel's order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from sdengine.kernels.calibration import (
    NUM_BINS,
    bin_centers,
    bin_edges,
    calibration_class,
)
from sdengine.kernels.row_batch import RowBatch
from sdengine.kernels.token_tree import MASK_BITS, DraftTree

F32 = np.float32
ABOVE_ALL_VALUES = F32(3e38)
MIN_REMAINING_MASS = F32(1e-6)
FIELDS = (
    "tokens",
    "depths",
    "ranks",
    "values",
    "reach",
    "estimates",
    "probs",
    "draft_slots",
    "proposal_rows",
)


@dataclass(slots=True, eq=False)
class Node:
    """One tree node as an object; `index` is its place in creation order."""

    parent: Node | None
    index: int
    tokens: int
    depths: int
    ranks: int
    values: np.float32
    reach: np.float32
    estimates: np.float32
    probs: np.float32
    draft_slots: int = -1
    proposal_rows: int = -1


def expand_reference(**args: Any) -> None:
    """Runs one layer (see `tree_expand.check` for the contract)."""
    num_seqs = int(args["num_seqs"])
    if args["layer"] == 0:
        args["tree"].num_forwarded[:num_seqs] = 0
    trees = [_add_layer(b, args) for b in range(num_seqs)]
    total = max(0, int(args["total_budget"]))
    ranked = sorted(
        (-node.values, node.depths, b, node.index, node)
        for b, nodes in enumerate(trees)
        for node in nodes[1:]
    )
    kept = {id(entry[-1]) for entry in ranked[:total]}
    trees = [nodes[:1] + [n for n in nodes[1:] if id(n) in kept] for nodes in trees]
    for b, nodes in enumerate(trees):
        _store(args["tree"], b, nodes)
    pool_floor = F32(0)
    if len(ranked) >= total:
        pool_floor = _smallest([n for nodes in trees for n in nodes[1:]])
    if args["rows"] is not None:
        _next_rows(trees, pool_floor, args)


def _budget(b: int, args: dict[str, Any]) -> int:
    budget = min(int(args["node_budgets"][b]), int(args["total_budget"]), args["tree"].max_nodes)
    return max(0, budget)


def _smallest(nodes: list[Node]) -> np.float32:
    return min((n.values for n in nodes), default=ABOVE_ALL_VALUES)


def _add_layer(b: int, args: dict[str, Any]) -> list[Node]:
    """The sequence's root and its best nodes, this layer's candidates among them."""
    one, values = F32(1), args.get("root_values")
    is_static = args["rule"].startswith("uniform")
    worth = one if values is None or is_static else F32(values[b])
    root = Node(None, 0, -1, 0, 0, worth, worth, one, one, 0)
    nodes = [root] if args["layer"] == 0 else _load(args["tree"], b)
    budget = _budget(b, args)
    if args["layer"] < int(args["depth_limits"][b]):
        first = int(args["cu_rows"][b])
        last = min(int(args["cu_rows"][b + 1]), first + args["max_width"])
        frontier = args["frontier_nodes"]
        held = len(nodes)
        full_floor = _smallest(nodes[1:]) if held - 1 >= budget else F32(0)
        for row in range(first, last):
            parent = nodes[0 if frontier is None else int(frontier[row])]
            parent.proposal_rows = args.get("proposal_offset", 0) + row
            for child in _children(b, parent, row, budget, args):
                if child.values > full_floor:
                    child.index = len(nodes)
                    nodes.append(child)
    ranked = sorted(nodes[1:], key=lambda n: (-n.values, n.index))
    kept = {id(n) for n in ranked[:budget]}
    return nodes[:1] + [n for n in nodes[1:] if id(n) in kept]


def _children(b: int, parent: Node, row: int, budget: int, args: dict[str, Any]) -> list[Node]:
    tokens = args["candidate_tokens"][row].tolist()
    probs = args["candidate_probs"][row].numpy()
    by_slot = args["rule"] in ("slot", "uniform_slot")
    uniform = args["rule"].startswith("uniform")
    remaining = remaining_mass(probs, by_slot)
    chance, bound, children = parent.reach, parent.values, []
    for j in range(min(args["max_children"], len(probs), budget)):
        closed = by_slot and not remaining[j] > MIN_REMAINING_MASS
        if tokens[j] < 0 or not probs[j] > 0 or closed:
            break
        estimate = min(F32(probs[j] / remaining[j]), F32(1))
        table = rank_table(args.get("calibration"), b, j)
        acceptance = calibrated_acceptance(estimate, table)
        reach = F32(chance * acceptance)
        value = min(chance if by_slot else reach, bound)
        if args["rule"] == "slot" and table is not None:
            expected = expected_acceptance(probs[j:], remaining[j], table)
            value = min(F32(chance * expected), bound)
        chance = F32(chance * (F32(1) - acceptance))
        if uniform:
            value = F32(1)
        elif not by_slot:
            reach = value
        if not value > 0:
            break
        bound = value
        children.append(
            Node(parent, 0, tokens[j], parent.depths + 1, j, value, reach, F32(estimate), probs[j])
        )
    return children


def remaining_mass(probs: np.ndarray, by_slot: bool) -> np.ndarray:
    """[K] float32, what each candidate is a share of: the mass without the candidates before it,
    which by the slot rules lies within the K candidates."""
    remaining = np.zeros(len(probs) + 1, F32)
    if by_slot:
        for j in reversed(range(len(probs))):
            remaining[j] = remaining[j + 1] + probs[j]
    else:
        remaining[0] = 1
        for j, prob in enumerate(probs):
            left = F32(remaining[j] - prob)
            remaining[j + 1] = left if left > MIN_REMAINING_MASS else MIN_REMAINING_MASS
    return remaining[:-1]


def rank_table(calibration: torch.Tensor | None, b: int, rank: int) -> np.ndarray | None:
    """The rates [32] for children of a rank in a sequence's table."""
    return None if calibration is None else calibration[b, calibration_class(rank)].numpy()


def expected_acceptance(probs: np.ndarray, remaining: np.float32, table: np.ndarray) -> np.float32:
    """Mean calibrated acceptance of a draw from the candidates that are left, last one first."""
    expected = F32(0)
    for prob in probs[::-1]:
        share = min(F32(prob / remaining), F32(1))
        expected = F32(expected + F32(share * calibrated_acceptance(share, table)))
    return min(expected, F32(1))


def calibrated_acceptance(estimate: np.float32, table: np.ndarray | None) -> np.float32:
    """Calibrated acceptance with the rounding of sdengine/calibration.h."""
    if table is None:
        return min(F32(estimate), F32(1))
    edges, centers = _bins()
    e = min(F32(estimate), F32(1))
    left = min(max(int(np.searchsorted(edges, e, side="right")) - 1, 0), NUM_BINS - 1)
    if e < centers[left]:
        left -= 1
    if left < 0:
        value = table[0] * (e / centers[0])
    elif left == len(table) - 1:
        value = table[left] + (e - centers[left])
    else:
        share = (e - centers[left]) / (centers[left + 1] - centers[left])
        value = table[left] + (table[left + 1] - table[left]) * share
    return F32(min(max(value, F32(0)), F32(1)))


@cache
def _bins() -> tuple[np.ndarray, np.ndarray]:
    """Edges and centers; a test asks for them a million times."""
    return bin_edges().numpy(), bin_centers().numpy()


def _load(tree: DraftTree, b: int) -> list[Node]:
    nodes: list[Node] = []
    columns = {name: getattr(tree, name)[b].numpy() for name in FIELDS}
    for i in range(int(tree.num_nodes[b]) + 1):
        parent = nodes[int(tree.parents[b, i])] if i else None
        floats = ("values", "reach", "estimates", "probs")
        values = {k: F32(v[i]) if k in floats else int(v[i]) for k, v in columns.items()}
        nodes.append(Node(parent, i, **values))
    return nodes


def _store(tree: DraftTree, b: int, nodes: list[Node]) -> None:
    for i, node in enumerate(nodes):
        node.index = i
        for name in FIELDS:
            getattr(tree, name)[b, i] = float(v) if isinstance(v := getattr(node, name), F32) else v
        tree.parents[b, i] = -1 if node.parent is None else node.parent.index
    tree.num_nodes[b] = len(nodes) - 1


def _next_rows(trees: list[list[Node]], pool_floor: np.float32, args: dict[str, Any]) -> None:
    tree, rows, gain = args["tree"], args["rows"], F32(0)
    cost = max(_selection_floor(trees, args), _layer_share(args))
    chosen: list[list[Node]] = []
    for b, nodes in enumerate(trees):
        budget = _budget(b, args)
        own = _smallest(nodes[1:]) if len(nodes) - 1 >= budget else F32(0)
        floor = max(own, pool_floor)
        frontier = _frontier(b, nodes, floor, cost, sum(map(len, chosen)), args)
        own_gain = F32(0)
        for node in frontier:
            own_gain = F32(own_gain + F32(_promise(node) - max(cost, floor)))
        gain = F32(gain + own_gain)
        chosen.append(frontier)
    if not _is_worth_running(gain, args):
        chosen = [[] for _ in chosen]
    row = 0
    rows.cu_rows[0] = 0
    for b, frontier in enumerate(chosen):
        rows.tree_starts[b] = args["tree_starts"][b]
        for node in frontier:
            tree.num_forwarded[b] += 1
            node.draft_slots = int(tree.num_forwarded[b])
            tree.draft_slots[b, node.index] = node.draft_slots
            _write_row(rows, row, b, node, args)
            row += 1
        rows.cu_rows[b + 1] = row
    rows.num_rows[0] = row


def _frontier(
    b: int,
    nodes: list[Node],
    floor: np.float32,
    cost: np.float32,
    rows_so_far: int,
    args: dict[str, Any],
) -> list[Node]:
    depth = args["layer"] + 1
    forwarded = int(args["tree"].num_forwarded[b])
    last_slot = args["block_tables"].shape[1] * args["block_size"]
    room = min(
        args["max_width"],
        args["rows"].max_rows - rows_so_far,
        args["rows"].mask_words * MASK_BITS - forwarded,
        last_slot - int(args["tree_starts"][b]) - forwarded,
    )
    if room <= 0 or depth >= int(args["depth_limits"][b]):
        return []
    stops = set(args["stop_tokens"][b].tolist())
    uniform = args["rule"].startswith("uniform")
    worthy = [
        n
        for n in nodes[1:]
        if n.depths == depth
        and (floor < 1 if uniform else _promise(n) > floor)
        and n.tokens not in stops
        and _promise(n) >= cost
    ]
    widest = sorted(worthy, key=lambda n: (-_promise(n), n.index))[:room]
    return sorted(widest, key=lambda n: n.index)


def _promise(node: Node) -> np.float32:
    """The most that a child can be worth."""
    return min(node.reach, node.values)


def _is_worth_running(gain: np.float32, args: dict[str, Any]) -> bool:
    """Whether the layer runs; by the slot rules the nodes' shares have decided."""
    return "slot" in args["rule"] or bool(gain >= args["min_layer_gain"].numpy()[0])


def _layer_share(args: dict[str, Any]) -> np.float32:
    """What a node has to reach for its layer's sake: by the slot rules each by itself."""
    growing = int((args["depth_limits"][: int(args["num_seqs"])] > 0).sum())
    if "slot" not in args["rule"] or growing == 0:
        return F32(0)
    return F32(args["min_layer_gain"].numpy()[0] / F32(growing))


def _selection_floor(trees: list[list[Node]], args: dict[str, Any]) -> np.float32:
    """What a newcomer has to be worth: the place of the batch's last node, or one more row."""
    if args.get("row_prices") is None or args["rule"].startswith("uniform"):
        return F32(0)
    prices = args["row_prices"].numpy()[int(args["cu_pending"][int(args["num_seqs"])]) :]
    ranked = sorted((n.values for nodes in trees for n in nodes[1:]), reverse=True)
    kept = 0
    while kept < len(ranked) and ranked[kept] >= _price(prices, kept):
        kept += 1
    price = _price(prices, kept)
    return min(ranked[kept - 1], price) if kept else price


def _price(prices: np.ndarray, row: int) -> np.float32:
    return F32(prices[row]) if row < len(prices) else ABOVE_ALL_VALUES


def _write_row(rows: RowBatch, row: int, b: int, node: Node, args: dict[str, Any]) -> None:
    start, size = int(args["tree_starts"][b]), args["block_size"]
    logical = start - 1 + node.draft_slots
    rows.tokens[row] = node.tokens
    rows.positions[row] = start - 1 + node.depths
    rows.slots[row] = int(args["block_tables"][b, logical // size]) * size + logical % size
    rows.row_seq[row] = b
    rows.row_node[row] = node.index
    rows.visible_lens[row] = start
    words = [0] * rows.mask_words
    at = node
    while at.parent is not None:
        words[(at.draft_slots - 1) // MASK_BITS] |= 1 << (at.draft_slots - 1) % MASK_BITS
        at = at.parent
    rows.ancestor_mask[row] = torch.tensor([w - (1 << 64) if w >> 63 else w for w in words])
    if args.get("node_slots") is not None:
        args["node_slots"][row] = node.draft_slots
