"""Batches of random token trees for attention: the same trees as a row batch, and as dense tensors
for the attention of others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from sdengine.kernels.row_batch import RowBatch
from sdengine.kernels.token_tree import mask_words
from sdengine.kernels.triton.cases import moved
from sdengine.kernels.triton.tree_attention import split_scratch_floats

BLOCK_SIZE = 64


@dataclass(frozen=True, slots=True)
class AttentionCase:
    """B sequences of `context` keys, the root among them, each with a tree of `nodes` nodes.

    Args:
        batch, nodes, context: B, T, n; a sequence has T + 1 rows, the root's and the nodes'.
        heads, kv_heads, dim: H, H_kv, D.
    """

    batch: int
    nodes: int
    context: int
    heads: int = 32
    kv_heads: int = 8
    dim: int = 128

    @property
    def label(self) -> str:
        return (
            f"B={self.batch} T={self.nodes} n={self.context} "
            f"H={self.heads}/{self.kv_heads} D={self.dim}"
        )

    @property
    def num_rows(self) -> int:
        return self.batch * (self.nodes + 1)

    @property
    def num_keys(self) -> int:
        """Of one sequence."""
        return self.context + self.nodes

    @property
    def cache_bytes(self) -> int:
        """Keys and values of all sequences in bfloat16, each read once."""
        return self.batch * self.num_keys * 4 * self.kv_heads * self.dim

    @property
    def bytes_moved(self) -> int:
        """Cache, queries and results."""
        return self.cache_bytes + self.num_rows * self.heads * self.dim * 8


def ancestors(nodes: int, generator: torch.Generator) -> torch.Tensor:
    """[T, T] bool: row i sees node j, itself or an ancestor below the root, in a random tree."""
    seen = torch.eye(nodes, dtype=torch.bool)
    for node in range(1, nodes):
        parent = int(torch.randint(-1, node, (1,), generator=generator))
        if parent >= 0:
            seen[node] |= seen[parent]
    return seen


def packed(seen: torch.Tensor, words: int) -> torch.Tensor:
    """[T, W] int64 of a [T, T] bool mask."""
    nodes = seen.shape[0]
    bits = torch.zeros(nodes, words * 64, dtype=torch.int64)
    bits[:, :nodes] = seen
    places = torch.arange(64, dtype=torch.int64)
    return (bits.view(nodes, words, 64) << places).sum(-1)


@dataclass(frozen=True, slots=True)
class AttentionInputs:
    """One case on the device.

    Args:
        args: of tree_attention.
        query, keys, values: [B, H or H_kv, T + 1 or n + T, D] bfloat16, the same numbers.
        visible: [B, T + 1, n + T] bool, which key a row sees.
        operations: arithmetic of the products, over visible keys.
    """

    args: dict[str, Any]
    query: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    visible: torch.Tensor
    operations: int


def make_inputs(case: AttentionCase, device: str | torch.device = "cuda") -> AttentionInputs:
    """Random numbers in both layouts."""
    generator = torch.Generator().manual_seed(case.nodes + case.context)
    trees = [ancestors(case.nodes, generator) for _ in range(case.batch)]
    rows = case.nodes + 1
    visible = torch.zeros(case.batch, rows, case.num_keys, dtype=torch.bool)
    visible[:, :, : case.context] = True
    for b, seen in enumerate(trees):
        visible[b, 1:, case.context :] = seen
    width = (case.heads + 2 * case.kv_heads) * case.dim
    qkv = torch.randn(case.num_rows, width, device=device)
    blocks = -(-case.num_keys // BLOCK_SIZE)
    cache = torch.randn(
        case.batch * blocks, 2, case.kv_heads, BLOCK_SIZE, case.dim, device=device
    ).bfloat16()
    tables = torch.randperm(case.batch * blocks, generator=generator).int()
    tables = tables.view(case.batch, blocks).to(device)
    size = split_scratch_floats(case.num_rows, case.heads, case.dim, blocks * BLOCK_SIZE)
    args = {
        "qkv": qkv,
        "kv_cache": cache,
        "block_tables": tables,
        "batch": moved(row_batch(case, trees), device),
        "out": torch.empty(case.num_rows, case.heads * case.dim, device=device),
        "scratch": torch.empty(size, device=device),
        "num_heads": case.heads,
        "num_kv_heads": case.kv_heads,
        "head_dim": case.dim,
        "scale": case.dim**-0.5,
    }
    dense = cache[tables.long()]  # [B, blocks, 2, H_kv, block_size, D]
    dense = dense.permute(2, 0, 3, 1, 4, 5).reshape(
        2, case.batch, case.kv_heads, blocks * BLOCK_SIZE, case.dim
    )[:, :, :, : case.num_keys]
    query = qkv[:, : case.heads * case.dim].view(case.batch, rows, case.heads, case.dim)
    return AttentionInputs(
        args,
        query.transpose(1, 2).bfloat16().contiguous(),
        dense[0].contiguous(),
        dense[1].contiguous(),
        visible.to(device),
        4 * case.heads * case.dim * int(visible.sum()),
    )


def row_batch(case: AttentionCase, trees: list[torch.Tensor]) -> RowBatch:
    """The rows of all sequences."""
    rows, words = case.nodes + 1, mask_words(max(case.nodes, 1))
    batch = RowBatch.allocate(case.batch, case.num_rows, words)
    batch.visible_lens.fill_(case.context)
    batch.positions.view(case.batch, rows)[:, 0] = case.context - 1
    for b, seen in enumerate(trees):
        batch.positions.view(case.batch, rows)[b, 1:] = case.context - 1 + seen.sum(1).int()
        batch.ancestor_mask.view(case.batch, rows, words)[b, 1:] = packed(seen, words)
    batch.row_seq.copy_(torch.arange(case.batch).repeat_interleave(rows))
    batch.cu_rows.copy_(torch.arange(case.batch + 1) * rows)
    batch.tree_starts.fill_(case.context)
    batch.num_rows.fill_(case.num_rows)
    return batch
