"""The launch of commit_plan."""

from __future__ import annotations

from typing import Any

from sdengine.kernels.launches.structs import CommitPlanArgs, Launch, MovePlanView
from sdengine.kernels.spec import address
from sdengine.kernels.verdict import Verdict


def launch_of(**args: Any) -> Launch:
    """The launch of checked arguments."""
    slots, counts = args.get("draft_slots"), args.get("output_counts")
    verdict: Verdict = args["verdict"]
    arguments = CommitPlanArgs(
        *(address(args[name]) for name in ("num_seqs", "wants_logits", "pending_lens")),
        address(verdict.num_accepted),
        address(verdict.path),
        address(verdict.out_tokens),
        verdict.max_depth,
        *(address(args[name]) for name in ("max_emit", "num_emitted", "history")),
        args["history"].shape[1],
        address(args["history_lens"]),
        address(args["computed_lens"]),
        MovePlanView.of(args["moves"]),
        address(slots),
        0 if slots is None else slots.shape[1],
        address(args.get("draft_pending_lens")),
        address(args.get("draft_computed_lens")),
        MovePlanView.of(args.get("draft_moves")),
        address(counts),
        0 if counts is None else counts.shape[1],
    )
    return Launch(arguments, verdict.batch_size)
