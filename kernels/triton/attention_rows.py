"""Second kernel of tree_attention: the tiles that are a row's own, and the sum of all of them.

A row goes through its splits in order. Up to the first of its own tiles it adds up what the first
kernel left; from there on it multiplies. The first of those tiles is loaded before the first kernel
has ended: no kernel since the one before that writes keys or values.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sdengine.kernels.triton.attention_parts import (
    EMPTY,
    accumulate,
    load_queries,
    load_tile,
    merge,
    shared_keys,
    split_begin,
    split_of,
)
from sdengine.kernels.triton.overlap import begin_early


@triton.jit
def _ones(bits):
    """Set bits of each int32."""
    pairs = bits - ((bits >> 1) & 0x55555555)
    fours = (pairs & 0x33333333) + ((pairs >> 2) & 0x33333333)
    eights = (fours + (fours >> 4)) & 0x0F0F0F0F
    return ((eights * 0x01010101) >> 24) & 0x3F


@triton.jit
def _count_bits(halves, WORDS: tl.constexpr):
    count = tl.load(halves) * 0
    for half in range(2 * WORDS):
        count += _ones(tl.load(halves + half))
    return count


@triton.jit
def _nth_set_bit(halves, ordinal, WORDS: tl.constexpr):
    """Index of the ordinal-th set bit, for a vector of ordinals: the half that holds it, then five
    halvings of that half."""
    bits, rank, found = ordinal * 0, ordinal * 0, ordinal * 0
    seen = tl.load(halves) * 0
    for half in range(2 * WORDS):
        own = tl.load(halves + half)
        count = _ones(own)
        is_here = (ordinal >= seen) & (ordinal < seen + count)
        bits = tl.where(is_here, own, bits)
        rank = tl.where(is_here, ordinal - seen, rank)
        found = tl.where(is_here, 32 * half, found)
        seen += count
    for step in tl.static_range(5):
        width = 16 >> step
        low = _ones(bits & ((1 << width) - 1))
        is_above = rank >= low
        rank = tl.where(is_above, rank - low, rank)
        found = tl.where(is_above, found + width, found)
        bits = tl.where(is_above, bits >> width, bits)
    return found


@triton.jit
def _load_own(
    words,
    table,
    cache,
    start,
    first,
    length,
    tree_at,
    tree_start,
    dim,
    WORDS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_LANES: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
):
    """Keys and values of the path's tile at `start`, and which of them are of [first, length)."""
    place = start + tl.arange(0, TILE)
    is_seen = (place >= first) & (place < length)
    key = place
    if start + TILE > tree_at:
        node = _nth_set_bit(words, place - tree_at, WORDS)
        key = tl.where(place < tree_at, place, tree_start + node)
    block = tl.load(table + key // BLOCK_SIZE, mask=is_seen, other=0)
    keys, values = load_tile(
        cache, block, key, dim, is_seen, NUM_KV_HEADS, HEAD_DIM, DIM_LANES, BLOCK_SIZE
    )
    return keys, values, is_seen


@triton.jit
def _load_part(partial, stats, part, dim, is_head, HEAD_DIM: tl.constexpr):
    """What the first kernel left of a split."""
    state_max = tl.load(stats + 2 * part, mask=is_head, other=EMPTY)
    state_sum = tl.load(stats + 2 * part + 1, mask=is_head, other=0.0)
    mask = is_head[None, :] & (dim < HEAD_DIM)[:, None]
    acc = tl.load(partial + part[None, :] * HEAD_DIM + dim[:, None], mask=mask, other=0.0)
    return state_max, state_sum, acc


@triton.jit
def _add_shared(
    total_max,
    total_sum,
    total,
    partial,
    stats,
    part,
    begin,
    end,
    dim,
    lane,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """Adds the first kernel's splits [begin, end) to the total in order; those of one round are
    loaded at once."""
    for split in tl.range(begin, end, 4, num_stages=1):
        live = lane < tl.where(split + 1 < end, GROUP, 0)
        max_0, sum_0, acc_0 = _load_part(partial, stats, part + split, dim, lane < GROUP, HEAD_DIM)
        max_1, sum_1, acc_1 = _load_part(partial, stats, part + split + 1, dim, live, HEAD_DIM)
        live = lane < tl.where(split + 2 < end, GROUP, 0)
        max_2, sum_2, acc_2 = _load_part(partial, stats, part + split + 2, dim, live, HEAD_DIM)
        live = lane < tl.where(split + 3 < end, GROUP, 0)
        max_3, sum_3, acc_3 = _load_part(partial, stats, part + split + 3, dim, live, HEAD_DIM)
        total_max, total_sum, total = merge(total_max, total_sum, total, max_0, sum_0, acc_0)
        total_max, total_sum, total = merge(total_max, total_sum, total, max_1, sum_1, acc_1)
        total_max, total_sum, total = merge(total_max, total_sum, total, max_2, sum_2, acc_2)
        total_max, total_sum, total = merge(total_max, total_sum, total, max_3, sum_3, acc_3)
    return total_max, total_sum, total


@triton.jit
def _add_tile(keys, values, is_seen, q, state_max, state_sum, acc, scale, CD: tl.constexpr):
    """Adds a tile, of which some keys may be hidden, to the online softmax of a split."""
    scores = tl.dot(keys.to(CD), q, input_precision="ieee")
    scores = tl.where(is_seen[:, None], scores, float("-inf"))
    return accumulate(scores, values.to(CD), state_max, state_sum, acc, scale, CD)


@triton.jit
def _add_own(
    total_max,
    total_sum,
    total,
    state_max,
    state_sum,
    acc,
    q,
    words,
    table,
    cache,
    split_end,
    begin,
    stop,
    first,
    length,
    tree_at,
    tree_start,
    dim,
    scale,
    WORDS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_LANES: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    CD: tl.constexpr,
):
    """Adds the row's own tiles of [begin, stop) to the total, after `state`: what the split that
    ends at `split_end` has so far."""
    for start in tl.range(begin, stop, TILE, num_stages=1):
        if start == split_end:
            total_max, total_sum, total = merge(
                total_max, total_sum, total, state_max, state_sum, acc
            )
            state_max = tl.full(state_max.shape, EMPTY, tl.float32)
            state_sum = tl.zeros(state_sum.shape, tl.float32)
            acc = tl.zeros(acc.shape, tl.float32)
            split_end = split_begin(split_of(start) + 1)
        keys, values, is_seen = _load_own(
            words, table, cache, start, first, length, tree_at, tree_start, dim,
            WORDS, NUM_KV_HEADS, HEAD_DIM, DIM_LANES, BLOCK_SIZE, TILE,
        )  # fmt: skip
        state_max, state_sum, acc = _add_tile(
            keys, values, is_seen, q, state_max, state_sum, acc, scale, CD
        )
    return merge(total_max, total_sum, total, state_max, state_sum, acc)


@triton.jit
def finish_rows_kernel(
    qkv,
    kv_cache,
    block_tables,
    positions,
    visible_lens,
    ancestor_halves,
    row_seq,
    cu_rows,
    tree_starts,
    num_rows,
    out,
    partial,
    stats,
    first_row,
    pass_rows,
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
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    TOKEN_LANES: tl.constexpr,
    CD: tl.constexpr,
    OVERLAPS: tl.constexpr,
    LOADS_EARLY: tl.constexpr,
):
    last_row = tl.minimum(tl.load(num_rows), first_row + pass_rows)
    asked = first_row + tl.program_id(0)
    row = tl.maximum(tl.minimum(asked, last_row - 1), 0)  # of one too many nothing is stored
    sequence = tl.load(row_seq + row)

    # The row tile that this row was in, and what its rows share.
    tile_row = tl.maximum(tl.load(cu_rows + sequence), first_row)
    tile_row += (row - tile_row) // TOKENS * TOKENS
    tile_end = tl.minimum(tl.load(cu_rows + sequence + 1), last_row)
    tile_end = tl.minimum(tile_row + TOKENS, tile_end)
    low, high = shared_keys(positions, visible_lens, tile_row, tile_end, WINDOW, TOKEN_LANES, TILE)

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
    length = tl.where(asked < last_row, length, 0)

    # Splits [shared_from, shared_to) are the first kernel's; own tiles begin at `own`. Of a window,
    # the splits before `shared_from` are the row's own too.
    shared_from = first * 0
    if WINDOW > 0:
        shared_from = split_of(low)
        shared_from += (split_begin(shared_from) < low).to(tl.int32)
    edge = split_begin(shared_from)
    own = tl.maximum(high, edge)
    at_own = split_of(own)
    is_begun = (own > split_begin(at_own)) & (own > edge)
    is_continued = is_begun & (length > own)
    shared_to = tl.where(is_begun & (length <= own), at_own + 1, at_own)

    kv_head = tl.program_id(1)
    lane = tl.arange(0, ROWS)
    dim = tl.arange(0, DIM_LANES)
    is_head = lane < GROUP
    head = kv_head * GROUP + lane
    width = (NUM_KV_HEADS * (GROUP + 2)) * HEAD_DIM
    table = block_tables + sequence * max_blocks
    tree_start = tl.load(tree_starts + sequence)
    cache = kv_cache + kv_head * (BLOCK_SIZE * HEAD_DIM)
    q = load_queries(qkv, row + lane * 0, head, dim, is_head, width, HEAD_DIM, CD)
    if LOADS_EARLY:
        keys, values, is_seen = _load_own(
            words, table, cache, own, first, length, tree_at, tree_start, dim,
            WORDS, NUM_KV_HEADS, HEAD_DIM, DIM_LANES, BLOCK_SIZE, TILE,
        )  # fmt: skip
    begin_early(OVERLAPS)
    if asked >= last_row:
        return

    part = ((row - first_row).to(tl.int64) * (NUM_KV_HEADS * GROUP) + head) * num_splits
    total_max = tl.full([ROWS], EMPTY, tl.float32)
    total_sum = tl.zeros([ROWS], tl.float32)
    total = tl.zeros([DIM_LANES, ROWS], tl.float32)
    if WINDOW > 0:
        begin = first // TILE * TILE
        total_max, total_sum, total = _add_own(
            total_max, total_sum, total, total_max, total_sum, total, q, words, table, cache,
            split_begin(split_of(begin) + 1), begin, tl.minimum(edge, length),
            first, length, tree_at, tree_start, dim, scale,
            WORDS, NUM_KV_HEADS, HEAD_DIM, DIM_LANES, BLOCK_SIZE, TILE, CD,
        )  # fmt: skip
    total_max, total_sum, total = _add_shared(
        total_max, total_sum, total, partial, stats, part, shared_from, shared_to, dim, lane,
        GROUP, HEAD_DIM,
    )  # fmt: skip
    state_max, state_sum, acc = _load_part(
        partial, stats, part + at_own, dim, lane < tl.where(is_continued, GROUP, 0), HEAD_DIM
    )
    if LOADS_EARLY:
        state_max, state_sum, acc = _add_tile(
            keys, values, is_seen, q, state_max, state_sum, acc, scale, CD
        )
    _, total_sum, total = _add_own(
        total_max, total_sum, total, state_max, state_sum, acc, q, words, table, cache,
        split_begin(at_own + 1), own + TILE if LOADS_EARLY else own, length,
        first, length, tree_at, tree_start, dim, scale,
        WORDS, NUM_KV_HEADS, HEAD_DIM, DIM_LANES, BLOCK_SIZE, TILE, CD,
    )  # fmt: skip

    result = total / tl.where(total_sum == 0.0, 1.0, total_sum)[None, :]  # no key: zeros
    at = out + (row.to(tl.int64) * (NUM_KV_HEADS * GROUP) + head)[None, :] * HEAD_DIM
    tl.store(at + dim[:, None], result, mask=is_head[None, :] & (dim < HEAD_DIM)[:, None])
