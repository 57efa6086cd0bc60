"""tree_attention: attention of packed rows over a paged KV cache; chains and trees alike.

    logical index    0 1 2 3 4 5 | 6 7 8       root at 5, tree_starts[b] = 6
    root             x x x x x x |             visible_lens = 6, mask 0
    node 1 (6)       x x x x x x | x           visible_lens = 6, mask 0b0001
    node 2 (7)       x x x x x x |   x         visible_lens = 6, mask 0b0010, sibling of 1
    node 3 (8)       x x x x x x | x   x       visible_lens = 6, mask 0b0101, child of 1

A row sees a path of keys: the prefix, then its ancestors in the order of the mask bits, then
itself. The result depends on that path alone, bit for bit: not on where the keys lie, nor on other
rows, sequences or threads. So a tree row gives exactly what plain decoding gives for its path.

Sums are float32. A CPU with dot products of bfloat16 and a GPU's tensor cores take the operands of
a product in 16 bits where the cache has 16: queries and probabilities are rounded then.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch

from sdengine.kernels.backends import triton_kernel
from sdengine.kernels.cpu_library import load_cpu
from sdengine.kernels.number_format import NUMBER_FORMATS, format_code, short_name
from sdengine.kernels.row_batch import RowBatch, expect_row_batch
from sdengine.kernels.spec import (
    Case,
    Op,
    address,
    expect,
    expect_float32,
    expect_tensor,
)

NAME = "tree_attention"
MAX_MASK_WORDS = 16  # 1024 nodes of a tree; `tree_expand` forwards no more in a draft's layers
MAX_HEAD_DIM = 256
HEAD_DIM_STEP = 8
MAX_PLACES = 1 << 30
SPLIT = 128  # positions of one partial result (kSplit)
# The same on a device: places of a split, up to so many places. Fixed, as sums must not depend on
# the batch; short at first, so that a short context has programs enough, then longer, so that a
# long one has few partial results.
DEVICE_SPLITS = ((128, 2048), (512, 16384), (1024, MAX_PLACES))
DEVICE_SCRATCH_BYTES = 256 << 20
SCRATCH_BYTES = 2 << 30  # 64 threads over 131072 tokens would take 4.4 GiB
QUERIES_PER_TILE = 128  # (row, head) pairs that share a pass over the keys (kMaxQueries)


def attention_scratch(
    num_rows: int,
    num_heads: int,
    head_dim: int,
    max_context: int,
    num_threads: int | None = None,
) -> torch.Tensor:
    """A `scratch` argument with which no launch has to leave a thread idle, or one of
    `SCRATCH_BYTES`, with which some of very many threads are.

    Args:
        num_rows: N, capacity of the row batch.
        num_heads, head_dim: H, D.
        max_context: Longest path of keys a row can see.
        num_threads: Workers of the pool; None takes the number of cores.

    Returns:
        [any] float32, not initialised.
    """
    threads = num_threads or os.cpu_count() or 1
    queries = min(QUERIES_PER_TILE, num_rows * num_heads)
    splits = (max_context + SPLIT - 1) // SPLIT
    floats = (threads - 1) * splits * queries * ((head_dim + 15) // 16 * 16 + 16)
    return torch.empty(min(floats, SCRATCH_BYTES // 4))


def device_splits(max_context: int) -> int:
    """Splits of a path of `max_context` keys on a device."""
    splits = begin = 0
    for size, end in DEVICE_SPLITS:
        splits += max(0, -(-(min(max_context, end) - begin) // size))
        begin = end
    return splits


def split_scratch_floats(num_rows: int, num_heads: int, head_dim: int, max_context: int) -> int:
    """Elements of `scratch` with which a device does `num_rows` rows in one pass."""
    splits = device_splits(max_context)
    return num_rows * num_heads * splits * (head_dim + 2)


def device_scratch_floats(num_rows: int, num_heads: int, head_dim: int, max_context: int) -> int:
    """Elements of an engine's `scratch` on a device: more rows than fit take several passes."""
    one_row = split_scratch_floats(1, num_heads, head_dim, max_context)
    return one_row * max(1, min(num_rows, DEVICE_SCRATCH_BYTES // (4 * one_row)))


def check(
    *,
    qkv: torch.Tensor,
    kv_cache: torch.Tensor,
    block_tables: torch.Tensor,
    batch: RowBatch,
    out: torch.Tensor,
    scratch: torch.Tensor,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    scale: float,
    window: int = 0,
    max_keys: int | None = None,
    max_seqs: int | None = None,
) -> None:
    """Contract.

    Args:
        qkv: [N, (H + 2 H_kv) D] float32; only the q part is read.
        kv_cache: [P, 2, H_kv, block_size, D] float32, bfloat16 or float16, already holding
            the keys and values of the rows themselves. block_size and D are multiples of 8, D at
            most 256.
        block_tables: [B, P_max] int32.
        batch: The rows. The prefix of a row is logical indices [0, visible_lens); the set bits of
            its ancestor_mask, W <= 16, are its path below the root in order, itself included.
        out: [N, H D] float32 or bfloat16, on a GPU float16, too, written; a row that sees no key
            gets zeros.
        scratch: [any] float32, see `attention_scratch`; with less, fewer threads share the work and
            the result is the same. On a GPU see `split_scratch_floats`: with less, rows are done in
            more passes; less than one row's part is refused.
        num_heads, num_kv_heads, head_dim: H, H_kv, D; H / H_kv is an integer of at most 128.
        scale: Factor on q k^T.
        window: Sliding window in tokens, the row itself included; 0 is none. Prefix keys at logical
            index <= position - window are hidden, and all but the last `window` bits of the mask
            (which may have been cleared already).
        max_keys: Promise: no row sees a longer prefix (visible_lens; what the mask shows is not
            counted). A GPU's grid is made for so many, and leaves out what lies beyond, so a
            program must be replaced before a sequence outgrows it. No bit depends on it, nor does
            the size of `scratch`. None: as many as a block table addresses.
        max_seqs: Promise: no more sequences have rows; a GPU's grid again. None: B.
    """
    expect(
        NAME,
        head_dim % HEAD_DIM_STEP == 0 and 0 < head_dim <= MAX_HEAD_DIM,
        f"head_dim: expected a multiple of {HEAD_DIM_STEP} up to {MAX_HEAD_DIM}, got {head_dim}",
    )
    expect(
        NAME,
        num_heads > 0 < num_kv_heads
        and num_heads % num_kv_heads == 0
        and num_heads // num_kv_heads <= QUERIES_PER_TILE,
        f"num_heads: expected a positive multiple of {num_kv_heads}, at most "
        f"{QUERIES_PER_TILE} per kv head, got {num_heads}",
    )
    width = (num_heads + 2 * num_kv_heads) * head_dim
    (rows, _) = expect_tensor(NAME, "qkv", qkv, torch.float32, (None, width)).shape
    cache_shape = (None, 2, num_kv_heads, None, head_dim)
    expect_tensor(NAME, "kv_cache", kv_cache, NUMBER_FORMATS, cache_shape)
    block_size = kv_cache.shape[3]
    is_whole = block_size > 0 and block_size % 8 == 0
    expect(NAME, is_whole, f"block_size: expected a multiple of 8, got {block_size}")
    expect_tensor(NAME, "block_tables", block_tables, torch.int32, (None, None))
    expect(NAME, block_tables.shape[1] > 0, "block_tables: expected room for a block, got none")
    expect_row_batch(NAME, "batch", batch, block_tables.shape[0])
    expect_tensor(NAME, "batch.tokens", batch.tokens, torch.int32, (rows,))
    words = batch.mask_words
    expect(NAME, words <= MAX_MASK_WORDS, f"ancestor_mask: expected W <= 16, got {words}")
    expect_tensor(NAME, "out", out, NUMBER_FORMATS, (rows, num_heads * head_dim))
    expect_tensor(NAME, "scratch", scratch, torch.float32, (None,))
    expect(NAME, window >= 0, f"window: expected 0 or more, got {window}")
    for limit, value in (("max_keys", max_keys), ("max_seqs", max_seqs)):
        is_some = value is None or value > 0
        expect(NAME, is_some, f"{limit}: expected None or at least 1, got {value}")


def visible_path(batch: RowBatch, row: int, sequence: int, window: int) -> torch.Tensor:
    """Logical indices of the keys a row sees, in the order of its path."""
    first = max(0, int(batch.positions[row]) - window + 1) if window else 0
    prefix = torch.arange(first, max(first, int(batch.visible_lens[row])))
    words = [int(word) for word in batch.ancestor_mask[row]]
    bits = [w * 64 + j for w, word in enumerate(words) for j in range(64) if word >> j & 1]
    bits = bits[-window:]
    return torch.cat([prefix, int(batch.tree_starts[sequence]) + torch.tensor(bits).long()])


def reference(
    *,
    qkv: torch.Tensor,
    kv_cache: torch.Tensor,
    block_tables: torch.Tensor,
    batch: RowBatch,
    out: torch.Tensor,
    scratch: torch.Tensor,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    scale: float,
    window: int = 0,
    max_keys: int | None = None,
    max_seqs: int | None = None,
) -> None:
    """Row by row: gather the path, softmax(q K^T) V, in the dtype of `qkv` (float64 works too)."""
    block_size = kv_cache.shape[3]
    for row in range(int(batch.num_rows)):
        b = int(torch.searchsorted(batch.cu_rows, row, right=True)) - 1
        path = visible_path(batch, row, b, window)
        blocks = block_tables[b].long()[path // block_size]
        keys, values = kv_cache[blocks, :, :, path % block_size].to(qkv.dtype).unbind(1)
        query = qkv[row, : num_heads * head_dim].view(num_kv_heads, -1, head_dim)
        scores = torch.einsum("hgd,shd->hgs", query, keys) * scale
        out[row] = torch.einsum("hgs,shd->hgd", scores.softmax(-1), values).reshape(-1)


def cpu(
    native: Any,
    *,
    qkv: torch.Tensor,
    kv_cache: torch.Tensor,
    block_tables: torch.Tensor,
    batch: RowBatch,
    out: torch.Tensor,
    scratch: torch.Tensor,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    scale: float,
    window: int = 0,
    max_keys: int | None = None,
    max_seqs: int | None = None,
) -> None:
    """Appends the native launch."""
    if out.dtype != torch.bfloat16:
        expect_float32(NAME, out=out)
    load_cpu().tree_attention(
        native,
        address(qkv),
        address(kv_cache),
        format_code(kv_cache.dtype),
        address(block_tables),
        block_tables.shape[1],
        address(batch.positions),
        address(batch.visible_lens),
        address(batch.ancestor_mask),
        batch.mask_words,
        address(batch.tree_starts),
        address(batch.cu_rows),
        address(batch.num_rows),
        address(out),
        format_code(out.dtype),
        address(scratch),
        scratch.numel(),
        num_heads,
        num_kv_heads,
        head_dim,
        kv_cache.shape[3],
        window,
        scale,
    )


def bench_case(
    rows: int, context: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype
) -> Case:
    """`rows` chain rows of one sequence that end at `context` keys, in blocks of 64."""
    blocks = (context + 63) // 64
    visible = torch.arange(context - rows + 1, context + 1, dtype=torch.int32)
    batch = RowBatch.allocate(1, rows, 1)
    batch.visible_lens.copy_(visible)
    batch.positions.copy_(visible - 1)
    batch.cu_rows[1] = batch.num_rows[0] = rows
    args = {
        "qkv": torch.randn(rows, (heads + 2 * kv_heads) * dim),
        "kv_cache": torch.randn(blocks, 2, kv_heads, 64, dim).to(dtype),
        "block_tables": torch.randperm(blocks).int().view(1, blocks),
        "batch": batch,
        "out": torch.empty(rows, heads * dim),
        "scratch": attention_scratch(rows, heads, dim, context),
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": dim,
        "scale": dim**-0.5,
    }
    seen = int(visible.sum())
    moved = context * 2 * kv_heads * dim * args["kv_cache"].element_size()
    label = f"N={rows} S={context} H={heads} H_kv={kv_heads} D={dim} {short_name(dtype)}"
    return Case(label, args, moved + rows * heads * dim * 8, seen * heads * dim * 4)


def bench_cases() -> Iterator[Case]:
    """A small draft model, then a 1B shape: decoding, a tree's worth of rows, a prefill chunk."""
    for rows in (1, 16):
        yield bench_case(rows, 256, 4, 2, 64, torch.float32)
    for dtype in (torch.bfloat16, torch.float32):
        for rows, context in ((1, 512), (1, 2048), (16, 2048), (64, 2048), (512, 2048)):
            yield bench_case(rows, context, 32, 4, 64, dtype)
    yield bench_case(1, 2048, 32, 32, 128, torch.bfloat16)


OP = Op(NAME, check, reference, ("out",), cpu, triton_kernel(NAME), bench_cases)
