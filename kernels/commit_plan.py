"""commit_plan: bookkeeping after the walk, without the host.

Appends the emitted tokens to the history, says which KV entries of the accepted path move where,
and how far each cache then reaches. Of e emitted tokens the last has no KV entry yet: it is the
next root.

    history            ... r          r = root, at position n = computed + pending - 1
    path nodes             2  5       tokens a b, then c: out_tokens = a b c, num_accepted = 2
    target KV          ... r | 1 2 3 4 5      node i at n + i
    moves                    2 -> n+1, 5 -> n+2
    after              ... r a b | c          computed = n + 3, c pending

A sequence in unfinished prefill (NO_LOGITS) only advances its lengths.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from sdengine.kernels.cpu_library import cpu_op
from sdengine.kernels.cuda_library import cuda_op
from sdengine.kernels.move_plan import MovePlan, expect_move_plan
from sdengine.kernels.spec import Case, Op, expect, expect_tensor
from sdengine.kernels.token_tree import NO_LOGITS, ROOT_AND_NODES
from sdengine.kernels.verdict import Verdict, expect_verdict

NAME = "commit_plan"


def check(
    *,
    num_seqs: torch.Tensor,
    wants_logits: torch.Tensor,
    pending_lens: torch.Tensor,
    verdict: Verdict,
    max_emit: torch.Tensor,
    num_emitted: torch.Tensor,
    history: torch.Tensor,
    history_lens: torch.Tensor,
    computed_lens: torch.Tensor,
    moves: MovePlan,
    draft_slots: torch.Tensor | None = None,
    draft_pending_lens: torch.Tensor | None = None,
    draft_computed_lens: torch.Tensor | None = None,
    draft_moves: MovePlan | None = None,
    output_counts: torch.Tensor | None = None,
) -> None:
    """Contract.

    Args:
        num_seqs: [1] int32.
        wants_logits: [B] int32, as for build_rows; NO_LOGITS: nothing is emitted.
        pending_lens: [B] int32, tokens of this step's target chain; 0: the sequence took no part.
        verdict: Verdict [B, D] of tree_verify, read; the first -1 of its out_tokens ends what is
            emitted.
        max_emit: [B] int32, most tokens to emit (what max_tokens and the context leave).
        num_emitted: [B] int32, written: tokens appended, by the last step in which the sequence
            took part. The host cuts stop tokens and strings.
        history: [B, S] int32, all known tokens; appended to, never past S.
        history_lens: [B] int32, advanced by num_emitted.
        computed_lens: [B] int32, tokens whose KV is in the target's cache; advanced by pending +
            accepted and kept.
        moves: MovePlan [B, D], written: entries of the target's cache; nodes that lie right already
            are left out.
        draft_slots: [B, T + 1] int32, those of the TokenTree; None: no trees from a draft model.
        draft_pending_lens: [B] int32, tokens of this step's draft chain (0: none). With
            draft_computed_lens and draft_moves: all or none.
        draft_computed_lens: [B] int32, as computed_lens, for the draft's cache; advanced by
            pending + the forwarded prefix of the kept path, and never past the last known token.
        draft_moves: MovePlan [B, D], written: as moves, for the draft's cache.
        output_counts: [B, V] int32, incremented for each emitted token; None: no penalties.
    """
    expect_verdict(NAME, "verdict", verdict)
    batch, depth = verdict.batch_size, verdict.max_depth
    expect_tensor(NAME, "num_seqs", num_seqs, torch.int32, (1,))
    expect_tensor(NAME, "history", history, torch.int32, (batch, None))
    expect_move_plan(NAME, "moves", moves, batch, depth)
    lens: dict[str, object] = {
        "wants_logits": wants_logits,
        "pending_lens": pending_lens,
        "max_emit": max_emit,
        "num_emitted": num_emitted,
        "history_lens": history_lens,
        "computed_lens": computed_lens,
    }
    draft_lens: dict[str, object] = {
        "draft_pending_lens": draft_pending_lens,
        "draft_computed_lens": draft_computed_lens,
    }
    draft = {**draft_lens, "draft_moves": draft_moves}
    missing = [name for name, given in draft.items() if given is None]
    expect(
        NAME,
        len(missing) in (0, len(draft)),
        f"{', '.join(missing)}: expected tensors, since other draft arguments were given",
    )
    if not missing:
        expect_move_plan(NAME, "draft_moves", draft_moves, batch, depth)
        lens |= draft_lens
    for name, tensor in lens.items():
        expect_tensor(NAME, name, tensor, torch.int32, (batch,))
    if draft_slots is not None:
        expect_tensor(NAME, "draft_slots", draft_slots, torch.int32, (batch, None))
    if output_counts is not None:
        expect_tensor(NAME, "output_counts", output_counts, torch.int32, (batch, None))


def _write_moves(sources: list[int], start: int, b: int, plan: MovePlan) -> None:
    """Plans entry j: sources[j] -> start + j, leaving out the prefix that lies right."""
    settled = 0
    while settled < len(sources) and sources[settled] == start + settled:
        settled += 1
    plan.dst_start[b] = start + settled
    plan.num_moves[b] = len(sources) - settled
    for j, source in enumerate(sources[settled:]):
        plan.source[b, j] = source


def reference(
    *,
    num_seqs: torch.Tensor,
    wants_logits: torch.Tensor,
    pending_lens: torch.Tensor,
    verdict: Verdict,
    max_emit: torch.Tensor,
    num_emitted: torch.Tensor,
    history: torch.Tensor,
    history_lens: torch.Tensor,
    computed_lens: torch.Tensor,
    moves: MovePlan,
    draft_slots: torch.Tensor | None = None,
    draft_pending_lens: torch.Tensor | None = None,
    draft_computed_lens: torch.Tensor | None = None,
    draft_moves: MovePlan | None = None,
    output_counts: torch.Tensor | None = None,
) -> None:
    """Sequence by sequence."""
    for b in range(int(num_seqs)):
        emitted: list[int] = []
        has_logits = int(wants_logits[b]) != NO_LOGITS
        if has_logits and int(pending_lens[b]):
            room = history.shape[1] - int(history_lens[b])
            limit = max(0, min(int(verdict.num_accepted[b]) + 1, int(max_emit[b]), room))
            for token in verdict.out_tokens[b, :limit].tolist():
                if token < 0:
                    break
                emitted.append(token)
        end = int(history_lens[b])
        history[b, end : end + len(emitted)] = torch.tensor(emitted, dtype=torch.int32)
        history_lens[b] += len(emitted)
        if int(pending_lens[b]):
            num_emitted[b] = len(emitted)
        for token in emitted:
            if output_counts is not None:
                output_counts[b, token] += 1
        root = int(computed_lens[b]) + int(pending_lens[b]) - 1
        nodes = verdict.path[b, : max(0, len(emitted) - 1)].tolist()
        _write_moves([root + node for node in nodes], root + 1, b, moves)
        last_known = int(history_lens[b]) - (1 if has_logits else 0)
        computed_lens[b] = min(root + 1 + len(nodes), last_known)
        if draft_computed_lens is None:
            continue
        assert draft_pending_lens is not None and draft_moves is not None
        reached = int(draft_computed_lens[b]) + int(draft_pending_lens[b])
        slots: list[int] = []
        if draft_slots is not None and reached == root + 1:
            for node in nodes:
                if int(draft_slots[b, node]) <= 0:
                    break
                slots.append(root + int(draft_slots[b, node]))
        _write_moves(slots, root + 1, b, draft_moves)
        draft_computed_lens[b] = min(reached + len(slots), int(history_lens[b]) - 1)


def bench_cases() -> Iterator[Case]:
    """One and eight sequences that accepted five nodes of a 64-node tree of a draft model."""
    for batch in (1, 8):
        counts = {
            "wants_logits": ROOT_AND_NODES,
            "pending_lens": 1,
            "max_emit": 6,
            "num_emitted": 0,
            "history_lens": 101,
            "computed_lens": 100,
            "draft_pending_lens": 1,
            "draft_computed_lens": 100,
        }
        args: dict[str, Any] = {
            name: torch.full((batch,), value, dtype=torch.int32) for name, value in counts.items()
        }
        args["num_seqs"] = torch.tensor([batch], dtype=torch.int32)
        verdict = Verdict.allocate(batch, 8)
        verdict.num_accepted[:], verdict.out_tokens[:] = 5, 1
        verdict.path[:] = torch.arange(2, 18, 2)
        args["verdict"] = verdict
        args["history"] = torch.zeros(batch, 4096, dtype=torch.int32)
        args["draft_slots"] = torch.arange(65, dtype=torch.int32).repeat(batch, 1)
        args["moves"], args["draft_moves"] = (MovePlan.allocate(batch, 8) for _ in range(2))
        yield Case(f"B={batch} D=8", args)


OUTPUTS = (
    "num_emitted",
    "history",
    "history_lens",
    "computed_lens",
    "moves",
    "draft_computed_lens",
    "draft_moves",
    "output_counts",
)
OP = Op(
    NAME,
    check,
    reference,
    OUTPUTS,
    cpu_op(NAME),
    backends={"cuda": cuda_op(NAME, check)},
    bench_cases=bench_cases,
)
