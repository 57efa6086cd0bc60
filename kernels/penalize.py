"""penalize: repetition, presence, frequency penalties, logit bias, banned stop tokens, in place.

Tokens are counted along each row's own path: what the tables hold (prompt, committed output), and
the drafted tokens from the tree's first level down to the row's node. So the target's logits of a
node become exactly those of plain decoding at the same prefix, and a draft's follow them. A
sequence without any of this costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from sdengine.kernels.backends import triton_kernel
from sdengine.kernels.cpu_library import load_cpu
from sdengine.kernels.spec import Case, Op, address, expect, expect_tensor

NAME = "penalize"


def check(
    *,
    logits: torch.Tensor,
    row_seq: torch.Tensor,
    prompt_counts: torch.Tensor,
    output_counts: torch.Tensor,
    repetition_penalty: torch.Tensor,
    presence_penalty: torch.Tensor,
    frequency_penalty: torch.Tensor,
    bias_ids: torch.Tensor,
    bias_values: torch.Tensor,
    num_bias: torch.Tensor,
    stop_ids: torch.Tensor,
    num_stops: torch.Tensor,
    min_lens: torch.Tensor,
    history_lens: torch.Tensor,
    num_rows: torch.Tensor,
    rows: torch.Tensor | None = None,
    row_node: torch.Tensor | None = None,
    node_tokens: torch.Tensor | None = None,
    node_parents: torch.Tensor | None = None,
) -> None:
    """Contract; applied in the order of the arguments below.

    Args:
        logits: [N, V] float32, changed in place.
        row_seq: [N'] int32, sequence of each packed row.
        prompt_counts: [B, V'] int32, occurrences in the prompt, of V' >= V tokens: a draft may have
            fewer rows for tokens that are never used than its target, whose tables these are.
        output_counts: [B, V'] int32, occurrences in the committed output.
        repetition_penalty: [B] float32 > 0; divides positive and multiplies negative logits of
            tokens in prompt or output. 1: off.
        presence_penalty: [B] float32, subtracted once from tokens in the output. 0: off.
        frequency_penalty: [B] float32, subtracted per occurrence in the output. 0: off.
        bias_ids: [B, M] int32, tokens whose logits get a bias, here and below those below V.
        bias_values: [B, M] float32, added.
        num_bias: [B] int32, live entries.
        stop_ids: [B, S] int32, tokens banned (-inf) while the sequence is too short.
        num_stops: [B] int32, live entries.
        min_lens: [B] int32, prompt length + min_tokens: banned in rows whose next token would have
            a position below it: history_lens + depth of the row's node < min_lens.
        history_lens: [B] int32, known tokens, the root included.
        num_rows: [1] int32.
        rows: [N] int32, packed row that row r of logits belongs to; None: row r itself.
        row_node: [N'] int32, tree node of each packed row, 0 for the root and chain rows. This and
            the next two: all or none.
        node_tokens: [B, T + 1] int32, of a DraftTree or TokenTree.
        node_parents: [B, T + 1] int32, of the same.
    """
    n, vocab = expect_tensor(NAME, "logits", logits, torch.float32, (None, None)).shape
    packed = expect_tensor(NAME, "row_seq", row_seq, torch.int32, (n if rows is None else None,))
    batch = expect_tensor(NAME, "min_lens", min_lens, torch.int32, (None,)).shape[0]
    for name, tensor, dtype, shape in (
        ("prompt_counts", prompt_counts, torch.int32, (batch, None)),
        ("output_counts", output_counts, torch.int32, tuple(prompt_counts.shape)),
        ("repetition_penalty", repetition_penalty, torch.float32, (batch,)),
        ("presence_penalty", presence_penalty, torch.float32, (batch,)),
        ("frequency_penalty", frequency_penalty, torch.float32, (batch,)),
        ("bias_ids", bias_ids, torch.int32, (batch, None)),
        ("bias_values", bias_values, torch.float32, tuple(bias_ids.shape)),
        ("num_bias", num_bias, torch.int32, (batch,)),
        ("stop_ids", stop_ids, torch.int32, (batch, None)),
        ("num_stops", num_stops, torch.int32, (batch,)),
        ("history_lens", history_lens, torch.int32, (batch,)),
        ("num_rows", num_rows, torch.int32, (1,)),
    ):
        expect_tensor(NAME, name, tensor, dtype, shape)
    counted = prompt_counts.shape[1]
    expect(NAME, counted >= vocab, f"prompt_counts: expected {vocab} tokens or more, got {counted}")
    if rows is not None:
        expect_tensor(NAME, "rows", rows, torch.int32, (n,))
    nodes = {"row_node": row_node, "node_tokens": node_tokens, "node_parents": node_parents}
    given = [tensor is not None for tensor in nodes.values()]
    expect(NAME, all(given) or not any(given), f"{', '.join(nodes)}: expected all or none")
    if row_node is not None and node_tokens is not None:
        expect_tensor(NAME, "row_node", row_node, torch.int32, tuple(packed.shape))
        expect_tensor(NAME, "node_tokens", node_tokens, torch.int32, (batch, None))
        shape = tuple(node_tokens.shape)
        expect_tensor(NAME, "node_parents", node_parents, torch.int32, shape)


def _path(tokens: torch.Tensor, parents: torch.Tensor, node: int) -> list[int]:
    """Tokens from a node up to below the root."""
    found = []
    while node > 0:
        found.append(int(tokens[node]))
        node = int(parents[node])
    return found


def reference(
    *,
    logits: torch.Tensor,
    row_seq: torch.Tensor,
    prompt_counts: torch.Tensor,
    output_counts: torch.Tensor,
    repetition_penalty: torch.Tensor,
    presence_penalty: torch.Tensor,
    frequency_penalty: torch.Tensor,
    bias_ids: torch.Tensor,
    bias_values: torch.Tensor,
    num_bias: torch.Tensor,
    stop_ids: torch.Tensor,
    num_stops: torch.Tensor,
    min_lens: torch.Tensor,
    history_lens: torch.Tensor,
    num_rows: torch.Tensor,
    rows: torch.Tensor | None = None,
    row_node: torch.Tensor | None = None,
    node_tokens: torch.Tensor | None = None,
    node_parents: torch.Tensor | None = None,
) -> None:
    """Row by row, the path's tokens added to a copy of the counts."""
    for r in range(int(num_rows)):
        packed = r if rows is None else int(rows[r])
        b = int(row_seq[packed])
        path: list[int] = []
        if row_node is not None and node_tokens is not None and node_parents is not None:
            path = _path(node_tokens[b], node_parents[b], int(row_node[packed]))
        output = output_counts[b, : logits.shape[1]].clone()
        for token in path:
            output[token] += 1
        z, repetition = logits[r], repetition_penalty[b]
        scaled = torch.where(z > 0, z / repetition, z * repetition)
        z = torch.where(prompt_counts[b, : len(output)] + output > 0, scaled, z)
        present = torch.where(output > 0, presence_penalty[b], torch.zeros(()))
        z = z - (frequency_penalty[b] * output.float() + present)
        for i in range(int(num_bias[b])):
            if int(bias_ids[b, i]) < len(z):
                z[bias_ids[b, i]] += bias_values[b, i]
        if int(history_lens[b]) + len(path) < int(min_lens[b]):
            stops = stop_ids[b, : int(num_stops[b])].long()
            z[stops[stops < len(z)]] = float("-inf")
        logits[r] = z


def cpu(
    native: Any,
    *,
    logits: torch.Tensor,
    row_seq: torch.Tensor,
    prompt_counts: torch.Tensor,
    output_counts: torch.Tensor,
    repetition_penalty: torch.Tensor,
    presence_penalty: torch.Tensor,
    frequency_penalty: torch.Tensor,
    bias_ids: torch.Tensor,
    bias_values: torch.Tensor,
    num_bias: torch.Tensor,
    stop_ids: torch.Tensor,
    num_stops: torch.Tensor,
    min_lens: torch.Tensor,
    history_lens: torch.Tensor,
    num_rows: torch.Tensor,
    rows: torch.Tensor | None = None,
    row_node: torch.Tensor | None = None,
    node_tokens: torch.Tensor | None = None,
    node_parents: torch.Tensor | None = None,
) -> None:
    """Appends the native launch."""
    load_cpu().penalize(
        native,
        *map(address, (logits, rows, row_seq, row_node)),
        *map(address, (node_parents, node_tokens)),
        0 if node_tokens is None else node_tokens.shape[1],
        *map(address, (prompt_counts, output_counts)),
        prompt_counts.shape[1],
        *map(address, (repetition_penalty, presence_penalty, frequency_penalty)),
        *map(address, (bias_ids, bias_values, num_bias)),
        bias_ids.shape[1],
        *map(address, (stop_ids, num_stops)),
        stop_ids.shape[1],
        *map(address, (min_lens, history_lens, num_rows)),
        logits.shape[1],
    )


def bench_cases() -> Iterator[Case]:
    """Sixteen rows with penalties, and with none."""
    for vocab, is_neutral in ((2048, False), (128256, False), (128256, True)):
        rows = 16
        args = {
            "logits": torch.randn(rows, vocab),
            "row_seq": torch.zeros(rows, dtype=torch.int32),
            "prompt_counts": torch.randint(0, 2, (1, vocab), dtype=torch.int32),
            "output_counts": torch.randint(0, 2, (1, vocab), dtype=torch.int32),
            "repetition_penalty": torch.tensor([1.0 if is_neutral else 1.1]),
            "presence_penalty": torch.zeros(1),
            "frequency_penalty": torch.zeros(1),
            "bias_ids": torch.zeros(1, 4, dtype=torch.int32),
            "bias_values": torch.zeros(1, 4),
            "num_rows": torch.tensor([rows], dtype=torch.int32),
            "stop_ids": torch.zeros(1, 2, dtype=torch.int32),
        }
        for name in ("num_bias", "num_stops", "min_lens", "history_lens"):
            args[name] = torch.zeros(1, dtype=torch.int32)
        moved = 0 if is_neutral else rows * vocab * 16
        label = f"N={rows} V={vocab} {'none' if is_neutral else 'repetition'}"
        yield Case(label, args, bytes_moved=moved)


OP = Op(NAME, check, reference, ("logits",), cpu, triton_kernel(NAME), bench_cases)
