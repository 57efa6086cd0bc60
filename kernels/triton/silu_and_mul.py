"""silu_and_mul in Triton; contract: `kernels/silu_and_mul.py`.

Grid (N, F / BLOCK): elements have nothing to do with one another.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sdengine.kernels.triton.launch import Launch
from sdengine.kernels.triton.overlap import begin_early, can_overlap

BLOCK = 1024


@triton.jit
def silu_and_mul_kernel(x, out, num_rows, width, BLOCK: tl.constexpr, OVERLAPS: tl.constexpr):
    begin_early(OVERLAPS)
    row = tl.program_id(0)
    if row >= tl.load(num_rows):
        return
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    start = row.to(tl.int64) * width
    gate = tl.load(x + 2 * start + at, mask=at < width, other=0.0)
    up = tl.load(x + 2 * start + width + at, mask=at < width, other=0.0)
    tl.store(out + start + at, gate / (1.0 + tl.exp(-gate)) * up, mask=at < width)


def launches(
    arch: int, *, x: torch.Tensor, out: torch.Tensor, num_rows: torch.Tensor
) -> list[Launch]:
    """One launch."""
    rows, width = out.shape
    arguments = {"x": x, "out": out, "num_rows": num_rows, "width": width}
    grid = (rows, triton.cdiv(width, BLOCK))
    constants = {"BLOCK": BLOCK, "OVERLAPS": can_overlap(arch)}
    return [Launch(silu_and_mul_kernel, grid, arguments, constants)]
