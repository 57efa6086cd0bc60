"""The launch of gather_pending."""

from __future__ import annotations

from typing import Any

from sdengine.kernels.launches.structs import GatherPendingArgs, Launch
from sdengine.kernels.spec import address


def launch_of(**args: Any) -> Launch:
    """The launch of checked arguments."""
    arguments = GatherPendingArgs(
        address(args["history"]),
        args["history"].shape[1],
        *(address(args[name]) for name in ("computed_lens", "pending_lens", "num_seqs")),
        args["pending_tokens"].shape[0],
        address(args["pending_tokens"]),
        address(args["cu_pending"]),
    )
    return Launch(arguments, args["history"].shape[0])
