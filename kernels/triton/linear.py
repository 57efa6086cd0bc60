"""linear in Triton; contract: `kernels/linear.py`. The weight is a `DenseWeight`.

Grid (tiles of features, tiles of rows): a program computes features x rows, W being the M axis of
the product and rows its N axis. So a weight is read once for up to max_rows rows and a tail, few
rows waste little of a tensor core (N is 16 then), and the instruction, the order over K and hence
the bits of an element are the same for every number of rows. The tail is a second product with the
same tile of W: 65 rows are 64 and 16, not twice 64.

A weight with few tiles leaves multiprocessors without work. K is cut into a fixed number of parts
for those shapes (`linear_tiles.SPLITS`), by shape alone: each part is summed up for itself, and the
parts are added in order. Few rows have a program per part, of which the one that ends last adds up
all; many rows have tiles enough, and a program adds up its own parts. The bits are the same.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sdengine.kernels.dense_weight import DenseWeight
from sdengine.kernels.spec import expect
from sdengine.kernels.triton import linear_tiles as tiles
from sdengine.kernels.triton.launch import Launch, compute_dtype
from sdengine.kernels.triton.overlap import begin_early, can_overlap, let_next_begin


@triton.jit
def _sources(rows, row, is_live):
    """Rows of x that a tile reads."""
    if rows is None:
        return row.to(tl.int64)
    else:
        return tl.load(rows + row, mask=is_live, other=0).to(tl.int64)


@triton.jit
def _finish(
    acc,
    up,
    out,
    bias,
    row,
    is_live,
    feature,
    num_features,
    GATED: tl.constexpr,
    ACCUMULATE: tl.constexpr,
):
    """Stores a tile [features, rows] with bias, gate and residual."""
    is_feature = feature < num_features
    mask = is_feature[:, None] & is_live[None, :]
    if bias is not None:
        acc += tl.load(bias + feature, mask=is_feature, other=0.0)[:, None]
    if GATED:
        if bias is not None:
            up += tl.load(bias + num_features + feature, mask=is_feature, other=0.0)[:, None]
        acc = acc / (1.0 + tl.exp(-acc)) * up
    at_out = out + (row.to(tl.int64) * num_features)[None, :] + feature[:, None]
    if ACCUMULATE:
        acc += tl.load(at_out, mask=mask, other=0.0)
    tl.store(at_out, acc, mask=mask)


@triton.jit
def _at_part(parts, part, row, feature, num_features, part_stride):
    """Where a tile [features, rows] of a part lies."""
    place = (row.to(tl.int64) * num_features)[None, :] + feature[:, None]
    return parts + tl.cast(part, tl.int64) * part_stride + place


@triton.jit
def _sum_of_parts(parts, row, is_live, feature, num_features, part_stride, shape: tl.constexpr):
    """All parts of a tile, added in order. Others wrote them: not what a nearer cache may hold."""
    mask = (feature < num_features)[:, None] & is_live[None, :]
    acc = tl.zeros(shape, tl.float32)
    for part in range(0, tl.num_programs(2)):
        at = _at_part(parts, part, row, feature, num_features, part_stride)
        acc += tl.load(at, mask=mask, other=0.0, cache_modifier=".cg")
    return acc


@triton.jit
def _load_step(at, start, step, is_live, num_inputs, WHOLE_STEPS: tl.constexpr):
    """One step of x, [inputs, rows], zero where there is none."""
    if WHOLE_STEPS:
        return tl.load(at + start, mask=is_live[None, :], other=0.0)
    else:
        in_step = start + step < num_inputs
        return tl.load(at + start, mask=in_step[:, None] & is_live[None, :], other=0.0)


@triton.jit
def _load_weight(at, start, step, num_inputs, WHOLE_STEPS: tl.constexpr):
    """One step of W, [features, inputs]."""
    if WHOLE_STEPS:
        return tl.load(at + start)
    else:
        return tl.load(at + start, mask=(start + step < num_inputs)[None, :], other=0.0)


@triton.jit
def linear_kernel(
    x,
    weight,
    out,
    num_rows,
    bias,
    rows,
    parts,
    counters,
    num_inputs,
    num_features,
    part_inputs,
    part_stride,
    GATED: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    WHOLE_STEPS: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    FEATURES: tl.constexpr,
    INPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    TAIL: tl.constexpr,
    CD: tl.constexpr,
    OVERLAPS: tl.constexpr,
    LATE: tl.constexpr,
):
    feature = tl.program_id(0) * FEATURES + tl.arange(0, FEATURES)
    step = tl.arange(0, INPUTS)
    # Features past the last read the last one again, which needs no mask, and are not stored.
    line = tl.minimum(feature, num_features - 1).to(tl.int64)
    at_weight = weight + (line * num_inputs)[:, None] + step[None, :]
    at_up = weight + ((line + num_features) * num_inputs)[:, None] + step[None, :]
    first_input = tl.program_id(2) * part_inputs
    # What a pass is was written before it began: that need not be waited for.
    first = tl.program_id(1) * (ROWS + TAIL)
    live_rows = tl.load(num_rows)
    row = first + tl.arange(0, ROWS)
    is_live = row < live_rows
    at_x = x + (_sources(rows, row, is_live) * num_inputs)[None, :] + step[:, None]
    if TAIL > 0:
        tail_row = first + ROWS + tl.arange(0, TAIL)
        is_tail = tail_row < live_rows
        at_tail = x + (_sources(rows, tail_row, is_tail) * num_inputs)[None, :] + step[:, None]
    begin_early(OVERLAPS, LATE)
    if first >= live_rows:
        return

    acc = tl.zeros([FEATURES, ROWS], tl.float32)
    up = tl.zeros([FEATURES, ROWS], tl.float32)
    if TAIL > 0:
        tail_acc = tl.zeros([FEATURES, TAIL], tl.float32)
        tail_up = tl.zeros([FEATURES, TAIL], tl.float32)
    for own in range(0, NUM_PARTS):
        part = tl.zeros([FEATURES, ROWS], tl.float32)
        if TAIL > 0:
            tail_part = tl.zeros([FEATURES, TAIL], tl.float32)
        begin = first_input + own * part_inputs
        for start in tl.range(begin, tl.minimum(begin + part_inputs, num_inputs), INPUTS):
            w = _load_weight(at_weight, start, step, num_inputs, WHOLE_STEPS).to(CD)
            xs = _load_step(at_x, start, step, is_live, num_inputs, WHOLE_STEPS).to(CD)
            part = tl.dot(w, xs, part, input_precision="ieee")
            if TAIL > 0:
                ts = _load_step(at_tail, start, step, is_tail, num_inputs, WHOLE_STEPS).to(CD)
                tail_part = tl.dot(w, ts, tail_part, input_precision="ieee")
            if GATED:
                w_up = _load_weight(at_up, start, step, num_inputs, WHOLE_STEPS).to(CD)
                up = tl.dot(w_up, xs, up, input_precision="ieee")
                if TAIL > 0:
                    tail_up = tl.dot(w_up, ts, tail_up, input_precision="ieee")
        acc += part
        if TAIL > 0:
            tail_acc += tail_part

    if LATE:
        let_next_begin(OVERLAPS)
    if parts is not None:
        own = tl.program_id(2)
        is_feature = (feature < num_features)[:, None]
        at = _at_part(parts, own, row, feature, num_features, part_stride)
        tl.store(at, acc, mask=is_feature & is_live[None, :])
        if TAIL > 0:
            at = _at_part(parts, own, tail_row, feature, num_features, part_stride)
            tl.store(at, tail_acc, mask=is_feature & is_tail[None, :])
        tl.debug_barrier()  # the count says that all threads have written
        counter = counters + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        if tl.atomic_add(counter, 1, sem="acq_rel") < tl.num_programs(2) - 1:
            return
        tl.store(counter, 0)
        acc = _sum_of_parts(
            parts, row, is_live, feature, num_features, part_stride, [FEATURES, ROWS]
        )
        if TAIL > 0:
            tail_acc = _sum_of_parts(
                parts, tail_row, is_tail, feature, num_features, part_stride, [FEATURES, TAIL]
            )
    _finish(acc, up, out, bias, row, is_live, feature, num_features, GATED, ACCUMULATE)
    if TAIL > 0:
        _finish(
            tail_acc, tail_up, out, bias, tail_row, is_tail, feature, num_features,
            GATED, ACCUMULATE,
        )  # fmt: skip


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
    norm: torch.Tensor | None = None,
    eps: float = 0.0,
    scratch: torch.Tensor | None = None,
    counters: torch.Tensor | None = None,
) -> list[Launch]:
    """One launch.

    Raises:
        ValueError: The weight is packed for the CPU, or rows are to be normalised.
    """
    expect(
        "linear",
        norm is None,
        f"norm: expected None for backend 'triton', got a norm of {weight.num_inputs} inputs with "
        f"eps {eps}; launch rms_norm before",
    )
    expect(
        "linear",
        isinstance(weight, DenseWeight),
        f"weight: expected a DenseWeight for backend 'triton', got {type(weight).__name__}",
    )
    capacity, num_features = out.shape
    is_gated = activation == "silu_gate"
    configs = tiles.configs_of(arch, weight.dtype == torch.float32, is_gated)
    parts = 1 if is_gated else tiles.num_parts(arch, num_features, weight.num_inputs)
    tile_rows, tail = tiles.tiling(capacity, configs[-1].max_rows)
    config = tiles.config_of(configs, tile_rows + tail, num_features, parts)
    row_tiles = triton.cdiv(capacity, tile_rows + tail)
    part_stride = row_tiles * (tile_rows + tail) * num_features
    are_apart = (
        parts > 1
        and capacity <= tiles.MAX_PART_ROWS
        and scratch is not None
        and scratch.numel() >= parts * part_stride
        and counters is not None
        and counters.numel() >= row_tiles * triton.cdiv(num_features, config.features)
    )
    arguments = {
        "x": x,
        "weight": weight.matrix,
        "out": out,
        "num_rows": num_rows,
        "bias": bias,
        "rows": rows,
        "parts": scratch if are_apart else None,
        "counters": counters if are_apart else None,
        "num_inputs": weight.num_inputs,
        "num_features": num_features,
        "part_inputs": tiles.part_inputs(weight.num_inputs, parts),
        "part_stride": part_stride,
    }
    constants = {
        "GATED": is_gated,
        "ACCUMULATE": accumulate,
        "WHOLE_STEPS": weight.num_inputs % config.inputs == 0,
        "NUM_PARTS": 1 if are_apart else parts,
        "FEATURES": config.features,
        "INPUTS": config.inputs,
        "ROWS": tile_rows,
        "TAIL": tail,
        "CD": compute_dtype(weight.dtype, arch),
        "OVERLAPS": can_overlap(arch),
        "LATE": is_gated,
    }
    grid = (triton.cdiv(num_features, config.features), row_tiles, parts if are_apart else 1)
    product = Launch(
        linear_kernel,
        grid,
        arguments,
        constants,
        config.num_warps,
        tiles.num_stages(config, tile_rows + tail, x.element_size(), 1 + is_gated, arch),
    )
    return [product]
