"""Row batch: the packed rows of one forward pass, as a struct of tensors.

A prefill chunk is a chain (visible_lens = position + 1, mask 0), plain decoding a chain of one, a
tree a chain that ends in the root plus masked nodes. There is no other kind of row.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch

from sdengine.kernels.spec import expect, expect_tensor

ROW_FIELDS = 7
"""Fields of RowBatch with an element per row, which come first."""


@dataclass(frozen=True, slots=True, eq=False)
class RowBatch:
    """Packed rows, grouped by sequence; rows past `num_rows` are meaningless.

    Args:
        tokens: [N] int32.
        positions: [N] int32, RoPE position.
        slots: [N] int32, physical KV slot the row writes: block * block_size + offset.
        row_seq: [N] int32, sequence index.
        row_node: [N] int32, node of the sequence's tree that the row holds (DraftTree index in a
            draft layer, TokenTree index in a target batch); 0 for chain rows, the root included.
        visible_lens: [N] int32; keys with logical index < visible_lens are visible without a mask.
        ancestor_mask: [N, W] int64; bit j: tree key at logical index tree_starts[b] + j is visible;
            0 for chain rows.
        cu_rows: [B + 1] int32; rows of sequence b are cu_rows[b] : cu_rows[b + 1].
        tree_starts: [B] int32, logical KV index of tree key 0 = root position + 1.
        num_rows: [1] int32.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    row_seq: torch.Tensor
    row_node: torch.Tensor
    visible_lens: torch.Tensor
    ancestor_mask: torch.Tensor
    cu_rows: torch.Tensor
    tree_starts: torch.Tensor
    num_rows: torch.Tensor

    @classmethod
    def allocate(
        cls, batch_size: int, max_rows: int, mask_words: int, device: str | torch.device = "cpu"
    ) -> RowBatch:
        """An empty batch with room for `max_rows` rows of `batch_size` sequences."""
        rows = [torch.zeros(max_rows, dtype=torch.int32, device=device) for _ in range(6)]
        mask = torch.zeros(max_rows, mask_words, dtype=torch.int64, device=device)
        sizes = (batch_size + 1, batch_size, 1)
        return cls(*rows, mask, *(torch.zeros(n, dtype=torch.int32, device=device) for n in sizes))

    def first(self, max_rows: int) -> RowBatch:
        """The same batch with room for at most `max_rows` rows; shares all memory."""
        rows = {f.name: getattr(self, f.name)[:max_rows] for f in fields(self)[:ROW_FIELDS]}
        return replace(self, **rows)

    @property
    def max_rows(self) -> int:
        """N."""
        return self.tokens.shape[0]

    @property
    def mask_words(self) -> int:
        """W."""
        return self.ancestor_mask.shape[1]


def expect_row_batch(op: str, name: str, rows: object, batch_size: int | None = None) -> RowBatch:
    """Checks every tensor of a RowBatch argument at the door and returns it."""
    expect(
        op, isinstance(rows, RowBatch), f"{name}: expected a RowBatch, got {type(rows).__name__}"
    )
    assert isinstance(rows, RowBatch)
    (n,) = expect_tensor(op, f"{name}.tokens", rows.tokens, torch.int32, (None,)).shape
    (b,) = expect_tensor(
        op, f"{name}.tree_starts", rows.tree_starts, torch.int32, (batch_size,)
    ).shape
    for field in ("positions", "slots", "row_seq", "row_node", "visible_lens"):
        expect_tensor(op, f"{name}.{field}", getattr(rows, field), torch.int32, (n,))
    expect_tensor(op, f"{name}.ancestor_mask", rows.ancestor_mask, torch.int64, (n, None))
    expect_tensor(op, f"{name}.cu_rows", rows.cu_rows, torch.int32, (b + 1,))
    expect_tensor(op, f"{name}.num_rows", rows.num_rows, torch.int32, (1,))
    return rows
