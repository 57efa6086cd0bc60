"""rope_kv_append: optional head norm, rotary embedding of q and k, k and v into the cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from sdengine.kernels.backends import triton_kernel
from sdengine.kernels.cpu_library import load_cpu
from sdengine.kernels.number_format import NUMBER_FORMATS, format_code
from sdengine.kernels.rms_norm import normalised
from sdengine.kernels.spec import Case, Op, address, expect, expect_tensor

NAME = "rope_kv_append"


def check(
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
) -> None:
    """Contract.

    Args:
        qkv: [N, (H + 2 H_kv) D] float32: q heads, k heads, v heads; the q part is rotated in place,
            the k part holds unspecified values afterwards.
        cos_sin: [max_pos, 2, D_rot / 2] float32; pairs (i, i + D_rot / 2) are rotated, dimensions
            from D_rot on are left alone.
        positions: [N] int32, each in [0, max_pos).
        slots: [N] int32, block * block_size + offset; distinct among live rows.
        kv_cache: [P, 2, H_kv, block_size, D] float32, bfloat16 or float16 (rounded to
            nearest even), written at `slots`.
        num_rows: [1] int32.
        num_heads, num_kv_heads, head_dim: H, H_kv, D.
        q_norm, k_norm: [D] float32 weights of an RMS norm per head before the rotation, or None.
        eps: Of that norm.
    """
    width = (num_heads + 2 * num_kv_heads) * head_dim
    expect_tensor(NAME, "qkv", qkv, torch.float32, (None, width))
    rows = qkv.shape[0]
    expect_tensor(NAME, "cos_sin", cos_sin, torch.float32, (None, 2, None))
    rotary = 2 * cos_sin.shape[2]
    expect(NAME, rotary <= head_dim, f"cos_sin: expected D_rot <= {head_dim}, got {rotary}")
    expect_tensor(NAME, "positions", positions, torch.int32, (rows,))
    expect_tensor(NAME, "slots", slots, torch.int32, (rows,))
    cache_shape = (None, 2, num_kv_heads, None, head_dim)
    expect_tensor(NAME, "kv_cache", kv_cache, NUMBER_FORMATS, cache_shape)
    expect(NAME, kv_cache.shape[3] > 0, "kv_cache: expected blocks of a token or more, got 0")
    expect_tensor(NAME, "num_rows", num_rows, torch.int32, (1,))
    for name, norm in (("q_norm", q_norm), ("k_norm", k_norm)):
        if norm is not None:
            expect_tensor(NAME, name, norm, torch.float32, (head_dim,))


def rotate_pairs(heads: torch.Tensor, cos_sin: torch.Tensor) -> torch.Tensor:
    """Rotated copy of heads [n, heads, D] by cos_sin [n, 2, D_rot / 2]."""
    half = cos_sin.shape[-1]
    cosine, sine = cos_sin[:, None, 0], cos_sin[:, None, 1]
    first, second, rest = heads[..., :half], heads[..., half : 2 * half], heads[..., 2 * half :]
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine, rest], dim=-1)


def reference(
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
) -> None:
    """Norm, rotate, append; all rows at once."""
    n = int(num_rows)
    heads = qkv[:n].view(n, num_heads + 2 * num_kv_heads, head_dim)
    q, k, v = heads.split([num_heads, num_kv_heads, num_kv_heads], dim=1)
    angles = cos_sin[positions[:n].long()]
    k = rotate_pairs(k if k_norm is None else normalised(k, k_norm, eps), angles)
    q.copy_(rotate_pairs(q if q_norm is None else normalised(q, q_norm, eps), angles))
    block_size = kv_cache.shape[3]
    block, offset = slots[:n].long() // block_size, slots[:n].long() % block_size
    kv_cache[block, 0, :, offset] = k.to(kv_cache.dtype)
    kv_cache[block, 1, :, offset] = v.to(kv_cache.dtype)


def cpu(
    native: Any,
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
) -> None:
    """Appends the native launch."""
    load_cpu().rope_kv_append(
        native,
        address(qkv),
        address(cos_sin),
        address(positions),
        address(slots),
        address(kv_cache),
        format_code(kv_cache.dtype),
        address(num_rows),
        address(q_norm),
        address(k_norm),
        eps,
        num_heads,
        num_kv_heads,
        head_dim,
        cos_sin.shape[2],
        kv_cache.shape[3],
    )


def bench_cases() -> Iterator[Case]:
    """A small draft model, then a 1B shape: one row, a tree, a prefill chunk."""
    for rows, heads, kv_heads, dim in (
        (1, 4, 2, 64),
        (1, 32, 4, 64),
        (64, 32, 4, 64),
        (512, 32, 4, 64),
    ):
        yield bench_case(rows, heads, kv_heads, dim)


def bench_case(rows: int, heads: int, kv_heads: int, dim: int) -> Case:
    """Consecutive positions of one sequence, at most 640, into a bfloat16 cache."""
    width = (heads + 2 * kv_heads) * dim
    args = {
        "qkv": torch.randn(rows, width),
        "cos_sin": torch.rand(1024, 2, dim // 2),
        "positions": torch.arange(rows, dtype=torch.int32),
        "slots": torch.arange(rows, dtype=torch.int32),
        "kv_cache": torch.zeros(40, 2, kv_heads, 16, dim, dtype=torch.bfloat16),
        "num_rows": torch.tensor([rows], dtype=torch.int32),
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": dim,
    }
    moved = rows * (8 * (heads + kv_heads) * dim + 8 * kv_heads * dim)
    label = f"N={rows} H={heads} H_kv={kv_heads} D={dim} bf16"
    return Case(label, args, moved, rows * (heads + kv_heads) * dim * 3)


OP = Op(NAME, check, reference, ("qkv", "kv_cache"), cpu, triton_kernel(NAME), bench_cases)
