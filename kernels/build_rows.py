"""build_rows: packs each sequence's pending tokens and tree nodes into the rows of a forward pass.

sequence with n computed tokens, pending p0 p1 (p1 = root), tree a{b} c

row            p0     p1     a        b        c
position       n      n+1    n+2      n+3      n+2
KV slot of     n      n+1    n+2      n+3      n+4      (logical index)
visible_lens   n+1    n+2    n+2      n+2      n+2
mask           -      -      a        ab       c        tree_starts = n+2
row_node       0      0      1        2        3
logit row             x      x        x        x        (wants_logits)
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from sdengine.kernels.cpu_library import cpu_op
from sdengine.kernels.cuda_library import cuda_op
from sdengine.kernels.row_batch import RowBatch, expect_row_batch
from sdengine.kernels.spec import Case, Op, expect, expect_tensor
from sdengine.kernels.token_tree import NO_LOGITS, ROOT_AND_NODES, TokenTree, expect_token_tree

NAME = "build_rows"


def check(
    *,
    pending_tokens: torch.Tensor,
    cu_pending: torch.Tensor,
    computed_lens: torch.Tensor,
    wants_logits: torch.Tensor,
    num_seqs: torch.Tensor,
    block_tables: torch.Tensor,
    block_size: int,
    tree: TokenTree | None,
    rows: RowBatch,
    logit_rows: torch.Tensor,
    cu_logits: torch.Tensor,
    num_logits: torch.Tensor,
) -> None:
    """Contract.

    Args:
        pending_tokens: [N_p] int32, N_p <= N: tokens whose KV is not in the cache yet, packed.
        cu_pending: [B + 1] int32; pending tokens of sequence b are cu_pending[b] :
            cu_pending[b + 1]; the last one is the root of its tree.
        computed_lens: [B] int32, tokens whose KV is in the cache = position of the first pending.
        wants_logits: [B] int32, of token_tree.py's values; NO_LOGITS: the sequence gets no logit
            rows and no tree rows (unfinished prefill); ROOT_AND_NODES: the root and every node;
            ROOT_ONLY: the root, and no tree rows.
        num_seqs: [1] int32.
        block_tables: [B, P_max] int32; must cover computed + pending + nodes logical slots.
        block_size: static; tokens per KV block.
        tree: TokenTree [B, T + 1], read; None: chains only (prefill, plain decoding, first draft
            layer).
        rows: RowBatch, written; W >= the tree's. All rows must fit N (tree_select with
            thresholds [N] sees to that).
        logit_rows: [N] int32, written: row of each logit row, packed by sequence, root first.
        cu_logits: [B + 1] int32, written: logit rows of sequence b are cu_logits[b] :
            cu_logits[b + 1]; the logits of tree node i are row cu_logits[b] + i.
        num_logits: [1] int32, written.
    """
    expect_row_batch(NAME, "rows", rows)
    batch, n = rows.tree_starts.shape[0], rows.max_rows
    (pending,) = expect_tensor(NAME, "pending_tokens", pending_tokens, torch.int32, (None,)).shape
    expect(NAME, pending <= n, f"pending_tokens: expected at most N={n} tokens, got {pending}")
    for name, tensor, size in (
        ("cu_pending", cu_pending, batch + 1),
        ("computed_lens", computed_lens, batch),
        ("wants_logits", wants_logits, batch),
        ("num_seqs", num_seqs, 1),
        ("logit_rows", logit_rows, n),
        ("cu_logits", cu_logits, batch + 1),
        ("num_logits", num_logits, 1),
    ):
        expect_tensor(NAME, name, tensor, torch.int32, (size,))
    expect_tensor(NAME, "block_tables", block_tables, torch.int32, (batch, None))
    expect(NAME, block_size >= 1, f"block_size: expected at least 1, got {block_size}")
    if tree is not None:
        expect_token_tree(NAME, "tree", tree)
        expect(
            NAME,
            tree.batch_size == batch and tree.mask_words <= rows.mask_words,
            f"tree: expected B={batch} and at most {rows.mask_words} mask words, got "
            f"B={tree.batch_size} and {tree.mask_words}",
        )


def reference(
    *,
    pending_tokens: torch.Tensor,
    cu_pending: torch.Tensor,
    computed_lens: torch.Tensor,
    wants_logits: torch.Tensor,
    num_seqs: torch.Tensor,
    block_tables: torch.Tensor,
    block_size: int,
    tree: TokenTree | None,
    rows: RowBatch,
    logit_rows: torch.Tensor,
    cu_logits: torch.Tensor,
    num_logits: torch.Tensor,
) -> None:
    """Writes one row after the other."""
    row = logits = 0
    rows.cu_rows[0] = cu_logits[0] = 0
    for b in range(int(num_seqs)):
        pending = pending_tokens[int(cu_pending[b]) : int(cu_pending[b + 1])].tolist()
        first = int(computed_lens[b])
        start = first + len(pending)
        rows.tree_starts[b] = start
        entries = [(t, first + j, first + j, 0, first + j + 1) for j, t in enumerate(pending)]
        wanted = int(wants_logits[b]) != NO_LOGITS and bool(pending)
        has_nodes = tree is not None and wanted and int(wants_logits[b]) == ROOT_AND_NODES
        num_nodes = int(tree.num_nodes[b]) if has_nodes else 0
        for i in range(1, num_nodes + 1):
            position = start - 1 + int(tree.depths[b, i])
            entries.append((int(tree.tokens[b, i]), position, start + i - 1, i, start))
        for token, position, logical, node, visible in entries:
            block = int(block_tables[b, logical // block_size])
            rows.tokens[row], rows.positions[row] = token, position
            rows.slots[row] = block * block_size + logical % block_size
            rows.row_seq[row], rows.row_node[row] = b, node
            rows.visible_lens[row] = visible
            rows.ancestor_mask[row] = 0
            if node:
                rows.ancestor_mask[row, : tree.mask_words] = tree.ancestor_mask[b, node]
            if wanted and row - int(rows.cu_rows[b]) >= len(pending) - 1:
                logit_rows[logits] = row
                logits += 1
            row += 1
        rows.cu_rows[b + 1], cu_logits[b + 1] = row, logits
    rows.num_rows[0], num_logits[0] = row, logits


def bench_cases() -> Iterator[Case]:
    """A prefill chunk and a tree at batch 1, small trees in a batch."""
    for batch, pending, nodes in ((1, 512, 0), (1, 1, 64), (8, 1, 16)):
        tree = TokenTree.allocate(batch, max(nodes, 1))
        tree.num_nodes[:] = nodes
        n = batch * (pending + nodes)
        args = {
            "pending_tokens": torch.arange(batch * pending, dtype=torch.int32),
            "cu_pending": torch.arange(batch + 1, dtype=torch.int32) * pending,
            "computed_lens": torch.full((batch,), 100, dtype=torch.int32),
            "wants_logits": torch.full((batch,), ROOT_AND_NODES, dtype=torch.int32),
            "num_seqs": torch.tensor([batch], dtype=torch.int32),
            "block_tables": torch.arange(batch * 16, dtype=torch.int32).view(batch, 16),
            "block_size": 64,
            "tree": tree,
            "rows": RowBatch.allocate(batch, n, tree.mask_words),
            "logit_rows": torch.zeros(n, dtype=torch.int32),
            "cu_logits": torch.zeros(batch + 1, dtype=torch.int32),
            "num_logits": torch.zeros(1, dtype=torch.int32),
        }
        yield Case(f"B={batch} pending={pending} nodes={nodes}", args)


OUTPUTS = ("rows", "logit_rows", "cu_logits", "num_logits")
OP = Op(
    NAME,
    check,
    reference,
    OUTPUTS,
    cpu_op(NAME),
    backends={"cuda": cuda_op(NAME, check)},
    bench_cases=bench_cases,
)
