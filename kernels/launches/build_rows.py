"""The launch of build_rows."""

from __future__ import annotations

from typing import Any

from sdengine.kernels.launches.structs import (
    BlockTablesView,
    BuildRowsArgs,
    Launch,
    RowBatchView,
    TokenTreeView,
)
from sdengine.kernels.spec import address

INPUTS = ("pending_tokens", "cu_pending", "computed_lens", "wants_logits", "num_seqs")
OUTPUTS = ("logit_rows", "cu_logits", "num_logits")


def launch_of(**args: Any) -> Launch:
    """The launch of checked arguments."""
    arguments = BuildRowsArgs(
        *(address(args[name]) for name in INPUTS),
        BlockTablesView.of(args["block_tables"], args["block_size"]),
        args["tree"] is not None,
        TokenTreeView.of(args["tree"]),
        RowBatchView.of(args["rows"]),
        *(address(args[name]) for name in OUTPUTS),
    )
    return Launch(arguments, args["block_tables"].shape[0])
