"""The launch of begin_step."""

from __future__ import annotations

from typing import Any

from sdengine.kernels.begin_step import OUTPUTS
from sdengine.kernels.launches.structs import BeginStepArgs, Launch
from sdengine.kernels.spec import address


def launch_of(**args: Any) -> Launch:
    """The launch of checked arguments."""
    lens = ("num_seqs", "min_running", "scheduled_lens", "can_draft", "max_total_lens")
    ends = ("groups", "is_balanced", "first_stops", "stop_tokens")
    arguments = BeginStepArgs(
        *(address(args[name]) for name in (*lens, *ends)),
        args["stop_tokens"].shape[1],
        address(args["depth_limit"]),
        address(args["node_limit"]),
        address(args["history"]),
        args["history"].shape[1],
        *(address(args[name]) for name in ("history_lens", "num_emitted", "computed_lens")),
        address(args["draft_computed_lens"]),
        args["max_draft_rows"],
        args["has_trees"],
        *(address(args[name]) for name in OUTPUTS),
    )
    return Launch(arguments, args["history"].shape[0])
