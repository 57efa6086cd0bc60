"""The launch of ngram_match."""

from __future__ import annotations

from typing import Any

from sdengine.kernels.launches.structs import DraftTreeView, Launch, NgramMatchArgs
from sdengine.kernels.spec import address

SEQUENCES = ("history_lens", "root_values", "node_budgets", "depth_limits")
REST = ("stop_tokens", "calibration", "num_seqs")


def launch_of(**args: Any) -> Launch:
    """The launch of checked arguments."""
    tree = args["tree"]
    arguments = NgramMatchArgs(
        address(args["history"]),
        args["history"].shape[1],
        *(address(args.get(name)) for name in (*SEQUENCES, *REST)),
        args["stop_tokens"].shape[1],
        args["min_ngram"],
        args["max_ngram"],
        args.get("max_matches", 32),
        args["max_depth"],
        args["max_children"],
        DraftTreeView.of(tree),
        address(args["scratch"]),
    )
    return Launch(arguments, tree.batch_size)
