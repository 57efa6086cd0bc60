"""What the two kernels of tree_attention share: where splits lie, row tiles, the online softmax."""

from __future__ import annotations

import triton
import triton.language as tl

EMPTY = tl.constexpr(-1e30)  # not -inf: exp2(-inf + inf) is NaN
NONE = tl.constexpr(2**31 - 1)
# kernels/tree_attention.py: DEVICE_SPLITS.
FINE: tl.constexpr = tl.constexpr(128)
FINE_END: tl.constexpr = tl.constexpr(2048)
MIDDLE: tl.constexpr = tl.constexpr(512)
MIDDLE_END: tl.constexpr = tl.constexpr(16384)
COARSE: tl.constexpr = tl.constexpr(1024)
FINE_SPLITS = tl.constexpr(FINE_END.value // FINE.value)
FEWER_SPLITS = tl.constexpr(FINE_SPLITS.value + (MIDDLE_END.value - FINE_END.value) // MIDDLE.value)


@triton.jit
def split_begin(split):
    """First place of a split."""
    fine = split * FINE
    middle = FINE_END + (split - FINE_SPLITS) * MIDDLE
    coarse = MIDDLE_END + (split - FEWER_SPLITS) * COARSE
    return tl.where(split < FINE_SPLITS, fine, tl.where(split < FEWER_SPLITS, middle, coarse))


@triton.jit
def split_of(place):
    """The split that holds a place."""
    middle = FINE_SPLITS + (place - FINE_END) // MIDDLE
    coarse = FEWER_SPLITS + (place - MIDDLE_END) // COARSE
    return tl.where(place < FINE_END, place // FINE, tl.where(place < MIDDLE_END, middle, coarse))


@triton.jit
def tile_rows(cu_rows, first_row, last_row, num_seqs, TOKENS: tl.constexpr, SEQS: tl.constexpr):
    """Sequence, first row and end row of row tile `program_id(0)`; SEQS for a tile too many."""
    at = tl.arange(0, SEQS)
    begin = tl.maximum(tl.load(cu_rows + at, mask=at < num_seqs, other=0), first_row)
    end = tl.load(cu_rows + 1 + at, mask=at < num_seqs, other=NONE)
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
def shared_keys(
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
    visible = tl.load(visible_lens + at, mask=at < end, other=NONE)
    high = tl.min(visible, 0) // TILE * TILE
    low = high * 0
    if WINDOW > 0:
        position = tl.load(positions + at, mask=at < end, other=0)
        low = tl.maximum(tl.max(position, 0) - WINDOW + 1, 0)
    return low, high


@triton.jit
def accumulate(scores, values, state_max, state_sum, acc, scale, CD: tl.constexpr):
    """Adds a tile of keys to the online softmax of its rows; a hidden key has score -inf."""
    new_max = tl.maximum(state_max, tl.max(scores, 0) * scale)
    weights = tl.exp2(tl.fma(scores, scale, -new_max[None, :]))
    shrink = tl.exp2(state_max - new_max)
    state_sum = state_sum * shrink + tl.sum(weights, 0)
    acc = tl.dot(tl.trans(values), weights.to(CD), acc * shrink[None, :], input_precision="ieee")
    return new_max, state_sum, acc


@triton.jit
def merge(total_max, total_sum, total, state_max, state_sum, acc):
    """The online softmax of two sets of keys as one; an empty one changes no bit of the other."""
    new_max = tl.maximum(total_max, state_max)
    old, new = tl.exp2(total_max - new_max), tl.exp2(state_max - new_max)
    total = total * old[None, :] + acc * new[None, :]
    return new_max, total_sum * old + state_sum * new, total


@triton.jit
def load_queries(qkv, row, head, dim, is_live, width, HEAD_DIM: tl.constexpr, CD: tl.constexpr):
    """[dims, rows], zero where a row is not live."""
    at = row.to(tl.int64) * width + head * HEAD_DIM
    mask = is_live[None, :] & (dim < HEAD_DIM)[:, None]
    return tl.load(qkv + at[None, :] + dim[:, None], mask=mask, other=0.0).to(CD)


@triton.jit
def load_tile(
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
