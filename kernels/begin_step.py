"""begin_step: what every sequence does in this step, without the host.

The host says who takes part and with how many tokens at most; how long the sequences have become
by then, only the device may know yet. From both follows what the launches after it read:

    history         p p p p | g g g          7 known tokens, 6 of them computed
    scheduled 1     pending 1 = the root     it decodes: logits are wanted, of a tree too
    max_total 9     max_emit 2               a tree of depth 1: a deeper one would be cut off

A sequence that the step before ended (by its length or a stop token) takes no part any more: the
host, which reads that step later, has scheduled it once more in vain.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from sdengine.kernels.cpu_library import cpu_op
from sdengine.kernels.cuda_library import cuda_op
from sdengine.kernels.spec import Case, Op, expect, expect_tensor
from sdengine.kernels.token_tree import NO_LOGITS, ROOT_AND_NODES, ROOT_ONLY

NAME = "begin_step"
OUTPUTS = (
    "pending_lens",
    "wants_logits",
    "max_emit",
    "draft_pending_lens",
    "draft_wants_logits",
    "node_budgets",
    "depth_limits",
    "root_values",
)


def check(
    *,
    num_seqs: torch.Tensor,
    min_running: torch.Tensor,
    scheduled_lens: torch.Tensor,
    can_draft: torch.Tensor,
    max_total_lens: torch.Tensor,
    groups: torch.Tensor,
    is_balanced: torch.Tensor,
    first_stops: torch.Tensor,
    stop_tokens: torch.Tensor,
    depth_limit: torch.Tensor,
    node_limit: torch.Tensor,
    history: torch.Tensor,
    history_lens: torch.Tensor,
    num_emitted: torch.Tensor,
    computed_lens: torch.Tensor,
    draft_computed_lens: torch.Tensor | None,
    pending_lens: torch.Tensor,
    wants_logits: torch.Tensor,
    max_emit: torch.Tensor,
    draft_pending_lens: torch.Tensor,
    draft_wants_logits: torch.Tensor,
    node_budgets: torch.Tensor,
    depth_limits: torch.Tensor,
    root_values: torch.Tensor,
    max_draft_rows: int,
    has_trees: bool,
) -> None:
    """Contract.

    Args:
        num_seqs: [1] int32.
        min_running: [1] int32, fewest sequences that have tokens to compute; where fewer have, none
            takes part: what ends a row of iterations in which all have to go on.
        scheduled_lens: [B] int32, most tokens to compute: a chunk of the prompt, 1 while decoding;
            0: the sequence takes no part, and everything that is written of it is 0 but max_emit.
        can_draft: [B] int32, whether there are blocks for a tree.
        max_total_lens: [B] int32, length at which the sequence ends.
        groups: [B] int32, equal where sequences are waited for together: what counts is when the
            last of them ends.
        is_balanced: [1] int32, 1: `root_values` let those of a group that are further from their
            end come first. 0 where others wait for a place: then what counts is the sum.
        first_stops: [B] int32, position of the first token that may stop it: those of the prompt,
            and as many generated ones as were asked for, do not.
        stop_tokens: [B, S_stop] int32; -1: none.
        depth_limit: [1] int32, deepest tree of this step.
        node_limit: [1] int32, most nodes of a tree of this step.
        history: [B, S] int32, all known tokens.
        history_lens: [B] int32.
        num_emitted: [B] int32, tokens that the last step of the sequence appended; only these may
            have stopped it without the host's knowing.
        computed_lens: [B] int32, tokens whose KV is in the target's cache.
        draft_computed_lens: [B] int32, the same for the draft's cache; None: no such cache follows
            in this step.
        pending_lens: [B] int32, written: tokens that the target computes.
        wants_logits: [B] int32, written, as for build_rows: NO_LOGITS while a prompt is unfinished,
            then ROOT_AND_NODES or, in a step without trees, ROOT_ONLY.
        max_emit: [B] int32, written: most tokens to commit.
        draft_pending_lens: [B] int32, written: tokens that the draft computes first, to be where
            the target is; together at most `max_draft_rows`, the first sequences served first.
        draft_wants_logits: [B] int32, written: ROOT_AND_NODES where a tree is grown, else
            NO_LOGITS.
        node_budgets: [B] int32, written: `node_limit` where a tree is grown, else 0.
        depth_limits: [B] int32, written: most tree depth.
        root_values: [B] float32, written: what a token of the sequence's tree is worth, for
            `tree_expand` and `ngram_match`: 1, or in a balanced step with trees the square of the
            tokens left to the sequence over the mean of these squares in its group, of those that
            take part.
        max_draft_rows: static.
        has_trees: static; whether trees are grown in this step.
    """
    batch, _ = expect_tensor(NAME, "history", history, torch.int32, (None, None)).shape
    expect_tensor(NAME, "num_seqs", num_seqs, torch.int32, (1,))
    expect_tensor(NAME, "min_running", min_running, torch.int32, (1,))
    expect_tensor(NAME, "is_balanced", is_balanced, torch.int32, (1,))
    expect_tensor(NAME, "depth_limit", depth_limit, torch.int32, (1,))
    expect_tensor(NAME, "node_limit", node_limit, torch.int32, (1,))
    expect_tensor(NAME, "stop_tokens", stop_tokens, torch.int32, (batch, None))
    for name, tensor in (
        ("scheduled_lens", scheduled_lens),
        ("can_draft", can_draft),
        ("max_total_lens", max_total_lens),
        ("groups", groups),
        ("first_stops", first_stops),
        ("history_lens", history_lens),
        ("num_emitted", num_emitted),
        ("computed_lens", computed_lens),
        ("pending_lens", pending_lens),
        ("wants_logits", wants_logits),
        ("max_emit", max_emit),
        ("draft_pending_lens", draft_pending_lens),
        ("draft_wants_logits", draft_wants_logits),
        ("node_budgets", node_budgets),
        ("depth_limits", depth_limits),
    ):
        expect_tensor(NAME, name, tensor, torch.int32, (batch,))
    expect_tensor(NAME, "root_values", root_values, torch.float32, (batch,))
    if draft_computed_lens is not None:
        expect_tensor(NAME, "draft_computed_lens", draft_computed_lens, torch.int32, (batch,))
    at_least = f"max_draft_rows: expected at least 0, got {max_draft_rows}"
    expect(NAME, max_draft_rows >= 0, at_least)


def reference(
    *,
    num_seqs: torch.Tensor,
    min_running: torch.Tensor,
    scheduled_lens: torch.Tensor,
    can_draft: torch.Tensor,
    max_total_lens: torch.Tensor,
    groups: torch.Tensor,
    is_balanced: torch.Tensor,
    first_stops: torch.Tensor,
    stop_tokens: torch.Tensor,
    depth_limit: torch.Tensor,
    node_limit: torch.Tensor,
    history: torch.Tensor,
    history_lens: torch.Tensor,
    num_emitted: torch.Tensor,
    computed_lens: torch.Tensor,
    draft_computed_lens: torch.Tensor | None,
    pending_lens: torch.Tensor,
    wants_logits: torch.Tensor,
    max_emit: torch.Tensor,
    draft_pending_lens: torch.Tensor,
    draft_wants_logits: torch.Tensor,
    node_budgets: torch.Tensor,
    depth_limits: torch.Tensor,
    root_values: torch.Tensor,
    max_draft_rows: int,
    has_trees: bool,
) -> None:
    """Sequence by sequence."""
    room, pendings = max_draft_rows, []
    for b in range(int(num_seqs)):
        length = int(history_lens[b])
        first_new = max(length - int(num_emitted[b]), int(first_stops[b]))
        is_stopped = bool(torch.isin(history[b, first_new:length], stop_tokens[b]).any())
        goes_on = int(scheduled_lens[b]) and length < int(max_total_lens[b]) and not is_stopped
        most = length - int(computed_lens[b])
        pendings.append(min(int(scheduled_lens[b]), most) if goes_on else 0)
    if sum(pending > 0 for pending in pendings) < int(min_running):
        pendings = [0] * len(pendings)
    for b, pending in enumerate(pendings):
        length = int(history_lens[b])
        left = max(int(max_total_lens[b]) - length, 0)
        end = int(computed_lens[b]) + pending
        missing = 0
        if pending and draft_computed_lens is not None:
            missing = max(end - int(draft_computed_lens[b]), 0)
        followed = min(missing, room)
        room -= followed
        decodes = pending > 0 and end == length
        drafts = decodes and has_trees and bool(can_draft[b]) and followed == missing
        depth = min(left - 1, int(depth_limit)) if drafts else 0
        pending_lens[b] = pending
        wanted = ROOT_AND_NODES if has_trees else ROOT_ONLY
        wants_logits[b] = wanted if decodes else NO_LOGITS
        max_emit[b] = left
        draft_pending_lens[b] = followed
        draft_wants_logits[b] = ROOT_AND_NODES if depth > 0 else NO_LOGITS
        node_budgets[b] = int(node_limit) if depth > 0 else 0
        depth_limits[b] = depth
        root_values[b] = 1.0
        if pending and has_trees and int(is_balanced):
            mates = [i for i, p in enumerate(pendings) if p and int(groups[i]) == int(groups[b])]
            squares = sum((int(max_total_lens[i]) - int(history_lens[i])) ** 2 for i in mates)
            root_values[b] = float(np.float32(left**2 * len(mates)) / np.float32(squares))


def bench_cases() -> Iterator[Case]:
    """One and eight decoding sequences that committed five tokens in the step before."""
    for batch in (1, 8):
        lens = {"history_lens": 105, "computed_lens": 104, "draft_computed_lens": 103}
        limits = {"scheduled_lens": 1, "can_draft": 1, "max_total_lens": 110, "first_stops": 90}
        rest = {"groups": 0, "num_emitted": 5, **dict.fromkeys(OUTPUTS, 0)}
        values = {**lens, **limits, **rest}
        args: dict[str, Any] = {
            name: torch.full((batch,), value, dtype=torch.int32) for name, value in values.items()
        }
        args["num_seqs"] = torch.tensor([batch], dtype=torch.int32)
        args["min_running"] = torch.zeros(1, dtype=torch.int32)
        args["is_balanced"] = torch.ones(1, dtype=torch.int32)
        args["root_values"] = torch.zeros(batch)
        args["depth_limit"] = torch.tensor([8], dtype=torch.int32)
        args["node_limit"] = torch.tensor([64], dtype=torch.int32)
        args["stop_tokens"] = torch.full((batch, 8), -1, dtype=torch.int32)
        args["history"] = torch.zeros(batch, 4096, dtype=torch.int32)
        args |= {"max_draft_rows": 512, "has_trees": True}
        yield Case(f"B={batch}", args)


OP = Op(
    NAME,
    check,
    reference,
    OUTPUTS,
    cpu_op(NAME),
    backends={"cuda": cuda_op(NAME, check)},
    bench_cases=bench_cases,
)
