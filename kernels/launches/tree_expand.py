"""The launch of tree_expand."""

from __future__ import annotations

from typing import Any

from sdengine.kernels.launches.structs import (
    BlockTablesView,
    DraftTreeView,
    Launch,
    RowBatchView,
    TreeExpandArgs,
)
from sdengine.kernels.spec import address
from sdengine.kernels.tree_expand import RULES

CANDIDATES = ("candidate_tokens", "candidate_probs", "cu_rows", "frontier_nodes")
LIMITS = ("tree_starts", "root_values", "node_budgets", "total_budget", "depth_limits")
PRICES = ("stop_tokens", "calibration", "min_layer_gain", "row_prices")


def launch_of(**args: Any) -> Launch:
    """The launch of checked arguments."""
    tree, prices = args["tree"], args.get("row_prices")
    arguments = TreeExpandArgs(
        args["layer"],
        RULES.index(args["rule"]),
        args["max_children"],
        args["max_width"],
        args.get("proposal_offset", 0),
        args["candidate_tokens"].shape[1],
        args["stop_tokens"].shape[1],
        tree.batch_size,
        *(address(args[name]) for name in CANDIDATES),
        DraftTreeView.of(tree),
        *(address(args.get(name)) for name in (*LIMITS, *PRICES)),
        0 if prices is None else prices.shape[0],
        address(args.get("cu_pending")),
        address(args["num_seqs"]),
        BlockTablesView.of(args["block_tables"], args["block_size"]),
        RowBatchView.of(args["rows"]),
        address(args.get("node_slots")),
        address(args["scratch"]),
    )
    return Launch(arguments, tree.batch_size)
