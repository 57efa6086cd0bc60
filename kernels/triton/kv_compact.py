"""kv_compact in Triton; contract: `kernels/kv_compact.py`.

Grid (B, L, 2 H_kv): one program moves all tokens of one sequence in one plane of one layer, TILE
at a time, so nobody else writes what it reads. Sources ascend and a destination never lies behind
its source (destination of move k = start + k <= source k < source j for j > k): a tile never
overwrites a source of a later one, and inside a tile a barrier stands between loads and stores.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sdengine.kernels.move_plan import MovePlan
from sdengine.kernels.triton.launch import Launch

TILE = 16


@triton.jit
def kv_compact_kernel(
    kv_cache,
    block_tables,
    move_src,
    move_dst_start,
    num_moves,
    num_seqs,
    layer_stride,
    max_blocks,
    max_moves,
    PLANES: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_LANES: tl.constexpr,
    TILE: tl.constexpr,
):
    sequence = tl.program_id(0)
    if sequence >= tl.load(num_seqs):
        return
    moves = tl.load(num_moves + sequence)
    start = tl.load(move_dst_start + sequence)
    table = block_tables + sequence * max_blocks
    plane = kv_cache + tl.program_id(1).to(tl.int64) * layer_stride
    plane += tl.program_id(2) * BLOCK_SIZE * HEAD_DIM
    dim = tl.arange(0, DIM_LANES)
    for first in range(0, moves, TILE):
        move = first + tl.arange(0, TILE)
        is_live = move < moves
        source = tl.load(move_src + sequence * max_moves + move, mask=is_live, other=0)
        target = start + move
        moved = is_live & (source != target)
        source_block = tl.load(table + source // BLOCK_SIZE, mask=moved, other=0).to(tl.int64)
        target_block = tl.load(table + target // BLOCK_SIZE, mask=moved, other=0).to(tl.int64)
        source_row = source_block * (PLANES * BLOCK_SIZE) + source % BLOCK_SIZE
        target_row = target_block * (PLANES * BLOCK_SIZE) + target % BLOCK_SIZE
        mask = moved[:, None] & (dim < HEAD_DIM)[None, :]
        kept = tl.load(plane + source_row[:, None] * HEAD_DIM + dim[None, :], mask=mask)
        tl.debug_barrier()
        tl.store(plane + target_row[:, None] * HEAD_DIM + dim[None, :], kept, mask=mask)


def launches(
    arch: int,
    *,
    kv_cache: torch.Tensor,
    block_tables: torch.Tensor,
    moves: MovePlan,
    num_seqs: torch.Tensor,
) -> list[Launch]:
    """One launch."""
    layers, _, _, kv_heads, block_size, head_dim = kv_cache.shape
    arguments = {
        "kv_cache": kv_cache,
        "block_tables": block_tables,
        "move_src": moves.source,
        "move_dst_start": moves.dst_start,
        "num_moves": moves.num_moves,
        "num_seqs": num_seqs,
        "layer_stride": kv_cache.stride(0),
        "max_blocks": block_tables.shape[1],
        "max_moves": moves.max_moves,
    }
    constants = {
        "PLANES": 2 * kv_heads,
        "BLOCK_SIZE": block_size,
        "HEAD_DIM": head_dim,
        "DIM_LANES": triton.next_power_of_2(head_dim),
        "TILE": TILE,
    }
    grid = (block_tables.shape[0], layers, 2 * kv_heads)
    return [Launch(kv_compact_kernel, grid, arguments, constants)]
