"""The launch of tree_verify."""

from __future__ import annotations

from typing import Any

from sdengine.kernels.launches.structs import (
    Launch,
    ProposalView,
    SamplingTablesView,
    TokenTreeView,
    TreeVerifyArgs,
    WalkView,
)
from sdengine.kernels.spec import address

INPUTS = ("logit_starts", "wants_logits", "num_seqs", "target_tokens", "logits")


def launch_of(**args: Any) -> Launch:
    """The launch of checked arguments."""
    tree, logits, store = args["tree"], args.get("logits"), args.get("proposal_tokens")
    verdict, sampling = args["verdict"], args.get("sampling")
    arguments = TreeVerifyArgs(
        TokenTreeView.of(tree),
        *(address(args.get(name)) for name in INPUTS),
        0 if logits is None else logits.shape[1],
        address(args.get("tree_starts")),
        SamplingTablesView.of(sampling),
        address(None if sampling is None else sampling.seeds),
        ProposalView(
            address(store),
            address(args.get("proposal_probs")),
            0 if store is None else store.shape[1],
        ),
        args["mode"] == "rejection",
        address(verdict.num_accepted),
        WalkView.of(verdict),
        address(args.get("scratch")),
    )
    return Launch(arguments, tree.batch_size)
