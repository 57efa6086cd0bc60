"""rms_norm in Triton; contract: `kernels/rms_norm.py`.

One program per row of the capacity; rows past `num_rows` return at once. A row is summed as BLOCK
lanes over its width and then across lanes: an order that depends on the width alone.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sdengine.kernels.triton.launch import Launch

MAX_BLOCK = 8192


@triton.jit
def rms_norm_kernel(x, weight, out, num_rows, width, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    if row >= tl.load(num_rows):
        return
    start = row.to(tl.int64) * width
    squares = tl.zeros([BLOCK], tl.float32)
    for base in range(0, width, BLOCK):
        at = base + tl.arange(0, BLOCK)
        values = tl.load(x + start + at, mask=at < width, other=0.0)
        squares += values * values
    scale = tl.rsqrt(tl.sum(squares) / width + eps)
    for base in range(0, width, BLOCK):
        at = base + tl.arange(0, BLOCK)
        values = tl.load(x + start + at, mask=at < width, other=0.0)
        gain = tl.load(weight + at, mask=at < width, other=0.0)
        tl.store(out + start + at, values * scale * gain, mask=at < width)


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
    return [Launch(rms_norm_kernel, (rows,), arguments, {"BLOCK": block}, warps)]
