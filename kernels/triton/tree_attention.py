"""tree_attention in Triton; contract: `kernels/tree_attention.py`.

A row sees a path of keys; the key at place i of the path is multiplied in tile i / TILE, column
i % TILE, and tiles are added up in order within a split of SPLIT places, splits in order after one
another. Where the keys lie, and whether they are prefix or tree, does not enter: a tree row gets
the bits of plain decoding. Two launches do the work:

1. `shared_splits`, grid (row tiles, H_kv, splits): the tiles that *every* row of a row tile sees
   whole, read once for all of them. No mask code, and no row multiplies a key it does not see.
2. `finish_rows`, grid (N, H_kv): per row, continues each split with the tiles that are the row's
   own (the end of its prefix, its ancestors, the start of its window), gathered in the order of
   its path; adds up the splits; writes the result.

Both hold the H / H_kv query heads of a kv head as rows of one product, and rows are its N axis
(keys x rows, then dims x rows). So the instruction that computes an element is the same for every
width of a row tile, and the width may follow the shape of the batch.

    scratch   [rows of a pass, H, splits, D] accumulators, then [.., 2] maximum (base 2) and sum
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from sdengine.kernels.row_batch import RowBatch
from sdengine.kernels.spec import expect
from sdengine.kernels.tree_attention import DEVICE_SPLIT, split_scratch_floats
from sdengine.kernels.triton.launch import Launch, compute_dtype, nearest

NAME = "tree_attention"
LOG2_E = 1.4426950408889634
TILE = 64  # keys of one product
SPLIT = DEVICE_SPLIT  # keys of one partial result: fixed, as sums must not depend on the batch
MIN_ROWS = 16  # the narrowest that Triton 3.6 gives the warp-group instruction of wider tiles

_EMPTY = tl.constexpr(-1e30)  # not -inf: exp2(-inf + inf) is NaN
_NONE = tl.constexpr(2**31 - 1)


@dataclass(frozen=True, slots=True)
class Config:
    """Tuning of `shared_splits`: widest row tile, warps and pipeline stages."""

    max_rows: int
    num_warps: int
    num_stages: int


# bfloat16 by architecture; float32 has no tensor cores here and is for exactness, not for speed.
BF16_CONFIGS = {
    80: Config(64, 4, 2),
    90: Config(64, 4, 3),
    100: Config(64, 8, 3),  # 4 warps spill: a thread then holds half a row of tensor memory
    120: Config(64, 4, 2),
}
F32_CONFIG = Config(16, 8, 1)


@triton.jit
def _tile_rows(cu_rows, first_row, last_row, num_seqs, TOKENS: tl.constexpr, SEQS: tl.constexpr):
    """Sequence, first row and end row of row tile `program_id(0)`; SEQS for a tile too many."""
    at = tl.arange(0, SEQS)
    begin = tl.maximum(tl.load(cu_rows + at, mask=at < num_seqs, other=0), first_row)
    end = tl.load(cu_rows + 1 + at, mask=at < num_seqs, other=_NONE)
    last_seq = tl.min(tl.where(end >= last_row, at, SEQS), 0)  # what follows may hold anything
    end = tl.minimum(end, last_row)
    tiles = tl.where(at <= last_seq, tl.cdiv(tl.maximum(end - begin, 0), TOKENS), 0)
    tile = tl.program_id(0)
    sequence = tl.min(tl.where(tl.cumsum(tiles, 0) > tile, at, SEQS), 0)
    tile -= tl.sum(tl.where(at < sequence, tiles, 0), 0)
    row = tl.sum(tl.where(at == sequence, begin, 0), 0) + tile * TOKENS
    stop = tl.sum(tl.where(at == sequence, end, 0), 0)
    return sequence, row, tl.minimum(row + TOKENS, stop)


@triton.jit
def _shared_keys(
    positions,
    visible_lens,
    row,
    end,
    WINDOW: tl.constexpr,
    TOKENS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Keys [low, high) that all rows in [row, end) see without a mask; high is a tile border."""
    at = row + tl.arange(0, TOKENS)
    visible = tl.load(visible_lens + at, mask=at < end, other=_NONE)
    high = tl.min(visible, 0) // TILE * TILE
    low = high * 0
    if WINDOW > 0:
        position = tl.load(positions + at, mask=at < end, other=0)
        low = tl.maximum(tl.max(position, 0) - WINDOW + 1, 0)
    return low, high


