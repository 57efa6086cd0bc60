"""embed in Triton; contract: `kernels/embed.py`.

Grid (N, E / BLOCK): each program copies a piece of one row and widens it to float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sdengine.kernels.triton.launch import Launch
from sdengine.kernels.triton.overlap import begin_in_turn, can_overlap

BLOCK = 1024


@triton.jit
def embed_kernel(tokens, weight, out, num_rows, width, BLOCK: tl.constexpr, OVERLAPS: tl.constexpr):
    begin_in_turn(OVERLAPS)
    row = tl.program_id(0)
    if row >= tl.load(num_rows):
        return
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    source = tl.load(tokens + row).to(tl.int64) * width
    values = tl.load(weight + source + at, mask=at < width, other=0.0)
    tl.store(out + row.to(tl.int64) * width + at, values.to(tl.float32), mask=at < width)


def launches(
    arch: int,
    *,
    tokens: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    num_rows: torch.Tensor,
) -> list[Launch]:
    """One launch."""
    rows, width = out.shape
    arguments = {
        "tokens": tokens,
        "weight": weight,
        "out": out,
        "num_rows": num_rows,
        "width": width,
    }
    grid = (rows, triton.cdiv(width, BLOCK))
    constants = {"BLOCK": BLOCK, "OVERLAPS": can_overlap(arch)}
    return [Launch(embed_kernel, grid, arguments, constants)]
