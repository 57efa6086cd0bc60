"""tree_select: trims the drafted trees over the batch and renumbers them in depth-first preorder.

Nodes of the whole batch are taken in the order (value descending; depth, sequence, creation order
ascending) until the first that is not worth its row. What is kept is closed under parents and
earlier siblings. Siblings keep their order (best first; draw order in rejection trees), and a
node's first child is the next node: the likeliest path is contiguous.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from sdengine.kernels.cpu_library import cpu_op
from sdengine.kernels.cuda_library import cuda_op
from sdengine.kernels.spec import Case, Op, expect, expect_tensor
from sdengine.kernels.token_tree import (
    MASK_BITS,
    DraftTree,
    TokenTree,
    allocate_tree_scratch,
    expect_draft_tree,
    expect_token_tree,
    tree_scratch_size,
)

NAME = "tree_select"


def most_sequences(max_nodes: int) -> int:
    """B up to which all nodes of trees of that size can be ranked together: their order in the
    batch, by depth, sequence and index, has 32 bits."""
    return (2**32 - 1) // (max_nodes + 1) ** 2


def check(
    *,
    draft: DraftTree,
    thresholds: torch.Tensor,
    cu_pending: torch.Tensor,
    num_seqs: torch.Tensor,
    scratch: torch.Tensor,
    tree: TokenTree,
    total_budget: torch.Tensor | None = None,
) -> None:
    """Contract.

    Args:
        draft: DraftTree [B, T + 1], read.
        thresholds: [N] float32; a node that would become row r of the target batch (pending tokens
            of all sequences and nodes taken before it counted) is taken when its value >=
            thresholds[r]; the first that is not ends the choice. No node beyond row N - 1, so the
            target batch always fits. All 0: everything that fits is kept.
        cu_pending: [B + 1] int32, as for build_rows; cu_pending[num_seqs] rows come before nodes.
        num_seqs: [1] int32.
        scratch: int64, at least tree_scratch_size(B, T) elements.
        tree: TokenTree [B, T + 1], written. The root's draft slot is 0, its proposal row that of
            the draft tree.
        total_budget: [1] int32, most nodes of the batch; None: as many as there are rows for.
    """
    expect_draft_tree(NAME, "draft", draft)
    expect_token_tree(NAME, "tree", tree)
    shapes = list(draft.tokens.shape), list(tree.tokens.shape)
    expect(NAME, shapes[0] == shapes[1], f"tree: expected shape {shapes[0]}, got {shapes[1]}")
    expect_tensor(NAME, "thresholds", thresholds, torch.float32, (None,))
    expect_tensor(NAME, "cu_pending", cu_pending, torch.int32, (draft.batch_size + 1,))
    expect_tensor(NAME, "num_seqs", num_seqs, torch.int32, (1,))
    if total_budget is not None:
        expect_tensor(NAME, "total_budget", total_budget, torch.int32, (1,))
    orders = draft.batch_size * (draft.max_nodes + 1) ** 2
    fits = draft.batch_size <= most_sequences(draft.max_nodes)
    expect(NAME, fits, f"draft: B * (T + 1)^2 must be below 2^32, got {orders}")
    needed = tree_scratch_size(draft.batch_size, draft.max_nodes)
    got = expect_tensor(NAME, "scratch", scratch, torch.int64, (None,)).numel()
    expect(NAME, got >= needed, f"scratch: expected at least {needed} elements, got {got}")


def reference(
    *,
    draft: DraftTree,
    thresholds: torch.Tensor,
    cu_pending: torch.Tensor,
    num_seqs: torch.Tensor,
    scratch: torch.Tensor,
    tree: TokenTree,
    total_budget: torch.Tensor | None = None,
) -> None:
    """Sorts all nodes, takes a prefix, renumbers recursively."""
    live = int(num_seqs)
    ranked = sorted(
        (-float(draft.values[b, i]), int(draft.depths[b, i]), b, i)
        for b in range(live)
        for i in range(1, int(draft.num_nodes[b]) + 1)
    )
    base = int(cu_pending[live])
    if total_budget is not None:
        ranked = ranked[: max(int(total_budget), 0)]
    kept: set[tuple[int, int]] = set()
    for taken, (negative, _, b, i) in enumerate(ranked):
        row = base + taken
        if row >= len(thresholds) or not -negative >= float(thresholds[row]):
            break
        kept.add((b, i))
    for b in range(live):
        _write_tree(b, draft, [i for seq, i in sorted(kept) if seq == b], tree)


def _write_tree(b: int, draft: DraftTree, kept: list[int], tree: TokenTree) -> None:
    children: dict[int, list[int]] = {}
    for i in kept:
        children.setdefault(int(draft.parents[b, i]), []).append(i)
    tree.num_nodes[b] = len(kept)
    places: dict[int, int] = {}

    def visit(i: int, parent: int, mask: int) -> None:
        node = places[i] = len(places)
        mask |= 1 << (node - 1) if node else 0
        tree.tokens[b, node] = draft.tokens[b, i] if node else -1
        tree.parents[b, node] = parent
        tree.depths[b, node] = draft.depths[b, i] if node else 0
        tree.creation_ids[b, node] = i
        tree.draft_slots[b, node] = draft.draft_slots[b, i] if node else 0
        tree.proposal_rows[b, node] = draft.proposal_rows[b, i]
        tree.reach[b, node] = draft.reach[b, i]
        for name in ("estimates", "probs"):
            getattr(tree, name)[b, node] = getattr(draft, name)[b, i] if node else 1.0
        tree.ancestor_mask[b, node] = _words(mask, tree.mask_words)
        for child in children.get(i, []):
            visit(child, node, mask)

    visit(0, -1, 0)
    for i, node in places.items():
        below = [places[c] for c in children.get(i, [])]
        tree.first_child[b, node] = below[0] if below else -1
        for child, following in zip(below, [*below[1:], -1]):
            tree.next_sibling[b, child] = following
    tree.next_sibling[b, 0] = -1


def _words(mask: int, count: int) -> torch.Tensor:
    words = [(mask >> (MASK_BITS * w)) & (2**MASK_BITS - 1) for w in range(count)]
    return torch.tensor([w - 2**MASK_BITS if w >> (MASK_BITS - 1) else w for w in words])


def bench_cases() -> Iterator[Case]:
    """Everything kept, and a choice that has to sort."""
    for batch, nodes, threshold in ((1, 64, 0.0), (1, 64, 0.02), (8, 16, 0.02), (1, 512, 0.002)):
        draft = DraftTree.allocate(batch, nodes)
        index = torch.arange(1, nodes + 1, dtype=torch.int32)
        draft.parents[:, 1:] = (index - 1) // 4  # every node has four children
        for i in range(1, nodes + 1):
            parent = (i - 1) // 4
            draft.depths[:, i] = draft.depths[:, parent] + 1
            draft.values[:, i] = draft.values[:, parent] * 0.6 ** (1 + (i - 1) % 4)
        draft.num_nodes[:] = nodes
        args = {
            "draft": draft,
            "thresholds": torch.full((batch * (nodes + 1),), threshold),
            "cu_pending": torch.arange(batch + 1, dtype=torch.int32),
            "num_seqs": torch.tensor([batch], dtype=torch.int32),
            "scratch": allocate_tree_scratch(batch, nodes),
            "tree": TokenTree.allocate(batch, nodes),
        }
        yield Case(f"B={batch} T={nodes} threshold={threshold}", args)


OP = Op(
    NAME,
    check,
    reference,
    ("tree",),
    cpu_op(NAME),
    backends={"cuda": cuda_op(NAME, check)},
    bench_cases=bench_cases,
)
