"""The launch of commit_plan."""

from __future__ import annotations

from typing import Any

from sdengine.kernels.launches.structs import CommitPlanArgs, Launch, MovePlanView
from sdengine.kernels.spec import address


def launch_of(**args: Any) -> Launch:
    """The launch of checked arguments."""
    slots, counts = args.get("draft_slots"), args.get("output_counts")
    walk = ("num_seqs", "wants_logits", "pending_lens", "num_accepted", "path", "out_tokens")
    arguments = CommitPlanArgs(
        *(address(args[name]) for name in walk),
        args["path"].shape[1],
        *(address(args[name]) for name in ("max_emit", "num_emitted", "history")),
        args["history"].shape[1],
        address(args["history_lens"]),
        address(args["computed_lens"]),
        MovePlanView.of(args["move_src"], args["move_dst_start"], args["num_moves"]),
        address(slots),
        0 if slots is None else slots.shape[1],
        address(args.get("draft_pending_lens")),
        address(args.get("draft_computed_lens")),
        MovePlanView.of(
            args.get("draft_move_src"),
            args.get("draft_move_dst_start"),
            args.get("num_draft_moves"),
        ),
        address(counts),
        0 if counts is None else counts.shape[1],
    )
    return Launch(arguments, args["path"].shape[0])
