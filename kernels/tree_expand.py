"""tree_expand: merges a draft layer into the trees of the batch and emits the next layer's rows.

One call per draft layer, `layer` = 0, 1, ...: the rows of layer l are nodes of depth l (layer 0:
the roots), their candidates become nodes of depth l + 1. After the last layer the tree of each
sequence is the one a best-first heap would have grown from the same candidates, one node at a time
(DySpec, arXiv 2410.11744, algorithm 1), limited to the layers run and the rows the width cap kept.

The proposal store keeps the candidates of all layers, [num_layers * B * max_width, K], as
`draft_topk` wrote them: layer l begins at row l * B * max_width, which its call passes as
`proposal_offset`; candidate row r of the layer is row `proposal_offset + r` of the store.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from sdengine.kernels.calibration import CELLS, identity_table
from sdengine.kernels.cpu_library import cpu_op
from sdengine.kernels.cuda_library import cuda_op
from sdengine.kernels.row_batch import RowBatch, expect_row_batch
from sdengine.kernels.spec import Case, Op, expect, expect_tensor
from sdengine.kernels.token_tree import (
    DraftTree,
    allocate_tree_scratch,
    expect_draft_tree,
    mask_words,
    tree_scratch_size,
)
from sdengine.kernels.tree_expand_reference import expand_reference

RULES = ("node", "slot", "uniform", "uniform_slot")
NAME = "tree_expand"


def check(
    *,
    layer: int,
    rule: str,
    max_children: int,
    max_width: int,
    block_size: int,
    candidate_tokens: torch.Tensor,
    candidate_probs: torch.Tensor,
    cu_rows: torch.Tensor,
    frontier_nodes: torch.Tensor | None,
    tree: DraftTree,
    tree_starts: torch.Tensor,
    node_budgets: torch.Tensor,
    total_budget: torch.Tensor,
    depth_limits: torch.Tensor,
    stop_tokens: torch.Tensor,
    min_layer_gain: torch.Tensor,
    block_tables: torch.Tensor,
    num_seqs: torch.Tensor,
    scratch: torch.Tensor,
    rows: RowBatch | None,
    node_slots: torch.Tensor | None = None,
    calibration: torch.Tensor | None = None,
    row_prices: torch.Tensor | None = None,
    cu_pending: torch.Tensor | None = None,
    root_values: torch.Tensor | None = None,
    proposal_offset: int = 0,
) -> None:
    """Contract.

    Args:
        layer: static; depth of the nodes whose candidates these are. Layer 0 also resets the trees.
        rule: static. The estimate of a candidate is its share of what is left, prob / (1 -
            probabilities before it), and a the calibrated estimate: its acceptance if no earlier
            sibling is accepted. Its chance to be tested = parent's reach * product over earlier
            siblings of (1 - a), reach = chance * a, without a table parent's reach * prob.
            "node" (coupled and deterministic trees): value = reach.
            "slot" (rejection; candidates in draw order, probabilities of all K summing to 1): value
            = chance (DySpec's Algorithm 1, which takes all draws for equally acceptable); with a
            calibration table, the chance times the acceptance that a draw from what is left can
            expect.
            "uniform" and "uniform_slot": every candidate has value 1 (static trees), reach and
            estimates as "node" and "slot".
            A value never exceeds its parent's or an earlier sibling's: it is lowered to it where a
            calibration table is not monotone.
        max_children: static; most children of one node.
        max_width: static; most rows of a sequence in one draft layer, the same for all layers.
            Where more nodes deserve a forward, those that promise most get it: a child is worth
            at most min(reach, value) of its parent.
        block_size: static; tokens per KV block.
        candidate_tokens: [R, K] int32, distinct in a row; -1 ends a row.
        candidate_probs: [R, K] float32, best or first drawn first, together at most 1; <= 0 or NaN
            ends a row.
        cu_rows: [B + 1] int32; candidate rows of sequence b are cu_rows[b] : cu_rows[b + 1]. In
            layer 0 the `cu_logits` of build_rows (one row or none a sequence), then
            `rows.cu_rows` of the layer before.
        frontier_nodes: [R] int32, tree node of each row: `rows.row_node` of the layer before; None
            in layer 0, where every row is a root.
        tree: DraftTree [B, T + 1], mutated. Node indices change when nodes are dropped; draft slots
            and proposal rows move with their nodes.
        tree_starts: [B] int32, root position + 1, as build_rows wrote it.
        node_budgets: [B] int32, most nodes of each sequence (beyond T counts as T).
        total_budget: [1] int32, most nodes of the batch. Order of the batch: value descending, then
            depth, sequence, creation order ascending.
        depth_limits: [B] int32; nodes at this depth are not expanded, 0: no tree.
        stop_tokens: [B, S] int32, tokens below which nothing is drafted; -1 where unused.
        min_layer_gain: [1] float32; no next rows when the sum over them of (promise - the larger of
            smallest kept value and what a newcomer costs by `row_prices`) is below it. That sum
            bounds what the layer can add to the expected acceptance beyond what it costs. By the
            slot rules each node has to promise its share, min_layer_gain / sequences whose depth
            limit is above 0, instead: a sum would let a node's drawn token decide about others, and
            so about itself.
        block_tables: [B, P_max] int32; must cover logical slots up to tree_starts + forwarded
            nodes. Nodes that would need a slot past P_max * block_size are not forwarded.
        num_seqs: [1] int32, live sequences.
        scratch: int64, at least tree_scratch_size(B, T, max_width, K) elements.
        rows: RowBatch, written: the next layer's rows; room for B * max_width rows. May be the
            batch that cu_rows and frontier_nodes came from. Tree key s - 1 is draft slot s; at most
            64 W nodes of a sequence are forwarded in all. None: no next layer.
        node_slots: [N] int32 written or None: draft slot of each next row's node, the `extra` of
            its draft noise (roots: 0). Unique within sequence and step.
        calibration: [B, 8, 32] float32, acceptance by class of rank at the bin centers
            (sdengine/calibration.h); None takes the estimate as it is.
        row_prices: [N] float32, the thresholds of tree_select, or None. A node is forwarded only if
            a child of it could still be selected: worth at most what the node promises, it has to
            take the place of the last node that the batch would select so far, or to pay for one
            more row. Exact where prices rise. Static trees ignore it.
        cu_pending: [B + 1] int32, rows that come before the trees, as for tree_select; required
            with row_prices.
        root_values: [B] float32 above 0, value and reach of each root, so that all of its tree
            scale with it; None: 1. Static trees ignore it. Must not depend on what this step draws.
        proposal_offset: static; row of the proposal store that candidate row 0 is.
    """
    expect(NAME, rule in RULES, f"rule: expected one of {', '.join(RULES)}, got {rule!r}")
    for name, value, low in (
        ("layer", layer, 0),
        ("max_children", max_children, 1),
        ("max_width", max_width, 1),
        ("block_size", block_size, 1),
        ("proposal_offset", proposal_offset, 0),
    ):
        expect(NAME, value >= low, f"{name}: expected at least {low}, got {value}")
    expect_draft_tree(NAME, "tree", tree)
    batch = tree.batch_size
    r, k = expect_tensor(
        NAME, "candidate_tokens", candidate_tokens, torch.int32, (None, None)
    ).shape
    expect_tensor(NAME, "candidate_probs", candidate_probs, torch.float32, (r, k))
    expect_tensor(NAME, "cu_rows", cu_rows, torch.int32, (batch + 1,))
    expect(
        NAME,
        (frontier_nodes is None) == (layer == 0),
        "frontier_nodes: expected None in layer 0 and a tensor after it",
    )
    if frontier_nodes is not None:
        expect_tensor(NAME, "frontier_nodes", frontier_nodes, torch.int32, (None,))
    for name, tensor in (
        ("tree_starts", tree_starts),
        ("node_budgets", node_budgets),
        ("depth_limits", depth_limits),
    ):
        expect_tensor(NAME, name, tensor, torch.int32, (batch,))
    expect_tensor(NAME, "total_budget", total_budget, torch.int32, (1,))
    expect_tensor(NAME, "stop_tokens", stop_tokens, torch.int32, (batch, None))
    expect_tensor(NAME, "min_layer_gain", min_layer_gain, torch.float32, (1,))
    if row_prices is not None:
        expect_tensor(NAME, "row_prices", row_prices, torch.float32, (None,))
        expect_tensor(NAME, "cu_pending", cu_pending, torch.int32, (tree.batch_size + 1,))
    expect_tensor(NAME, "block_tables", block_tables, torch.int32, (batch, None))
    expect_tensor(NAME, "num_seqs", num_seqs, torch.int32, (1,))
    if calibration is not None:
        expect_tensor(NAME, "calibration", calibration, torch.float32, (batch, *CELLS))
    if root_values is not None:
        expect_tensor(NAME, "root_values", root_values, torch.float32, (batch,))
    needed = tree_scratch_size(batch, tree.max_nodes, max_width, k)
    expect_tensor(NAME, "scratch", scratch, torch.int64, (None,))
    expect(
        NAME,
        scratch.numel() >= needed,
        f"scratch: expected at least {needed} elements, got {scratch.numel()}",
    )
    orders = (layer + 2) * batch * (tree.max_nodes + 1)
    expect(NAME, orders < 2**32, f"tree: layers * B * (T + 1) must be below 2^32, got {orders}")
    if rows is not None:
        _check_rows(max_width, batch, rows, node_slots)


def _check_rows(
    max_width: int, batch: int, rows: RowBatch, node_slots: torch.Tensor | None
) -> None:
    expect_row_batch(NAME, "rows", rows, batch)
    expect(
        NAME,
        rows.max_rows >= batch * max_width,
        f"rows: expected room for B * max_width = {batch * max_width} rows, got {rows.max_rows}",
    )
    words = rows.mask_words
    expect(NAME, words >= 1, f"rows.ancestor_mask: expected at least one word, got {words}")
    if node_slots is not None:
        expect_tensor(NAME, "node_slots", node_slots, torch.int32, (rows.max_rows,))


def bench_cases() -> Iterator[Case]:
    """A first layer, and the candidates of wide layers with the weights that rows have there. All
    are layer 0, which resets the trees, so that a replay does the same work every time.
    """
    for batch, nodes, width, k in ((1, 64, 1, 8), (1, 64, 16, 16), (8, 16, 4, 8), (1, 512, 64, 16)):
        yield bench_case(batch, nodes, width, k)
    # As beside an adaptive budget: nodes are ranked, because some do not pay for their rows.
    for batch, nodes, width, k in ((32, 64, 16, 8), (64, 128, 32, 8)):
        args = _bench_args(batch, nodes, width, k)
        args["row_prices"] = torch.linspace(0.0, 0.5, batch * (nodes + 1))
        args["cu_pending"] = torch.arange(batch + 1, dtype=torch.int32)
        yield Case(f"B={batch} T={nodes} rows={width} K={k} per sequence, priced", args)


def bench_case(batch: int, nodes: int, width: int, k: int) -> Case:
    """`width` rows of K candidates a sequence."""
    args = _bench_args(batch, nodes, width, k)
    return Case(f"B={batch} T={nodes} rows={width} K={k} per sequence", args)


def _bench_args(batch: int, nodes: int, width: int, k: int) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(0)
    ints = {"dtype": torch.int32}
    rows = batch * width
    logits = 2 * torch.randn(rows, 4 * k, generator=rng)
    probs = logits.softmax(dim=1).sort(descending=True).values
    probs *= 0.75 ** torch.arange(rows).remainder(width).view(rows, 1)  # reach of the row's node
    return {
        "layer": 0,
        "rule": "node",
        "max_children": k,
        "max_width": width,
        "block_size": 64,
        "candidate_tokens": torch.arange(k, **ints).repeat(rows, 1).contiguous(),
        "candidate_probs": probs[:, :k].contiguous(),
        "cu_rows": width * torch.arange(batch + 1, **ints),
        "frontier_nodes": None,
        "tree": DraftTree.allocate(batch, nodes),
        "tree_starts": torch.full((batch,), 100, **ints),
        "node_budgets": torch.full((batch,), nodes, **ints),
        "total_budget": torch.tensor([batch * nodes], **ints),
        "depth_limits": torch.full((batch,), 100, **ints),
        "stop_tokens": torch.full((batch, 2), -1, **ints),
        "calibration": identity_table().repeat(batch, 1, 1),
        "min_layer_gain": torch.zeros(1),
        "block_tables": torch.arange(batch * 8, **ints).view(batch, 8),
        "num_seqs": torch.tensor([batch], **ints),
        "scratch": allocate_tree_scratch(batch, nodes, width, k),
        "rows": RowBatch.allocate(batch, rows, mask_words(width)),
    }


OP = Op(
    NAME,
    check,
    expand_reference,
    ("tree", "rows", "node_slots"),
    cpu_op(NAME),
    backends={"cuda": cuda_op(NAME, check)},
    bench_cases=bench_cases,
)
