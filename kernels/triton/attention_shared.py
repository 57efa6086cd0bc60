"""First kernel of tree_attention: the tiles that every row of a row tile sees whole."""

from __future__ import annotations

import triton
import triton.language as tl

from sdengine.kernels.triton.attention_parts import (
    COARSE,
    EMPTY,
    accumulate,
    load_queries,
    load_tile,
    shared_keys,
    split_begin,
    split_of,
    tile_rows,
)
from sdengine.kernels.triton.overlap import begin_in_turn, prefetch

# Tiles that are asked for before they are needed, by row tiles of so many rows: a wide one has no
# registers to spare (64 rows take 243). One sequence of an engine's smallest program, eight rows of
# four heads, has 32, and takes 138 instead of 136 on 9.0.
FETCHED_TILES = tl.constexpr(2)
MAX_FETCHED_ROWS = tl.constexpr(32)


@triton.jit
def _fetch_first_tiles(
    kv_cache,
    table,
    kv_head,
    begin,
    stop,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
):
    """Asks for keys and values of the first tiles, which of a short split are all. A tile is one
    piece of memory, and its address the same in all lanes: one instruction a warp."""
    plane: tl.constexpr = BLOCK_SIZE * HEAD_DIM
    num_bytes: tl.constexpr = TILE * HEAD_DIM * kv_cache.dtype.element_ty.primitive_bitwidth // 8
    for tile in tl.static_range(FETCHED_TILES):
        start = tl.minimum(begin + tile * TILE, stop - TILE)
        block = tl.load(table + start // BLOCK_SIZE).to(tl.int64)
        at = kv_cache + (block * (2 * NUM_KV_HEADS) + kv_head) * plane
        at += start % BLOCK_SIZE * HEAD_DIM
        prefetch(at, num_bytes)
        prefetch(at + NUM_KV_HEADS * plane, num_bytes)


@triton.jit
def _store_part(
    partial, stats, part, state_max, state_sum, acc, is_live, dim, HEAD_DIM: tl.constexpr
):
    """Leaves a split to the second kernel."""
    part = part.to(tl.int64)
    mask = is_live[None, :] & (dim < HEAD_DIM)[:, None]
    tl.store(partial + part[None, :] * HEAD_DIM + dim[:, None], acc, mask=mask)
    tl.store(stats + 2 * part, state_max, mask=is_live)
    tl.store(stats + 2 * part + 1, state_sum, mask=is_live)


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
    tile_programs,
    enough_programs,
    scale,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_LANES: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    GOES_ON: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    TOKEN_LANES: tl.constexpr,
    SEQS: tl.constexpr,
    CD: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    TOKENS: tl.constexpr = ROWS // GROUP
    MOST_TILES: tl.constexpr = COARSE // TILE
    last_row = tl.minimum(tl.load(num_rows), first_row + pass_rows)
    sequence, row, end = tile_rows(cu_rows, first_row, last_row, num_seqs, TOKENS, SEQS)
    low, high = shared_keys(positions, visible_lens, row, end, WINDOW, TOKEN_LANES, TILE)
    kv_head = tl.program_id(1)
    piece = tl.num_programs(2) - 1 - tl.program_id(2)  # the longest first
    split = piece
    begin = split_begin(split)
    stop = tl.minimum(split_begin(split + 1), high)
    stop = tl.where(begin < low, begin, stop)
    if GOES_ON:
        is_wide = high // COARSE * tile_programs >= enough_programs
        first = split_of(low)
        first += (split_begin(first) < low).to(tl.int32)
        begin = tl.where(is_wide, tl.maximum(piece * COARSE, split_begin(first)), begin)
        split = split_of(begin)
        stop = tl.where(is_wide, tl.minimum((piece + 1) * COARSE, high), stop)
    stop = tl.where(sequence == SEQS, begin, stop)
    table = block_tables + tl.minimum(sequence, num_seqs - 1) * max_blocks
    if BLOCK_SIZE % TILE == 0:  # one block holds a tile: all of them are looked up at once
        tile = tl.arange(0, MOST_TILES)
        starts = begin + tile * TILE
        blocks = tl.load(table + starts // BLOCK_SIZE, mask=starts < stop, other=0)
        if OVERLAPS and ROWS <= MAX_FETCHED_ROWS and begin < stop:
            _fetch_first_tiles(
                kv_cache, table, kv_head, begin, stop, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE, TILE
            )
    begin_in_turn(OVERLAPS)
    if begin >= stop:
        return

    lane = tl.arange(0, ROWS)
    dim = tl.arange(0, DIM_LANES)
    rows = row + lane // GROUP
    is_live = (lane < TOKENS * GROUP) & (rows < end)
    head = kv_head * GROUP + lane % GROUP
    width = (NUM_KV_HEADS * (GROUP + 2)) * HEAD_DIM
    q = load_queries(qkv, rows, head, dim, is_live, width, HEAD_DIM, CD)

    state_max = tl.full([ROWS], EMPTY, tl.float32)
    state_sum = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([DIM_LANES, ROWS], tl.float32)
    cache = kv_cache + kv_head * (BLOCK_SIZE * HEAD_DIM)
    # Narrow: a wide row tile has no registers to spare, and `scratch` holds no 2^31 parts.
    part = ((rows - first_row) * (NUM_KV_HEADS * GROUP) + head) * num_splits + split
    split_end = tl.minimum(split_begin(split + 1), stop)
    for start in tl.range(begin, stop, TILE):
        key = start + tl.arange(0, TILE)
        if BLOCK_SIZE % TILE == 0:
            block = tl.sum(tl.where(tile == (start - begin) // TILE, blocks, 0), 0)
            block = block + tl.zeros_like(key)
        else:
            block = tl.load(table + key // BLOCK_SIZE)
        keys, values = load_tile(
            cache, block, key, dim, None, NUM_KV_HEADS, HEAD_DIM, DIM_LANES, BLOCK_SIZE
        )
        scores = tl.dot(keys.to(CD), q, input_precision="ieee")
        state_max, state_sum, acc = accumulate(
            scores, values.to(CD), state_max, state_sum, acc, scale, CD
        )
        if GOES_ON and start + TILE == split_end:
            _store_part(partial, stats, part, state_max, state_sum, acc, is_live, dim, HEAD_DIM)
            state_max = tl.full([ROWS], EMPTY, tl.float32)
            state_sum = tl.zeros([ROWS], tl.float32)
            acc = tl.zeros([DIM_LANES, ROWS], tl.float32)
            part += 1
            split += 1
            split_end = tl.minimum(split_begin(split + 1), stop)
    if not GOES_ON:
        _store_part(partial, stats, part, state_max, state_sum, acc, is_live, dim, HEAD_DIM)
