"""commit_plan: bookkeeping after the walk, without the host.

Appends the emitted tokens to the history, says which KV entries of the accepted path move where,
and how far each cache then reaches. Of e emitted tokens the last has no KV entry yet: it is the
next root.

    history            ... r          r = root, at position n = computed + pending - 1
    path nodes             2  5       tokens a b, then c: out_tokens = a b c, num_accepted = 2
    target KV          ... r | 1 2 3 4 5      node i at n + i
    moves                    2 -> n+1, 5 -> n+2
    after              ... r a b | c          computed = n + 3, c pending

A sequence in unfinished prefill (wants_logits 0) only advances its lengths.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from sdengine.kernels.cpu_library import cpu_op
from sdengine.kernels.cuda_library import cuda_op
from sdengine.kernels.spec import Case, Op, expect, expect_tensor

NAME = "commit_plan"


def check(
    *,
    num_seqs: torch.Tensor,
    wants_logits: torch.Tensor,
    pending_lens: torch.Tensor,
    num_accepted: torch.Tensor,
    path: torch.Tensor,
    out_tokens: torch.Tensor,
    max_emit: torch.Tensor,
    num_emitted: torch.Tensor,
    history: torch.Tensor,
    history_lens: torch.Tensor,
    computed_lens: torch.Tensor,
    move_src: torch.Tensor,
    move_dst_start: torch.Tensor,
    num_moves: torch.Tensor,
    draft_slots: torch.Tensor | None = None,
    draft_pending_lens: torch.Tensor | None = None,
    draft_computed_lens: torch.Tensor | None = None,
    draft_move_src: torch.Tensor | None = None,
    draft_move_dst_start: torch.Tensor | None = None,
    num_draft_moves: torch.Tensor | None = None,
    output_counts: torch.Tensor | None = None,
) -> None:
    """Contract.

    Args:
        num_seqs: [1] int32.
        wants_logits: [B] int32, as for build_rows; 0: nothing is emitted.
        pending_lens: [B] int32, tokens of this step's target chain; 0: the sequence took no part.
        num_accepted: [B] int32, from tree_verify.
        path: [B, D] int32, from tree_verify: accepted nodes of the TokenTree.
        out_tokens: [B, D + 1] int32, from tree_verify; the first -1 ends what is emitted.
        max_emit: [B] int32, most tokens to emit (what max_tokens and the context leave).
        num_emitted: [B] int32, written: tokens appended, by the last step in which the sequence
            took part. The host cuts stop tokens and strings.
        history: [B, S] int32, all known tokens; appended to, never past S.
        history_lens: [B] int32, advanced by num_emitted.
        computed_lens: [B] int32, tokens whose KV is in the target's cache; advanced by pending +
            accepted and kept.
        move_src: [B, D] int32, written: logical indices to gather from.
        move_dst_start: [B] int32, written: entry j goes to logical index move_dst_start + j.
        num_moves: [B] int32, written; nodes that lie right already are left out.
        draft_slots: [B, T + 1] int32, those of the TokenTree; None: no trees from a draft model.
        draft_pending_lens: [B] int32, tokens of this step's draft chain (0: none). With
            draft_computed_lens and the three draft move tensors: all or none.
        draft_computed_lens: [B] int32, as computed_lens, for the draft's cache; advanced by
            pending + the forwarded prefix of the kept path, and never past the last known token.
        draft_move_src: [B, D] int32, written.
        draft_move_dst_start: [B] int32, written.
        num_draft_moves: [B] int32, written.
        output_counts: [B, V] int32, incremented for each emitted token; None: no penalties.
    """
    batch, depth = expect_tensor(NAME, "path", path, torch.int32, (None, None)).shape
    expect_tensor(NAME, "num_seqs", num_seqs, torch.int32, (1,))
    expect_tensor(NAME, "out_tokens", out_tokens, torch.int32, (batch, depth + 1))
    expect_tensor(NAME, "history", history, torch.int32, (batch, None))
    expect_tensor(NAME, "move_src", move_src, torch.int32, (batch, depth))
    lens = {
        "wants_logits": wants_logits,
        "pending_lens": pending_lens,
        "num_accepted": num_accepted,
        "max_emit": max_emit,
        "num_emitted": num_emitted,
        "history_lens": history_lens,
        "computed_lens": computed_lens,
        "move_dst_start": move_dst_start,
        "num_moves": num_moves,
    }
    draft = {
        "draft_pending_lens": draft_pending_lens,
        "draft_computed_lens": draft_computed_lens,
        "draft_move_dst_start": draft_move_dst_start,
        "num_draft_moves": num_draft_moves,
        "draft_move_src": draft_move_src,
    }
    missing = [name for name, tensor in draft.items() if tensor is None]
    expect(
        NAME,
        len(missing) in (0, len(draft)),
        f"{', '.join(missing)}: expected tensors, since other draft arguments were given",
    )
    if not missing:
        expect_tensor(
            NAME, "draft_move_src", draft.pop("draft_move_src"), torch.int32, (batch, depth)
        )
        lens.update(draft)  # type: ignore[arg-type]
    for name, tensor in lens.items():
        expect_tensor(NAME, name, tensor, torch.int32, (batch,))
    if draft_slots is not None:
        expect_tensor(NAME, "draft_slots", draft_slots, torch.int32, (batch, None))
    if output_counts is not None:
        expect_tensor(NAME, "output_counts", output_counts, torch.int32, (batch, None))


def _write_moves(
    sources: list[int],
    start: int,
    b: int,
    src: torch.Tensor,
    dst_start: torch.Tensor,
    count: torch.Tensor,
) -> None:
    """Plans entry j: sources[j] -> start + j, leaving out the prefix that lies right."""
    settled = 0
    while settled < len(sources) and sources[settled] == start + settled:
        settled += 1
    dst_start[b] = start + settled
    count[b] = len(sources) - settled
    for j, source in enumerate(sources[settled:]):
        src[b, j] = source


def reference(
    *,
    num_seqs: torch.Tensor,
    wants_logits: torch.Tensor,
    pending_lens: torch.Tensor,
    num_accepted: torch.Tensor,
    path: torch.Tensor,
    out_tokens: torch.Tensor,
    max_emit: torch.Tensor,
    num_emitted: torch.Tensor,
    history: torch.Tensor,
    history_lens: torch.Tensor,
    computed_lens: torch.Tensor,
    move_src: torch.Tensor,
    move_dst_start: torch.Tensor,
    num_moves: torch.Tensor,
    draft_slots: torch.Tensor | None = None,
    draft_pending_lens: torch.Tensor | None = None,
    draft_computed_lens: torch.Tensor | None = None,
    draft_move_src: torch.Tensor | None = None,
    draft_move_dst_start: torch.Tensor | None = None,
    num_draft_moves: torch.Tensor | None = None,
    output_counts: torch.Tensor | None = None,
) -> None:
    """Sequence by sequence."""
    for b in range(int(num_seqs)):
        emitted: list[int] = []
        if int(wants_logits[b]) and int(pending_lens[b]):
            room = history.shape[1] - int(history_lens[b])
            limit = max(0, min(int(num_accepted[b]) + 1, int(max_emit[b]), room))
            for token in out_tokens[b, :limit].tolist():
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
        nodes = path[b, : max(0, len(emitted) - 1)].tolist()
        _write_moves(
            [root + node for node in nodes], root + 1, b, move_src, move_dst_start, num_moves
        )
        last_known = int(history_lens[b]) - (1 if int(wants_logits[b]) else 0)
        computed_lens[b] = min(root + 1 + len(nodes), last_known)
        if draft_computed_lens is None:
            continue
        assert draft_pending_lens is not None and draft_move_src is not None
        assert draft_move_dst_start is not None and num_draft_moves is not None
        reached = int(draft_computed_lens[b]) + int(draft_pending_lens[b])
        slots: list[int] = []
        if draft_slots is not None and reached == root + 1:
            for node in nodes:
                if int(draft_slots[b, node]) <= 0:
                    break
                slots.append(root + int(draft_slots[b, node]))
        _write_moves(slots, root + 1, b, draft_move_src, draft_move_dst_start, num_draft_moves)
        draft_computed_lens[b] = min(reached + len(slots), int(history_lens[b]) - 1)


def bench_cases() -> Iterator[Case]:
    """One and eight sequences that accepted five nodes of a 64-node tree."""
    for batch in (1, 8):
        counts = {
            "wants_logits": 1,
            "pending_lens": 1,
            "num_accepted": 5,
            "max_emit": 0,
            "num_emitted": 0,
            "history_lens": 101,
            "computed_lens": 100,
            "move_dst_start": 0,
            "num_moves": 0,
        }
        args: dict[str, Any] = {
            name: torch.full((batch,), value, dtype=torch.int32) for name, value in counts.items()
        }
        args["num_seqs"] = torch.tensor([batch], dtype=torch.int32)
        args["path"] = torch.arange(2, 18, 2, dtype=torch.int32).repeat(batch, 1)
        args["out_tokens"] = torch.ones(batch, 9, dtype=torch.int32)
        args["history"] = torch.zeros(batch, 4096, dtype=torch.int32)
        args["move_src"] = torch.zeros(batch, 8, dtype=torch.int32)
        yield Case(f"B={batch} D=8", args)


OUTPUTS = (
    "num_emitted",
    "history",
    "history_lens",
    "computed_lens",
    "move_src",
    "move_dst_start",
    "num_moves",
    "draft_computed_lens",
    "draft_move_src",
    "draft_move_dst_start",
    "num_draft_moves",
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