@triton.jit
def _accumulate(scores, values, state_max, state_sum, acc, scale, CD: tl.constexpr):
    """Adds a tile of keys to the online softmax of its rows; a hidden key has score -inf."""
    new_max = tl.maximum(state_max, tl.max(scores, 0) * scale)
    weights = tl.exp2(tl.fma(scores, scale, -new_max[None, :]))
    shrink = tl.exp2(state_max - new_max)
    state_sum = state_sum * shrink + tl.sum(weights, 0)
    acc = tl.dot(tl.trans(values), weights.to(CD), acc * shrink[None, :], input_precision="ieee")
    return new_max, state_sum, acc


@triton.jit
def _load_queries(qkv, row, head, dim, is_live, width, HEAD_DIM: tl.constexpr, CD: tl.constexpr):
    """[dims, rows], zero where a row is not live."""
    at = row.to(tl.int64) * width + head * HEAD_DIM
    mask = is_live[None, :] & (dim < HEAD_DIM)[:, None]
    return tl.load(qkv + at[None, :] + dim[:, None], mask=mask, other=0.0).to(CD)


@triton.jit
def _load_tile(
    cache,
    block,
    key,
    dim,
    is_seen,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_LANES: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """Keys and values [keys, dims] of one kv head; `cache` is its plane of block 0. Zero where
    `is_seen` is False; None: all keys are seen, and whole rows are read without a mask."""
    plane: tl.constexpr = BLOCK_SIZE * HEAD_DIM
    line = block.to(tl.int64) * (2 * NUM_KV_HEADS * plane) + key % BLOCK_SIZE * HEAD_DIM
    at = cache + line[:, None] + dim[None, :]
    at_value = at + NUM_KV_HEADS * plane
    mask = (dim < HEAD_DIM)[None, :]
    if is_seen is not None:
        mask &= is_seen[:, None]
    elif HEAD_DIM == DIM_LANES:
        return tl.load(at), tl.load(at_value)
    return tl.load(at, mask=mask, other=0.0), tl.load(at_value, mask=mask, other=0.0)


@triton.jit
def shared_splits_kernel(
    qkv,
    kv_cache,
    block_tables,
    positions,
    visible_lens,
    cu_rows,
    num_rows,
    partial,
    stats,
    first_row,
    pass_rows,
    num_seqs,
    max_blocks,
    num_splits,
    scale,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_LANES: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    TILE: tl.constexpr,
    SPLIT: tl.constexpr,
    ROWS: tl.constexpr,
    TOKEN_LANES: tl.constexpr,
    SEQS: tl.constexpr,
    CD: tl.constexpr,
):
    TOKENS: tl.constexpr = ROWS // GROUP
    last_row = tl.minimum(tl.load(num_rows), first_row + pass_rows)
    sequence, row, end = _tile_rows(cu_rows, first_row, last_row, num_seqs, TOKENS, SEQS)
    if sequence == SEQS:
        return
    low, high = _shared_keys(positions, visible_lens, row, end, WINDOW, TOKEN_LANES, TILE)
    split = tl.program_id(2)
    begin = split * SPLIT
    stop = tl.minimum(begin + SPLIT, high)
    if (begin < low) | (begin >= stop):
        return

    kv_head = tl.program_id(1)
    lane = tl.arange(0, ROWS)
    dim = tl.arange(0, DIM_LANES)
    rows = row + lane // GROUP
    is_live = (lane < TOKENS * GROUP) & (rows < end)
    head = kv_head * GROUP + lane % GROUP
    width = (NUM_KV_HEADS * (GROUP + 2)) * HEAD_DIM
    q = _load_queries(qkv, rows, head, dim, is_live, width, HEAD_DIM, CD)

    state_max = tl.full([ROWS], _EMPTY, tl.float32)
    state_sum = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([DIM_LANES, ROWS], tl.float32)
    table = block_tables + sequence * max_blocks
    cache = kv_cache + kv_head * (BLOCK_SIZE * HEAD_DIM)
    for start in tl.range(begin, stop, TILE):
        key = start + tl.arange(0, TILE)
        if BLOCK_SIZE % TILE == 0:  # one block holds the tile
            block = tl.load(table + start // BLOCK_SIZE) + tl.zeros_like(key)
        else:
            block = tl.load(table + key // BLOCK_SIZE)
        keys, values = _load_tile(
            cache, block, key, dim, None, NUM_KV_HEADS, HEAD_DIM, DIM_LANES, BLOCK_SIZE
        )
        scores = tl.dot(keys.to(CD), q, input_precision="ieee")
        state_max, state_sum, acc = _accumulate(
            scores, values.to(CD), state_max, state_sum, acc, scale, CD
        )

    part = ((rows - first_row).to(tl.int64) * (NUM_KV_HEADS * GROUP) + head) * num_splits + split
    mask = is_live[None, :] & (dim < HEAD_DIM)[:, None]
    tl.store(partial + part[None, :] * HEAD_DIM + dim[:, None], acc, mask=mask)
    tl.store(stats + 2 * part, state_max, mask=is_live)
    tl.store(stats + 2 * part + 1, state_sum, mask=is_live)


@triton.jit
def _count_bits(words, WORDS: tl.constexpr):
    bit = tl.arange(0, 64)
    count = tl.sum(bit * 0, 0)
    for word in range(WORDS):
        half = tl.load(words + 2 * word + bit // 32)
        count += tl.sum((half >> (bit % 32)) & 1, 0)
    return count


@triton.jit
def _nth_set_bit(words, ordinal, WORDS: tl.constexpr):
    """Index of the ordinal-th set bit, for a vector of ordinals."""
    bit = tl.arange(0, 64)
    found = ordinal * 0
    seen = tl.sum(bit * 0, 0)
    for word in range(WORDS):
        half = tl.load(words + 2 * word + bit // 32)
        is_set = (half >> (bit % 32)) & 1
        order = tl.where(is_set != 0, seen + tl.cumsum(is_set, 0) - 1, -1)
        hit = order[None, :] == ordinal[:, None]
        found += tl.sum(tl.where(hit, 64 * word + bit[None, :], 0), 1)
        seen += tl.sum(is_set, 0)
    return found


@triton.jit
def finish_rows_kernel(
    qkv,
    kv_cache,
    block_tables,
    positions,
    visible_lens,
    ancestor_halves,
    cu_rows,
    tree_starts,
    num_rows,
    out,
    partial,
    stats,
    first_row,
    pass_rows,
    num_seqs,
    max_blocks,
    num_splits,
    scale,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_LANES: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    WORDS: tl.constexpr,
    TILE: tl.constexpr,
    SPLIT: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    TOKEN_LANES: tl.constexpr,
    SEQS: tl.constexpr,
    CD: tl.constexpr,
):
    row = first_row + tl.program_id(0)
    last_row = tl.minimum(tl.load(num_rows), first_row + pass_rows)
    if row >= last_row:
        return
    seqs = tl.arange(0, SEQS)
    ends = tl.load(cu_rows + 1 + seqs, mask=seqs < num_seqs, other=_NONE)
    sequence = tl.min(tl.where(ends > row, seqs, SEQS), 0)

    # The row tile that this row was in, and what its rows share.
    tile_row = tl.maximum(tl.load(cu_rows + sequence), first_row)
    tile_row += (row - tile_row) // TOKENS * TOKENS
    tile_end = tl.minimum(tl.load(cu_rows + sequence + 1), last_row)
    tile_end = tl.minimum(tile_row + TOKENS, tile_end)
    low, high = _shared_keys(positions, visible_lens, tile_row, tile_end, WINDOW, TOKEN_LANES, TILE)

    # The path: keys [first, prefix), then the set bits at places from tree_at on. A window hides
    # places before `first`, whether or not the bits there have been cleared.
    words = ancestor_halves + row.to(tl.int64) * (2 * WORDS)
    prefix = tl.load(visible_lens + row)
    num_ancestors = _count_bits(words, WORDS)
    first = prefix * 0
    tree_at = prefix
    if WINDOW > 0:
        position = tl.load(positions + row)
        first = tl.maximum(position - WINDOW + 1, 0)
        tree_at = tl.maximum(prefix, position + 1 - num_ancestors)
    length = tl.where(num_ancestors > 0, tree_at + num_ancestors, prefix)

    kv_head = tl.program_id(1)
    lane = tl.arange(0, ROWS)
    dim = tl.arange(0, DIM_LANES)
    is_head = lane < GROUP
    head = kv_head * GROUP + lane
    width = (NUM_KV_HEADS * (GROUP + 2)) * HEAD_DIM
    q = _load_queries(qkv, row + lane * 0, head, dim, is_head, width, HEAD_DIM, CD)

    part = ((row - first_row).to(tl.int64) * (NUM_KV_HEADS * GROUP) + head) * num_splits
    is_stored = is_head[None, :] & (dim < HEAD_DIM)[:, None]
    table = block_tables + sequence * max_blocks
    tree_start = tl.load(tree_starts + sequence)
    cache = kv_cache + kv_head * (BLOCK_SIZE * HEAD_DIM)

    total_max = tl.full([ROWS], _EMPTY, tl.float32)
    total_sum = tl.zeros([ROWS], tl.float32)
    total = tl.zeros([DIM_LANES, ROWS], tl.float32)
    for split in range(first // SPLIT, tl.cdiv(length, SPLIT)):
        begin = split * SPLIT
        shared = tl.where(begin < low, begin, tl.maximum(begin, tl.minimum(begin + SPLIT, high)))
        is_shared = is_head & (lane * 0 + shared > begin)
        state_max = tl.load(stats + 2 * (part + split), mask=is_shared, other=_EMPTY)
        state_sum = tl.load(stats + 2 * (part + split) + 1, mask=is_shared, other=0.0)
        at = partial + (part + split)[None, :] * HEAD_DIM + dim[:, None]
        acc = tl.load(at, mask=is_stored & is_shared[None, :], other=0.0)
        start_own = tl.maximum(shared, first // TILE * TILE)
        for start in tl.range(start_own, tl.minimum(begin + SPLIT, length), TILE, num_stages=1):
            place = start + tl.arange(0, TILE)
            is_seen = (place >= first) & (place < length)
            key = place
            if start + TILE > tree_at:
                node = _nth_set_bit(words, place - tree_at, WORDS)
                key = tl.where(place < tree_at, place, tree_start + node)
            block = tl.load(table + key // BLOCK_SIZE, mask=is_seen, other=0)
            keys, values = _load_tile(
                cache, block, key, dim, is_seen, NUM_KV_HEADS, HEAD_DIM, DIM_LANES, BLOCK_SIZE
            )
            scores = tl.dot(keys.to(CD), q, input_precision="ieee")
            scores = tl.where(is_seen[:, None], scores, float("-inf"))
            state_max, state_sum, acc = _accumulate(
                scores, values.to(CD), state_max, state_sum, acc, scale, CD
            )
        new_max = tl.maximum(total_max, state_max)
        old, new = tl.exp2(total_max - new_max), tl.exp2(state_max - new_max)
        total_sum = total_sum * old + state_sum * new
        total = total * old[None, :] + acc * new[None, :]
        total_max = new_max

    result = total / tl.where(total_sum == 0.0, 1.0, total_sum)[None, :]  # no key: zeros
    at = out + (row.to(tl.int64) * (NUM_KV_HEADS * GROUP) + head)[None, :] * HEAD_DIM
    tl.store(at + dim[:, None], result, mask=is_stored)


def num_splits(max_context: int) -> int:
    """Partial results of a row that sees `max_context` keys."""
    return triton.cdiv(max_context, SPLIT)


def row_tile(config: Config, max_rows: int, num_seqs: int, group: int) -> int:
    """Width of a row tile: what the rows of a sequence fill, on average, up to the configured."""
    tokens = triton.cdiv(max_rows, num_seqs)
    wanted = triton.next_power_of_2(tokens * group)
    return max(MIN_ROWS, min(config.max_rows, wanted), triton.next_power_of_2(group))


def launches(
    arch: int,
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
) -> list[Launch]:
    """Two launches for every pass over the rows; one pass when `scratch` holds all partial results.

    Raises:
        ValueError: `scratch` holds less than the partial results of one row.
    """
    is_f32 = kv_cache.dtype == torch.float32
    config = F32_CONFIG if is_f32 else nearest(BF16_CONFIGS, arch)
    num_seqs, max_blocks = block_tables.shape
    group = num_heads // num_kv_heads
    capacity = max_blocks * kv_cache.shape[3]
    floats_per_row = split_scratch_floats(1, num_heads, head_dim, capacity)
    fitting = scratch.numel() // floats_per_row
    expect(
        NAME,
        fitting > 0,
        f"scratch: expected at least {floats_per_row} elements (one row of {capacity} keys), "
        f"got {scratch.numel()}",
    )
    rows = F32_CONFIG.max_rows if is_f32 else row_tile(config, qkv.shape[0], num_seqs, group)
    rows = max(rows, triton.next_power_of_2(group))
    shared = {
        "qkv": qkv,
        "kv_cache": kv_cache,
        "block_tables": block_tables,
        "positions": batch.positions,
        "visible_lens": batch.visible_lens,
        "cu_rows": batch.cu_rows,
        "num_rows": batch.num_rows,
        "num_seqs": num_seqs,
        "max_blocks": max_blocks,
        "num_splits": num_splits(capacity),
        "scale": scale * LOG2_E,
    }
    own = {
        **shared,
        "ancestor_halves": batch.ancestor_mask.view(torch.int32),
        "tree_starts": batch.tree_starts,
        "out": out,
    }
    tokens = rows // group
    shapes: dict[str, Any] = {
        "NUM_KV_HEADS": num_kv_heads,
        "GROUP": group,
        "HEAD_DIM": head_dim,
        "DIM_LANES": triton.next_power_of_2(head_dim),
        "BLOCK_SIZE": kv_cache.shape[3],
        "WINDOW": window,
        "TILE": TILE,
        "SPLIT": SPLIT,
        "TOKEN_LANES": triton.next_power_of_2(tokens),
        "SEQS": triton.next_power_of_2(num_seqs),
        "CD": compute_dtype(kv_cache.dtype, arch),
    }
    own_rows = rows if is_f32 else max(MIN_ROWS, triton.next_power_of_2(group))
    own_shapes = {**shapes, "WORDS": batch.mask_words, "ROWS": own_rows, "TOKENS": tokens}
    plan = []
    for first in range(0, qkv.shape[0], fitting):
        pass_rows = min(fitting, qkv.shape[0] - first)
        parts = pass_rows * num_heads * num_splits(capacity)
        passed = {
            "first_row": first,
            "pass_rows": pass_rows,
            "partial": scratch[: parts * head_dim],
            "stats": scratch[parts * head_dim : parts * (head_dim + 2)],
        }
        tiles = pass_rows // tokens + num_seqs
        plan += [
            Launch(
                shared_splits_kernel,
                (tiles, num_kv_heads, num_splits(capacity)),
                {**shared, **passed},
                {**shapes, "ROWS": rows},
                config.num_warps,
                config.num_stages,
                fp_fusion=False,
            ),
            Launch(
                finish_rows_kernel,
                (pass_rows, num_kv_heads),
                {**own, **passed},
                own_shapes,
                F32_CONFIG.num_warps if is_f32 else 4,
                num_stages=1,
                fp_fusion=False,
            ),
        ]
    return plan
