"""tree_attention in Triton; contract: `kernels/tree_attention.py`.

A row sees a path of keys; the key at place i of the path is multiplied in tile i / TILE, column
i % TILE, and tiles are added up in order within a split (`DEVICE_SPLITS`), splits in order after
one another. Where the keys lie, and whether they are prefix or tree, does not enter: a tree row
gets the bits of plain decoding. Two launches do the work:

1. `shared_splits` (`attention_shared.py`), grid (row tiles, H_kv, splits): the tiles that *every*
   row of a row tile sees whole, read once for all of them. No mask code, and no row multiplies a
   key it does not see. Where programs abound, the first of them go through several splits each and
   the others return; what is left of a split is the same. The grid is as large as the promises of
   `max_keys` and `max_seqs` let it be: a program without work takes 3 to 4 ns, and an engine of 8
   slots and 131072 keys had 12560 of them a layer, where a step at 1024 keys has work for 64.
2. `finish_rows` (`attention_rows.py`), grid (N, H_kv): per row, adds up those splits, and continues
   with the tiles that are the row's own (the end of its prefix, its ancestors, the start of its
   window), gathered in the order of its path; writes the result.

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

from sdengine.kernels.row_batch import RowBatch
from sdengine.kernels.spec import expect
from sdengine.kernels.tree_attention import device_splits, split_scratch_floats
from sdengine.kernels.triton.attention_rows import finish_rows_kernel
from sdengine.kernels.triton.attention_shared import shared_splits_kernel
from sdengine.kernels.triton.launch import INTERPRETER, MIN_ROWS, Launch, compute_dtype, nearest
from sdengine.kernels.triton.overlap import can_overlap

NAME = "tree_attention"
LOG2_E = 1.4426950408889634
TILE = 64  # keys of one product
# A program that goes through several splits begins once for all of them, which is worth more than
# the number of programs where so many have work: in one stretch of keys, and in all of them.
MIN_WIDE_PROGRAMS = 40
ENOUGH_PROGRAMS = 250
USUAL_DIM = 128
MAX_EARLY_ROWS = 16  # up to which a row's first tile is held in registers while others work
SHARED_BYTES = 227 << 10  # of a program, on 90 and 100; elsewhere what is configured fits


@dataclass(frozen=True, slots=True)
class Config:
    """Tuning of `shared_splits`: widest row tile, warps, most pipeline stages, and shared memory of
    a program where there are many."""

    max_rows: int
    num_warps: int
    num_stages: int
    crowded_bytes: int = SHARED_BYTES


# 16-bit formats by architecture; float32 has no tensor cores here and is for exactness, not for
# speed. On 90, two of many programs share a multiprocessor: while one multiplies, the other takes
# exponents. A few have one each, and load both tiles of a short split at once.
NARROW_CONFIGS = {
    80: Config(64, 4, 2),
    90: Config(64, 4, 3, 113 << 10),
    100: Config(64, 8, 3),  # 4 warps spill: a thread then holds half a row of tensor memory
    120: Config(32, 4, 2),  # 64 rows spill
}
F32_CONFIG = Config(16, 8, 1)


def row_tile(config: Config, max_rows: int, num_seqs: int, group: int, dim: int) -> int:
    """Width of a row tile: what the rows of a live sequence fill, on average, up to the configured,
    or half of it where sums over more than USUAL_DIM dims take twice the registers."""
    tokens = triton.cdiv(max_rows, num_seqs)
    wanted = triton.next_power_of_2(tokens * group)
    widest = config.max_rows if dim <= USUAL_DIM else config.max_rows // 2
    return max(MIN_ROWS, min(widest, wanted), triton.next_power_of_2(group))


def num_stages(config: Config, rows: int, dim: int, may_go_on: bool) -> int:
    """Pipeline stages of a 16-bit format: a stage is a tile of keys and one of values. Beside them
    lie queries and weights, and what turns the sums of a split that is not the program's last."""
    left = SHARED_BYTES - 2 * rows * (dim + TILE)
    if may_go_on:
        left += config.crowded_bytes - SHARED_BYTES - 3 * rows * dim
    return max(2, min(config.num_stages, left // (4 * TILE * dim)))


def row_registers(arch: int, dim: int) -> int | None:
    """Registers of a thread of `finish_rows` with which a multiprocessor holds three programs; left
    to itself the compiler of Triton 3.6 takes 176 for heads of 128."""
    return 168 if arch // 10 == 9 and dim == USUAL_DIM else None


def goes_on(arch: int, is_f32: bool, tile_programs: int) -> bool:
    """Whether a program may go through several splits; in float32, and before 9.0, it would spill,
    and the interpreter does it to be tested."""
    has_registers = arch == INTERPRETER or (arch >= 90 and not is_f32)
    return tile_programs >= MIN_WIDE_PROGRAMS and has_registers


def loads_early(arch: int, num_rows: int) -> bool:
    """Whether rows load their first own tile before the shared ones are done; where nothing waits
    that gains nothing, and the interpreter does it to be tested."""
    return num_rows <= MAX_EARLY_ROWS and (can_overlap(arch) or arch == INTERPRETER)


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
    max_keys: int | None = None,
    max_seqs: int | None = None,
) -> list[Launch]:
    """Two launches for every pass over the rows; one pass when `scratch` holds all partial results.

    Raises:
        ValueError: `scratch` holds less than the partial results of one row.
    """
    is_f32 = kv_cache.dtype == torch.float32
    config = F32_CONFIG if is_f32 else nearest(NARROW_CONFIGS, arch)
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
    dim = triton.next_power_of_2(head_dim)
    live_seqs = min(num_seqs, max_seqs or num_seqs)
    rows = F32_CONFIG.max_rows if is_f32 else row_tile(config, qkv.shape[0], live_seqs, group, dim)
    rows = max(rows, triton.next_power_of_2(group))
    shared = {
        "qkv": qkv,
        "kv_cache": kv_cache,
        "block_tables": block_tables,
        "positions": batch.positions,
        "visible_lens": batch.visible_lens,
        "cu_rows": batch.cu_rows,
        "num_rows": batch.num_rows,
        "max_blocks": max_blocks,
        "num_splits": device_splits(capacity),
        "scale": scale * LOG2_E,
    }
    own = {
        **shared,
        "row_seq": batch.row_seq,
        "ancestor_halves": batch.ancestor_mask.view(torch.int32),
        "tree_starts": batch.tree_starts,
        "out": out,
    }
    tokens = rows // group
    shapes: dict[str, Any] = {
        "NUM_KV_HEADS": num_kv_heads,
        "GROUP": group,
        "HEAD_DIM": head_dim,
        "DIM_LANES": dim,
        "BLOCK_SIZE": kv_cache.shape[3],
        "WINDOW": window,
        "TILE": TILE,
        "TOKEN_LANES": triton.next_power_of_2(tokens),
        "CD": compute_dtype(kv_cache.dtype, arch),
        "OVERLAPS": can_overlap(arch),
    }
    own_rows = rows if is_f32 else max(MIN_ROWS, triton.next_power_of_2(group))
    own_shapes = {
        **shapes,
        "WORDS": batch.mask_words,
        "ROWS": own_rows,
        "TOKENS": tokens,
        "LOADS_EARLY": loads_early(arch, qkv.shape[0]),
    }
    plan = []
    for first in range(0, qkv.shape[0], fitting):
        pass_rows = min(fitting, qkv.shape[0] - first)
        parts = pass_rows * num_heads * device_splits(capacity)
        passed = {
            "first_row": first,
            "pass_rows": pass_rows,
            "partial": scratch[: parts * head_dim],
            "stats": scratch[parts * head_dim : parts * (head_dim + 2)],
        }
        tiles = pass_rows // tokens + live_seqs
        tile_programs = tiles * num_kv_heads
        may_go_on = goes_on(arch, is_f32, tile_programs)
        plan += [
            Launch(
                shared_splits_kernel,
                (tiles, num_kv_heads, device_splits(min(capacity, max_keys or capacity))),
                {
                    **shared,
                    **passed,
                    "num_seqs": num_seqs,
                    "tile_programs": tile_programs,
                    "enough_programs": ENOUGH_PROGRAMS,
                },
                {
                    **shapes,
                    "ROWS": rows,
                    "SEQS": triton.next_power_of_2(num_seqs),
                    "GOES_ON": may_go_on,
                },
                config.num_warps,
                config.num_stages if is_f32 else num_stages(config, rows, dim, may_go_on),
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
                max_registers=None if is_f32 else row_registers(arch, dim),
            ),
        ]
    return plan
