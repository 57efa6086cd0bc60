"""Token trees as structs of tensors: `DraftTree` while it grows, `TokenTree` once it is selected.

Both hold one tree per sequence. Node 0 is the root: the last pending token, whose KV is not in the
cache yet and whose token is not stored here. `num_nodes` never counts the root. Parents come before
children.

    node   0     1    2    3    4        parents       -1  0  1  1  0
           root--a----b                  depths         0  1  2  2  1
            |     `---c                  first_child    1  2 -1 -1 -1      (TokenTree, preorder)
            `----d (= node 4)            next_sibling  -1  4  3 -1 -1
                                         mask bits      -  a ab ac  d      (bit i - 1 is node i)
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from sdengine.kernels.spec import expect, expect_tensor

MASK_BITS = 64
NO_LOGITS, ROOT_AND_NODES, ROOT_ONLY = 0, 1, 2
"""Values of wants_logits, what a sequence needs logits of: nothing (its prompt is unfinished), the
root and every node of its tree, the root alone.
"""


def mask_words(num_nodes: int) -> int:
    """64-bit words W that hold one bit per node."""
    return max(1, -(-num_nodes // MASK_BITS))


@dataclass(frozen=True, slots=True, eq=False)
class DraftTree:
    """Trees that `tree_expand` grows layer by layer, nodes in creation order: depth, parent, draw.

    Args:
        tokens: [B, T + 1] int32; entry 0 is unused (-1).
        parents: [B, T + 1] int32, node index; -1 for the root.
        depths: [B, T + 1] int32; 0 for the root.
        ranks: [B, T + 1] int32, order among the siblings (draw order).
        values: [B, T + 1] float32, sort key; never larger than the parent's or an earlier
            sibling's.
        reach: [B, T + 1] float32, estimated probability that the node is accepted; 1 for the root.
        estimates: [B, T + 1] float32, raw estimate of acceptance given that the parent was and no
            earlier sibling is, before calibration.
        probs: [B, T + 1] float32, draft probability of the token.
        draft_slots: [B, T + 1] int32; s >= 1: the node's draft KV is at logical index (root
            position) + s; 0 for the root; -1: the node was not forwarded by the draft.
        proposal_rows: [B, T + 1] int32, row of the proposal store that holds the candidates the
            node's children were taken from; -1 when it was not expanded.
        num_nodes: [B] int32, root excluded.
        num_forwarded: [B] int32, draft slots handed out, root excluded (dropped nodes keep theirs).
    """

    tokens: torch.Tensor
    parents: torch.Tensor
    depths: torch.Tensor
    ranks: torch.Tensor
    values: torch.Tensor
    reach: torch.Tensor
    estimates: torch.Tensor
    probs: torch.Tensor
    draft_slots: torch.Tensor
    proposal_rows: torch.Tensor
    num_nodes: torch.Tensor
    num_forwarded: torch.Tensor

    @classmethod
    def allocate(
        cls, batch_size: int, max_nodes: int, device: str | torch.device = "cpu"
    ) -> DraftTree:
        """Empty trees: roots only, room for `max_nodes` nodes each."""
        shape = (batch_size, max_nodes + 1)
        ints = [torch.zeros(shape, dtype=torch.int32, device=device) for _ in range(6)]
        floats = [torch.zeros(shape, device=device) for _ in range(4)]
        counts = [torch.zeros(batch_size, dtype=torch.int32, device=device) for _ in range(2)]
        tree = cls(*ints[:4], *floats, *ints[4:], *counts)
        tree.clear()
        return tree

    def clear(self) -> None:
        """Resets every sequence to its root."""
        for name, value in self.root_values().items():
            getattr(self, name)[:, 0] = value
        self.num_nodes.zero_()
        self.num_forwarded.zero_()

    @staticmethod
    def root_values() -> dict[str, float]:
        """What entry 0 of each array holds."""
        ints = {"tokens": -1, "parents": -1, "depths": 0, "ranks": 0, "draft_slots": 0}
        floats = {"values": 1.0, "reach": 1.0, "estimates": 1.0, "probs": 1.0}
        return {**ints, "proposal_rows": -1, **floats}

    @property
    def batch_size(self) -> int:
        """B."""
        return self.tokens.shape[0]

    @property
    def max_nodes(self) -> int:
        """T."""
        return self.tokens.shape[1] - 1


@dataclass(frozen=True, slots=True, eq=False)
class TokenTree:
    """Selected trees in depth-first preorder: a node's first child is the next node, so the
    likeliest path is contiguous.

    Args:
        tokens: [B, T + 1] int32; entry 0 is unused (-1).
        parents: [B, T + 1] int32; -1 for the root.
        depths: [B, T + 1] int32.
        first_child: [B, T + 1] int32; -1 without children.
        next_sibling: [B, T + 1] int32 in draw order; -1 for the last.
        draft_slots: [B, T + 1] int32, as in DraftTree.
        proposal_rows: [B, T + 1] int32, as in DraftTree.
        creation_ids: [B, T + 1] int32, the node's index in the draft tree: unique within the
            sequence and step.
        estimates: [B, T + 1] float32, as in DraftTree.
        probs: [B, T + 1] float32, as in DraftTree.
        reach: [B, T + 1] float32, as in DraftTree.
        ancestor_mask: [B, T + 1, W] int64; bit i - 1: node i is the node itself or an ancestor
            below the root.
        num_nodes: [B] int32, root excluded.
    """

    tokens: torch.Tensor
    parents: torch.Tensor
    depths: torch.Tensor
    first_child: torch.Tensor
    next_sibling: torch.Tensor
    draft_slots: torch.Tensor
    proposal_rows: torch.Tensor
    creation_ids: torch.Tensor
    estimates: torch.Tensor
    probs: torch.Tensor
    reach: torch.Tensor
    ancestor_mask: torch.Tensor
    num_nodes: torch.Tensor

    @classmethod
    def allocate(
        cls, batch_size: int, max_nodes: int, device: str | torch.device = "cpu"
    ) -> TokenTree:
        """Empty trees: roots only, room for `max_nodes` nodes each, W = mask_words(max_nodes)."""
        shape = (batch_size, max_nodes + 1)
        ints = [torch.zeros(shape, dtype=torch.int32, device=device) for _ in range(8)]
        floats = [torch.zeros(shape, device=device) for _ in range(3)]
        mask = torch.zeros(*shape, mask_words(max_nodes), dtype=torch.int64, device=device)
        tree = cls(*ints, *floats, mask, torch.zeros(batch_size, dtype=torch.int32, device=device))
        for tensor in (
            tree.tokens,
            tree.parents,
            tree.first_child,
            tree.next_sibling,
            tree.proposal_rows,
        ):
            tensor[:, 0] = -1
        tree.reach[:, 0] = tree.estimates[:, 0] = tree.probs[:, 0] = 1.0
        return tree

    @property
    def batch_size(self) -> int:
        """B."""
        return self.tokens.shape[0]

    @property
    def max_nodes(self) -> int:
        """T."""
        return self.tokens.shape[1] - 1

    @property
    def mask_words(self) -> int:
        """W."""
        return self.ancestor_mask.shape[2]


def allocate_tree_scratch(
    batch_size: int,
    max_nodes: int,
    max_width: int = 1,
    num_candidates: int = 1,
    device: str | torch.device = "cpu",
) -> torch.Tensor:
    """Working memory of `tree_expand` and `tree_select`; its content means nothing between two
    ops.

    Args:
        batch_size: B.
        max_nodes: T.
        max_width: most rows per sequence in a draft layer.
        num_candidates: K.

    Returns:
        [tree_scratch_size(...)] int64.
    """
    size = tree_scratch_size(batch_size, max_nodes, max_width, num_candidates)
    return torch.zeros(size, dtype=torch.int64, device=device)


def tree_scratch_size(
    batch_size: int, max_nodes: int, max_width: int = 1, num_candidates: int = 1
) -> int:
    """Elements of the int64 scratch tensor: two key arrays, 24-byte candidates, and int32 maps; on
    a GPU, the keys of all sequences and what its launches tell one another about each, and every
    sequence's own candidates, keys and map, which its shared memory may be too small for."""
    candidates = max_width * num_candidates
    keys = max(batch_size * max_nodes, max_nodes + candidates)
    serial = 2 * keys + 3 * candidates + 2 * (max_nodes + 1)
    told = max_nodes + (max_nodes + 1) // 2 + max_width + 2
    own = max_nodes + 4 * candidates + (max_nodes + max_width + 2) // 2
    return max(serial, batch_size * (told + own))


