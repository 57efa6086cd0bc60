"""rms_norm in Triton; contract: `kernels/rms_norm.py`.

One program per row of the capacity; rows past `num_rows` return at once. A row is summed as BLOCK
lanes over its width and then across lanes: an order that depends on the width alone. Its first
block is held; the others, of rows wider than MAX_BLOCK, are read twice.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sdengine.kernels.triton.launch import Launch
from sdengine.kernels.triton.overlap import begin_early, can_overlap

MAX_BLOCK = 8192


@triton.jit
def rms_norm_kernel(
    x, weight, out, num_rows, width, eps, BLOCK: tl.constexpr, OVERLAPS: tl.constexpr
):
    row = tl.program_id(0)
    start = row.to(tl.int64) * width
    at = tl.arange(0, BLOCK)
    first_gain = tl.load(weight + at, mask=at < width, other=0.0)
    live_rows = tl.load(num_rows)
    begin_early(OVERLAPS)
    if row >= live_rows:
        return
    first = tl.load(x + start + at, mask=at < width, other=0.0)
    squares = first * first
    for base in range(BLOCK, width, BLOCK):
        values = tl.load(x + start + base + at, mask=base + at < width, other=0.0)
        squares += values * values
    scale = tl.rsqrt(tl.sum(squares) / width + eps)
    tl.store(out + start + at, first * scale * first_gain, mask=at < width)
    for base in range(BLOCK, width, BLOCK):
        mask = base + at < width
        values = tl.load(x + start + base + at, mask=mask, other=0.0)
        gain = tl.load(weight + base + at, mask=mask, other=0.0)
        tl.store(out + start + base + at, values * scale * gain, mask=mask)


def launches(
    arch: int,
    *,
    x: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    num_rows: torch.Tensor,
    eps: float,
) -> list[Launch]:
    """One launch."""
    rows, width = x.shape
    block = min(triton.next_power_of_2(width), MAX_BLOCK)
    arguments = {
        "x": x,
        "weight": weight,
        "out": out,
        "num_rows": num_rows,
        "width": width,
        "eps": eps,
    }
    warps = max(1, min(8, block // 512))
    constants = {"BLOCK": block, "OVERLAPS": can_overlap(arch)}
    return [Launch(rms_norm_kernel, (rows,), arguments, constants, warps)]
