"""The launch of tree_select."""

from __future__ import annotations

from typing import Any

from sdengine.kernels.launches.structs import DraftTreeView, Launch, TokenTreeView, TreeSelectArgs
from sdengine.kernels.spec import address


def launch_of(**args: Any) -> Launch:
    """The launch of checked arguments."""
    draft, thresholds = args["draft"], args["thresholds"]
    arguments = TreeSelectArgs(
        DraftTreeView.of(draft),
        address(thresholds),
        thresholds.shape[0],
        address(args["cu_pending"]),
        address(args["num_seqs"]),
        address(args.get("total_budget")),
        draft.batch_size,
        TokenTreeView.of(args["tree"]),
        address(args["scratch"]),
    )
    return Launch(arguments, draft.batch_size)
