"""linear in Triton; contract: `kernels/linear.py`. The weight is a `DenseWeight`.

Grid (tiles of features, tiles of rows): a program computes features x rows, W being the M axis of
the product and rows its N axis. So a weight is read once for up to max_rows rows, few rows waste
little of a tensor core (N is 16 then), and the instruction, the order over K and hence the bits of
an element are the same for every number of rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from sdengine.kernels.dense_weight import DenseWeight
from sdengine.kernels.spec import expect
from sdengine.kernels.triton.launch import Launch, compute_dtype, nearest

MIN_ROWS = 16  # the narrowest that Triton 3.6 gives the warp-group instruction of wider tiles


@dataclass(frozen=True, slots=True)
class Config:
    """Tile of a program (features, inputs of one step, most rows), warps and pipeline stages."""

    features: int
    inputs: int
    max_rows: int
    num_warps: int
    num_stages: int


# bfloat16 by architecture; float32 has no tensor cores here and is for exactness, not for speed.
BF16_CONFIGS = {
    80: Config(64, 64, 64, 4, 3),
    90: Config(64, 64, 64, 4, 4),
    100: Config(64, 64, 64, 4, 4),
    120: Config(64, 64, 64, 4, 3),
}
F32_CONFIG = Config(64, 32, 16, 4, 2)


@triton.jit
def linear_kernel(
    x,
    weight,
    out,
    num_rows,
    bias,
    rows,
    num_inputs,
    num_features,
    GATED: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    WHOLE_STEPS: tl.constexpr,
    FEATURES: tl.constexpr,
    INPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    CD: tl.constexpr,
):
    first = tl.program_id(1) * ROWS
    live_rows = tl.load(num_rows)
    if first >= live_rows:
        return
    row = first + tl.arange(0, ROWS)
    is_live = row < live_rows
    if rows is None:
        source = row.to(tl.int64)
    else:
        source = tl.load(rows + row, mask=is_live, other=0).to(tl.int64)
    feature = tl.program_id(0) * FEATURES + tl.arange(0, FEATURES)
    step = tl.arange(0, INPUTS)
    # Features past the last read the last one again, which needs no mask, and are not stored.
    line = tl.minimum(feature, num_features - 1).to(tl.int64)
    at_weight = weight + (line * num_inputs)[:, None] + step[None, :]
    at_up = weight + ((line + num_features) * num_inputs)[:, None] + step[None, :]
    at_x = x + (source * num_inputs)[None, :] + step[:, None]

    acc = tl.zeros([FEATURES, ROWS], tl.float32)
    up = tl.zeros([FEATURES, ROWS], tl.float32)
    for start in tl.range(0, num_inputs, INPUTS):
        if WHOLE_STEPS:
            w = tl.load(at_weight + start)
            xs = tl.load(at_x + start, mask=is_live[None, :], other=0.0)
        else:
            in_step = start + step < num_inputs
            w = tl.load(at_weight + start, mask=in_step[None, :], other=0.0)
            xs = tl.load(at_x + start, mask=in_step[:, None] & is_live[None, :], other=0.0)
        acc = tl.dot(w.to(CD), xs.to(CD), acc, input_precision="ieee")
        if GATED:
            if WHOLE_STEPS:
                w_up = tl.load(at_up + start)
            else:
                w_up = tl.load(at_up + start, mask=in_step[None, :], other=0.0)
            up = tl.dot(w_up.to(CD), xs.to(CD), up, input_precision="ieee")

    is_feature = feature < num_features
    if bias is not None:
        acc += tl.load(bias + feature, mask=is_feature, other=0.0)[:, None]
    if GATED:
        if bias is not None:
            up += tl.load(bias + num_features + feature, mask=is_feature, other=0.0)[:, None]
        acc = acc / (1.0 + tl.exp(-acc)) * up
    at_out = out + (row.to(tl.int64) * num_features)[None, :] + feature[:, None]
    mask = is_feature[:, None] & is_live[None, :]
    if ACCUMULATE:
        acc += tl.load(at_out, mask=mask, other=0.0)
    tl.store(at_out, acc, mask=mask)


def launches(
    arch: int,
    *,
    x: torch.Tensor,
    weight: DenseWeight,
    out: torch.Tensor,
    num_rows: torch.Tensor,
    bias: torch.Tensor | None = None,
    accumulate: bool = False,
    rows: torch.Tensor | None = None,
    activation: str | None = None,
) -> list[Launch]:
    """One launch.

    Raises:
        ValueError: The weight is packed for the CPU.
    """
    expect(
        "linear",
        isinstance(weight, DenseWeight),
        f"weight: expected a DenseWeight for backend 'triton', got {type(weight).__name__}",
    )
    is_f32 = weight.dtype == torch.float32
    config = F32_CONFIG if is_f32 else nearest(BF16_CONFIGS, arch)
    capacity, num_features = out.shape
    tile_rows = min(config.max_rows, max(MIN_ROWS, triton.next_power_of_2(capacity)))
    arguments = {
        "x": x,
        "weight": weight.matrix,
        "out": out,
        "num_rows": num_rows,
        "bias": bias,
        "rows": rows,
        "num_inputs": weight.num_inputs,
        "num_features": num_features,
    }
    constants = {
        "GATED": activation == "silu_gate",
        "ACCUMULATE": accumulate,
        "WHOLE_STEPS": weight.num_inputs % config.inputs == 0,
        "FEATURES": config.features,
        "INPUTS": config.inputs,
        "ROWS": tile_rows,
        "CD": compute_dtype(weight.dtype, arch),
    }
    grid = (triton.cdiv(num_features, config.features), triton.cdiv(capacity, tile_rows))
    return [Launch(linear_kernel, grid, arguments, constants, config.num_warps, config.num_stages)]
