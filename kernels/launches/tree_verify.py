"""The launch of tree_verify."""

from __future__ import annotations

from typing import Any

from sdengine.kernels.launches.structs import (
    Launch,
    ProposalView,
    SamplingTables,
    TokenTreeView,
    TreeVerifyArgs,
    WalkView,
)
from sdengine.kernels.spec import address

INPUTS = ("logit_starts", "wants_logits", "num_seqs", "target_tokens", "logits")
PARAMETERS = ("temperature", "top_k", "top_p", "min_p")


def launch_of(**args: Any) -> Launch:
    """The launch of checked arguments."""
    tree, logits, store = args["tree"], args.get("logits"), args.get("proposal_tokens")
    walk = (address(args["path"]), address(args["out_tokens"]), args["path"].shape[1])
    arguments = TreeVerifyArgs(
        TokenTreeView.of(tree),
        *(address(args.get(name)) for name in INPUTS),
        0 if logits is None else logits.shape[1],
        address(args.get("tree_starts")),
        SamplingTables(*(address(args.get(name)) for name in PARAMETERS)),
        address(args.get("seeds")),
        ProposalView(
            address(store),
            address(args.get("proposal_probs")),
            0 if store is None else store.shape[1],
        ),
        args["mode"] == "rejection",
        address(args["num_accepted"]),
        address(args["final_node"]),
        WalkView(*walk, address(args["tried"]), address(args["accepted"]), True),
        address(args.get("scratch")),
    )
    return Launch(arguments, tree.batch_size)