def expect_draft_tree(op: str, name: str, tree: object) -> DraftTree:
    """Checks every tensor of a DraftTree argument at the door and returns it."""
    expect(
        op, isinstance(tree, DraftTree), f"{name}: expected a DraftTree, got {type(tree).__name__}"
    )
    assert isinstance(tree, DraftTree)
    _expect_fields(op, name, tree)
    return tree


def expect_token_tree(op: str, name: str, tree: object) -> TokenTree:
    """Checks every tensor of a TokenTree argument at the door and returns it."""
    expect(
        op, isinstance(tree, TokenTree), f"{name}: expected a TokenTree, got {type(tree).__name__}"
    )
    assert isinstance(tree, TokenTree)
    _expect_fields(op, name, tree)
    return tree


def _expect_fields(op: str, name: str, tree: DraftTree | TokenTree) -> None:
    batch, nodes = expect_tensor(op, f"{name}.tokens", tree.tokens, torch.int32, (None, None)).shape
    expect(
        op, nodes >= 1, f"{name}.tokens: expected room for the root, got {list(tree.tokens.shape)}"
    )
    for field in fields(tree):
        tensor = getattr(tree, field.name)
        label = f"{name}.{field.name}"
        if field.name in ("num_nodes", "num_forwarded"):
            expect_tensor(op, label, tensor, torch.int32, (batch,))
        elif field.name == "ancestor_mask":
            expect_tensor(op, label, tensor, torch.int64, (batch, nodes, mask_words(nodes - 1)))
        else:
            is_float = field.name in ("values", "reach", "estimates", "probs")
            expect_tensor(
                op, label, tensor, torch.float32 if is_float else torch.int32, (batch, nodes)
            )
