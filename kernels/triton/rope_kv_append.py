"""rope_kv_append in Triton; contract: `kernels/rope_kv_append.py`.

Grid (N, groups of HEADS heads): q heads first, then k, then v, as they lie in a row of qkv. A head
is held as the two halves that rotate into one another and the rest that does not, so its norm is
summed in an order that depends on the head dim alone.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sdengine.kernels.triton.launch import Launch
from sdengine.kernels.triton.overlap import begin_early, can_overlap

HEADS = 8


@triton.jit
def _norm_scale(first, second, rest, eps, HEAD_DIM: tl.constexpr):
    squares = tl.sum(first * first, 1) + tl.sum(second * second, 1) + tl.sum(rest * rest, 1)
    return tl.rsqrt(squares / HEAD_DIM + eps)[:, None]


@triton.jit
def _gain(weight, at, mask):
    return tl.load(weight + at, mask=mask, other=0.0)[None, :]


@triton.jit
def rope_kv_append_kernel(
    qkv,
    cos_sin,
    positions,
    slots,
    kv_cache,
    num_rows,
    q_norm,
    k_norm,
    eps,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEADS: tl.constexpr,
    HALF_LANES: tl.constexpr,
    REST_LANES: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    row = tl.program_id(0)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    is_head = head < NUM_HEADS + 2 * NUM_KV_HEADS
    is_q = head < NUM_HEADS
    is_v = head >= NUM_HEADS + NUM_KV_HEADS
    turn = tl.arange(0, HALF_LANES)
    keep = 2 * HALF + tl.arange(0, REST_LANES)
    turns = turn < HALF
    keeps = keep < HEAD_DIM
    base = qkv + row.to(tl.int64) * ((NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM)
    source = base + head[:, None] * HEAD_DIM
    turn_mask = is_head[:, None] & turns[None, :]
    keep_mask = is_head[:, None] & keeps[None, :]
    # What a pass is was written before it began: that need not be waited for.
    live_rows = tl.load(num_rows)
    position = tl.load(positions + row, mask=row < live_rows, other=0)
    angle = cos_sin + position.to(tl.int64) * (2 * HALF)
    cosine = tl.load(angle + turn, mask=turns, other=0.0)[None, :]
    sine = tl.load(angle + HALF + turn, mask=turns, other=0.0)[None, :]
    slot = tl.load(slots + row, mask=row < live_rows, other=0)
    begin_early(OVERLAPS)
    if row >= live_rows:
        return

    first = tl.load(source + turn[None, :], mask=turn_mask, other=0.0)
    second = tl.load(source + HALF + turn[None, :], mask=turn_mask, other=0.0)
    rest = tl.load(source + keep[None, :], mask=keep_mask, other=0.0)

    if q_norm is not None:
        scale = _norm_scale(first, second, rest, eps, HEAD_DIM)
        first = tl.where(is_q[:, None], first * scale * _gain(q_norm, turn, turns), first)
        second = tl.where(is_q[:, None], second * scale * _gain(q_norm, HALF + turn, turns), second)
        rest = tl.where(is_q[:, None], rest * scale * _gain(q_norm, keep, keeps), rest)
    if k_norm is not None:
        is_k = (head >= NUM_HEADS) & (head < NUM_HEADS + NUM_KV_HEADS)
        scale = _norm_scale(first, second, rest, eps, HEAD_DIM)
        first = tl.where(is_k[:, None], first * scale * _gain(k_norm, turn, turns), first)
        second = tl.where(is_k[:, None], second * scale * _gain(k_norm, HALF + turn, turns), second)
        rest = tl.where(is_k[:, None], rest * scale * _gain(k_norm, keep, keeps), rest)

    turned_first = tl.where(is_v[:, None], first, first * cosine - second * sine)
    turned_second = tl.where(is_v[:, None], second, second * cosine + first * sine)

    tl.store(source + turn[None, :], turned_first, mask=turn_mask & is_q[:, None])
    tl.store(source + HALF + turn[None, :], turned_second, mask=turn_mask & is_q[:, None])
    tl.store(source + keep[None, :], rest, mask=keep_mask & is_q[:, None])

    # Head NUM_HEADS + i of a row is plane i of a block: keys first, then values.
    block = (slot // BLOCK_SIZE).to(tl.int64) * (2 * NUM_KV_HEADS)
    line = (block + head - NUM_HEADS) * BLOCK_SIZE + slot % BLOCK_SIZE
    target = kv_cache + line[:, None] * HEAD_DIM
    cached = kv_cache.dtype.element_ty
    is_kv = is_head & (head >= NUM_HEADS)
    turn_mask = is_kv[:, None] & turns[None, :]
    tl.store(target + turn[None, :], turned_first.to(cached), mask=turn_mask)
    tl.store(target + HALF + turn[None, :], turned_second.to(cached), mask=turn_mask)
    tl.store(target + keep[None, :], rest.to(cached), mask=is_kv[:, None] & keeps[None, :])


def launches(
    arch: int,
    *,
    qkv: torch.Tensor,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    kv_cache: torch.Tensor,
    num_rows: torch.Tensor,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    eps: float = 1e-6,
) -> list[Launch]:
    """One launch."""
    half = cos_sin.shape[2]
    arguments = {
        "qkv": qkv,
        "cos_sin": cos_sin,
        "positions": positions,
        "slots": slots,
        "kv_cache": kv_cache,
        "num_rows": num_rows,
        "q_norm": q_norm,
        "k_norm": k_norm,
        "eps": eps,
    }
    constants = {
        "OVERLAPS": can_overlap(arch),
        "NUM_HEADS": num_heads,
        "NUM_KV_HEADS": num_kv_heads,
        "HEAD_DIM": head_dim,
        "HALF": half,
        "BLOCK_SIZE": kv_cache.shape[3],
        "HEADS": HEADS,
        "HALF_LANES": triton.next_power_of_2(max(1, half)),
        "REST_LANES": triton.next_power_of_2(max(1, head_dim - 2 * half)),
    }
    groups = triton.cdiv(num_heads + 2 * num_kv_heads, HEADS)
    grid = (qkv.shape[0], groups)
    return [Launch(rope_kv_append_kernel, grid, arguments, constants, 2)]
