"""linear in Triton; contract: `kernels/linear.py`. The weight is a `DenseWeight`.

Grid (tiles of features, tiles of rows): a program computes features x rows, W being the M axis of
the product and rows its N axis. So a weight is read once for up to max_rows rows, few rows waste
little of a tensor core (N is 16 then), and the instruction, the order over K and hence the bits of
an element are the same for every number of rows.

A weight with few tiles leaves multiprocessors without work. K is cut into a fixed number of parts
for those shapes (`SPLITS`), by shape alone: each part is summed up for itself, and the parts are
added in order. Few rows have a program per part, whose sums `merge_parts_kernel` adds; many rows
have tiles enough, and a program adds up its own parts. The bits are the same.
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


@dataclass(frozen=True, slots=True)
class Split:
    """Parts that K is cut into, for weights of at most so many features and at least so many
    inputs."""

    max_features: int
    min_inputs: int
    parts: int


# By architecture, the first that fits; a weight that none fits, or with a gate, is not cut. Chosen
# by counting so far (tiles of 64 features and parts against 108, 132 and 170 multiprocessors
# with two programs each), not by measuring: the slice "linear" of the GPU suite times both.
SPLITS = {
    80: (Split(2048, 2048, 4), Split(6144, 4096, 2)),
    90: (Split(2048, 2048, 4), Split(4096, 8192, 4), Split(6144, 4096, 2)),
    100: (),  # the kernel of a part spills a word there
    120: (Split(2048, 2048, 4), Split(6144, 4096, 2)),
}
MAX_PART_ROWS = 64  # rows up to which a part has a program of its own
MERGED_FEATURES = 256  # of a program that adds up parts


@triton.jit
def linear_kernel(
    x,
    weight,
    out,
    num_rows,
    bias,
    rows,
    parts,
    num_inputs,
    num_features,
    part_inputs,
    GATED: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    WHOLE_STEPS: tl.constexpr,
    NUM_PARTS: tl.constexpr,
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
    for own in range(0, NUM_PARTS):
        part = tl.zeros([FEATURES, ROWS], tl.float32)
        begin = (tl.program_id(2) + own) * part_inputs
        for start in tl.range(begin, tl.minimum(begin + part_inputs, num_inputs), INPUTS):
            if WHOLE_STEPS:
                w = tl.load(at_weight + start)
                xs = tl.load(at_x + start, mask=is_live[None, :], other=0.0)
            else:
                in_step = start + step < num_inputs
                w = tl.load(at_weight + start, mask=in_step[None, :], other=0.0)
                xs = tl.load(at_x + start, mask=in_step[:, None] & is_live[None, :], other=0.0)
            part = tl.dot(w.to(CD), xs.to(CD), part, input_precision="ieee")
            if GATED:
                if WHOLE_STEPS:
                    w_up = tl.load(at_up + start)
                else:
                    w_up = tl.load(at_up + start, mask=in_step[None, :], other=0.0)
                up = tl.dot(w_up.to(CD), xs.to(CD), up, input_precision="ieee")
        acc += part

    is_feature = feature < num_features
    mask = is_feature[:, None] & is_live[None, :]
    place = (row.to(tl.int64) * num_features)[None, :] + feature[:, None]
    if parts is not None:
        capacity = tl.num_programs(1).to(tl.int64) * ROWS
        tl.store(parts + tl.program_id(2) * capacity * num_features + place, acc, mask=mask)
        return
    if bias is not None:
        acc += tl.load(bias + feature, mask=is_feature, other=0.0)[:, None]
    if GATED:
        if bias is not None:
            up += tl.load(bias + num_features + feature, mask=is_feature, other=0.0)[:, None]
        acc = acc / (1.0 + tl.exp(-acc)) * up
    at_out = out + place
    if ACCUMULATE:
        acc += tl.load(at_out, mask=mask, other=0.0)
    tl.store(at_out, acc, mask=mask)


@triton.jit
def merge_parts_kernel(
    parts,
    out,
    num_rows,
    bias,
    num_features,
    part_stride,
    ACCUMULATE: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    FEATURES: tl.constexpr,
):
    row = tl.program_id(1)
    if row >= tl.load(num_rows):
        return
    feature = tl.program_id(0) * FEATURES + tl.arange(0, FEATURES)
    mask = feature < num_features
    place = row.to(tl.int64) * num_features + feature
    acc = tl.zeros([FEATURES], tl.float32)
    for part in tl.static_range(NUM_PARTS):
        acc += tl.load(parts + part * part_stride.to(tl.int64) + place, mask=mask, other=0.0)
    if bias is not None:
        acc += tl.load(bias + feature, mask=mask, other=0.0)
    if ACCUMULATE:
        acc += tl.load(out + place, mask=mask, other=0.0)
    tl.store(out + place, acc, mask=mask)


def num_parts(arch: int, num_features: int, num_inputs: int) -> int:
    """Parts that K is cut into: a matter of the weight's shape alone."""
    for split in nearest(SPLITS, arch):
        if num_features <= split.max_features and num_inputs >= split.min_inputs:
            return split.parts
    return 1


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
    scratch: torch.Tensor | None = None,
) -> list[Launch]:
    """One launch, or two: parts of K side by side, and their sum.

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
    row_tiles = triton.cdiv(capacity, tile_rows)
    is_gated = activation == "silu_gate"
    parts = 1 if is_gated else num_parts(arch, num_features, weight.num_inputs)
    part_stride = row_tiles * tile_rows * num_features
    are_apart = (
        parts > 1
        and capacity <= MAX_PART_ROWS
        and scratch is not None
        and scratch.numel() >= parts * part_stride
    )
    arguments = {
        "x": x,
        "weight": weight.matrix,
        "out": out,
        "num_rows": num_rows,
        "bias": bias,
        "rows": rows,
        "parts": scratch if are_apart else None,
        "num_inputs": weight.num_inputs,
        "num_features": num_features,
        "part_inputs": triton.cdiv(triton.cdiv(weight.num_inputs, config.inputs), parts)
        * config.inputs,
    }
    constants = {
        "GATED": is_gated,
        "ACCUMULATE": accumulate,
        "WHOLE_STEPS": weight.num_inputs % config.inputs == 0,
        "NUM_PARTS": 1 if are_apart else parts,
        "FEATURES": config.features,
        "INPUTS": config.inputs,
        "ROWS": tile_rows,
        "CD": compute_dtype(weight.dtype, arch),
    }
    grid = (triton.cdiv(num_features, config.features), row_tiles, parts if are_apart else 1)
    product = Launch(linear_kernel, grid, arguments, constants, config.num_warps, config.num_stages)
    if not are_apart:
        return [product]
    merge = {
        "parts": scratch,
        "out": out,
        "num_rows": num_rows,
        "bias": bias,
        "num_features": num_features,
        "part_stride": part_stride,
    }
    widths = {"ACCUMULATE": accumulate, "NUM_PARTS": parts, "FEATURES": MERGED_FEATURES}
    tiles = (triton.cdiv(num_features, MERGED_FEATURES), capacity)
    return [product, Launch(merge_parts_kernel, tiles, merge, widths)]
