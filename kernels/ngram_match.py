"""ngram_match: draft trees from earlier occurrences of each sequence's last tokens, no draft model.

Occurrences of the last m tokens, m as large as possible (min_ngram <= m <= max_ngram), vote for
what followed them; a match of length m has 4^(m - min_ngram) votes (at most 4^8). The
`max_matches` longest count, the most recent first among equals. The estimate of a continuation is
its share of the votes that earlier siblings leave, one vote being reserved for "something else":

    text   x y z A . . . x y z B . . y z A . . x y z     votes  A: 4 + 1   B: 4
                                           -----        estimates  A: 5 / 10   B: 4 / 5
    (min_ngram = 2, max_ngram = 3)

An occurrence whose continuation reaches the end of the text goes on with the tokens it has just
proposed, so that a loop is continued at any depth. The nodes are deterministic (law DELTA): probs =
1, proposal rows and draft slots = -1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from sdengine.kernels.calibration import CELLS
from sdengine.kernels.cpu_library import cpu_op
from sdengine.kernels.cuda_library import cuda_op
from sdengine.kernels.spec import Case, Op, expect, expect_tensor
from sdengine.kernels.token_tree import DraftTree, expect_draft_tree
from sdengine.kernels.tree_expand_reference import calibrated_acceptance, rank_table

NAME = "ngram_match"
F32 = np.float32
MAX_WEIGHT_STEPS = 8
ESCAPE_WEIGHT = 1.0


def ngram_scratch_size(batch_size: int, max_matches: int, max_depth: int) -> int:
    """Elements of the int64 scratch tensor of `ngram_match`."""
    nodes = max_matches * max_depth + 1
    return batch_size * (6 * nodes + max_matches + (nodes + 1) // 2)


def check(
    *,
    history: torch.Tensor,
    history_lens: torch.Tensor,
    node_budgets: torch.Tensor,
    depth_limits: torch.Tensor,
    stop_tokens: torch.Tensor,
    num_seqs: torch.Tensor,
    scratch: torch.Tensor,
    tree: DraftTree,
    min_ngram: int,
    max_ngram: int,
    max_depth: int,
    max_children: int,
    max_matches: int = 32,
    calibration: torch.Tensor | None = None,
    root_values: torch.Tensor | None = None,
) -> None:
    """Contract.

    Args:
        history: [H, S] int32, H >= B: prompt and output of each sequence, the root (last pending
            token) included.
        history_lens: [B] int32, tokens of each sequence; 0 drafts nothing.
        node_budgets: [B] int32, most nodes of each sequence (beyond T counts as T).
        depth_limits: [B] int32, most tokens along a path; 0: no tree.
        stop_tokens: [B, S'] int32, tokens below which nothing is drafted; -1 where unused.
        num_seqs: [1] int32.
        scratch: int64, at least ngram_scratch_size(B, max_matches, max_depth) elements.
        tree: DraftTree [B, T + 1], written whole: node order and ties as in tree_expand, value =
            reach = parent's reach * product over earlier siblings of (1 - a) * a, with the
            calibrated estimate a.
        min_ngram: static; shortest match.
        max_ngram: static; matches longer than it count as this long.
        max_depth: static; most tokens along a path of any sequence.
        max_children: static; most children of one node.
        max_matches: static; occurrences that vote. The scan ends when so many of the greatest
            length are found.
        calibration: [B, 8, 32] float32 as for tree_expand, or None.
        root_values: [B] float32 as for tree_expand, or None.
    """
    for name, value in (
        ("min_ngram", min_ngram),
        ("max_depth", max_depth),
        ("max_children", max_children),
        ("max_matches", max_matches),
    ):
        expect(NAME, value >= 1, f"{name}: expected at least 1, got {value}")
    expect(
        NAME,
        max_ngram >= min_ngram,
        f"max_ngram: expected at least min_ngram={min_ngram}, got {max_ngram}",
    )
    batch = expect_draft_tree(NAME, "tree", tree).batch_size
    expect_tensor(NAME, "history", history, torch.int32, (None, None))
    expect(
        NAME,
        history.shape[0] >= batch,
        f"history: expected at least B={batch} rows, got {history.shape[0]}",
    )
    for name, tensor in (
        ("history_lens", history_lens),
        ("node_budgets", node_budgets),
        ("depth_limits", depth_limits),
    ):
        expect_tensor(NAME, name, tensor, torch.int32, (batch,))
    expect_tensor(NAME, "stop_tokens", stop_tokens, torch.int32, (batch, None))
    expect_tensor(NAME, "num_seqs", num_seqs, torch.int32, (1,))
    if calibration is not None:
        expect_tensor(NAME, "calibration", calibration, torch.float32, (batch, *CELLS))
    if root_values is not None:
        expect_tensor(NAME, "root_values", root_values, torch.float32, (batch,))
    needed = ngram_scratch_size(batch, max_matches, max_depth)
    got = expect_tensor(NAME, "scratch", scratch, torch.int64, (None,)).numel()
    expect(NAME, got >= needed, f"scratch: expected at least {needed} elements, got {got}")


def reference(
    *,
    history: torch.Tensor,
    history_lens: torch.Tensor,
    tree: DraftTree,
    num_seqs: torch.Tensor,
    **settings: Any,
) -> None:
    """Compares every position with the end of the text; collects votes by path."""
    for b in range(int(num_seqs)):
        text = history[b, : int(history_lens[b])].tolist()
        budget = min(int(settings["node_budgets"][b]), tree.max_nodes)
        depth = min(int(settings["depth_limits"][b]), settings["max_depth"])
        nodes = []
        if budget > 0 and depth > 0:
            votes, children = _votes(b, text, depth, settings)
            nodes = _ranked_nodes(b, votes, children, settings)
        best = sorted(range(len(nodes)), key=lambda i: (-nodes[i][1], i))[: max(budget, 0)]
        _write_tree(tree, b, [nodes[i] for i in sorted(best)])
        tree.values[b, 0] = tree.reach[b, 0] = float(_root_value(b, settings))


Path = tuple[int, ...]


def _votes(
    b: int, text: list[int], depth: int, settings: dict[str, Any]
) -> tuple[dict[Path, np.float32], dict[Path, list[Path]]]:
    """Votes of every proposed path, and the children of each in the order of their first vote."""
    low, high = settings["min_ngram"], settings["max_ngram"]
    matches = []
    for end in range(len(text) - 1, 0, -1):
        length = 0
        while length < min(high, end) and text[end - 1 - length] == text[-1 - length]:
            length += 1
        if length >= low:
            matches.append((-length, -end))
    stops = set(settings["stop_tokens"][b].tolist())
    votes: dict[Path, np.float32] = {(): F32(0)}
    children: dict[Path, list[Path]] = {}
    for length, end in sorted(matches)[: settings.get("max_matches", 32)]:
        weight = F32(4 ** min(-length - low, MAX_WEIGHT_STEPS))
        votes[()] += weight
        period = len(text) + end
        path: Path = ()
        for d in range(depth):
            child = (*path, text[-end + d % period])
            if child not in votes:
                votes[child] = F32(0)
                children.setdefault(path, []).append(child)
            votes[child] += weight
            path = child
            if path[-1] in stops:
                break
    return votes, children


Ranked = tuple[Path, np.float32, np.float32, int]


def _root_value(b: int, settings: dict[str, Any]) -> np.float32:
    values = settings.get("root_values")
    return F32(1) if values is None else F32(values[b])


def _ranked_nodes(
    b: int,
    votes: dict[Path, np.float32],
    children: dict[Path, list[Path]],
    settings: dict[str, Any],
) -> list[Ranked]:
    """(path, value, estimate, rank) in breadth-first order, siblings by votes."""
    queue: list[tuple[Path, np.float32]] = [((), _root_value(b, settings))]
    nodes: list[Ranked] = []
    for path, reach in queue:
        chance = bound = reach
        left = F32(votes[path] + F32(ESCAPE_WEIGHT))
        siblings = sorted(children.get(path, []), key=lambda c: -votes[c])
        for rank, child in enumerate(siblings[: settings["max_children"]]):
            estimate = F32(votes[child] / left)
            table = rank_table(settings.get("calibration"), b, rank)
            acceptance = calibrated_acceptance(estimate, table)
            bound = min(F32(chance * acceptance), bound)
            chance, left = F32(chance * (F32(1) - acceptance)), F32(left - votes[child])
            queue.append((child, bound))
            if bound > 0:
                nodes.append((child, bound, estimate, rank))
    return nodes


def _write_tree(tree: DraftTree, b: int, nodes: list[Ranked]) -> None:
    for name, value in tree.root_values().items():
        getattr(tree, name)[b, 0] = value
    index: dict[Path, int] = {(): 0}
    for i, (path, value, estimate, rank) in enumerate(nodes, start=1):
        index[path] = i
        tree.tokens[b, i], tree.parents[b, i] = path[-1], index[path[:-1]]
        tree.depths[b, i], tree.ranks[b, i] = len(path), rank
        tree.values[b, i] = tree.reach[b, i] = float(value)
        tree.estimates[b, i], tree.probs[b, i] = float(estimate), 1.0
        tree.draft_slots[b, i] = tree.proposal_rows[b, i] = -1
    tree.num_nodes[b], tree.num_forwarded[b] = len(nodes), 0


def bench_cases() -> Iterator[Case]:
    """Random text (the whole history is scanned), text with frequent words, and a loop."""
    rng = torch.Generator().manual_seed(0)
    for label, length, vocab in (
        ("random", 1024, 32000),
        ("random", 131072, 32000),
        ("frequent words", 1024, 30),
        ("frequent words", 131072, 1000),
        ("loop", 1024, 1),
    ):
        history = torch.randint(0, vocab, (1, length), generator=rng, dtype=torch.int32)
        one = torch.ones(1, dtype=torch.int32)
        args = {
            "history": history,
            "history_lens": one * length,
            "node_budgets": one * 16,
            "depth_limits": one * 8,
            "stop_tokens": -one.view(1, 1),
            "num_seqs": one,
            "scratch": torch.zeros(ngram_scratch_size(1, 32, 8), dtype=torch.int64),
            "tree": DraftTree.allocate(1, 16),
            "min_ngram": 2,
            "max_ngram": 5,
            "max_depth": 8,
            "max_children": 4,
        }
        yield Case(f"B=1 S={length} {label} V={vocab}", args, bytes_moved=4 * length)


OP = Op(
    NAME,
    check,
    reference,
    ("tree",),
    cpu_op(NAME),
    {"cuda": cuda_op(NAME, check)},
    bench_cases,
)
