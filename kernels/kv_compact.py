"""kv_compact: gathers the keys and values of the accepted path in place, in every layer.

logical index   ... n-1 | n   n+1 n+2 n+3 n+4 n+5 | free    tree nodes 1..6 live at n..n+5
accepted path             ^       ^       ^                 source = [n, n+2, n+4]
afterwards      ... n-1 | n   n+2 n+4 | free                dst_start = n
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from sdengine.kernels.backends import triton_kernel
from sdengine.kernels.cpu_library import cpu_op
from sdengine.kernels.cuda_library import cuda_op
from sdengine.kernels.move_plan import MovePlan, expect_move_plan
from sdengine.kernels.number_format import NUMBER_FORMATS
from sdengine.kernels.spec import Case, Op, expect, expect_tensor

NAME = "kv_compact"


def check(
    *,
    kv_cache: torch.Tensor,
    block_tables: torch.Tensor,
    moves: MovePlan,
    num_seqs: torch.Tensor,
) -> None:
    """Contract.

    Args:
        kv_cache: [L, P, 2, H_kv, block_size, D] float32, bfloat16 or float16, all layers of
            one model; changed in place.
        block_tables: [B, P_max] int32, logical to physical block.
        moves: MovePlan [B, M], read: the tokens to keep.
        num_seqs: [1] int32.
    """
    expect_tensor(NAME, "kv_cache", kv_cache, NUMBER_FORMATS, (None, None, 2, None, None, None))
    expect(NAME, kv_cache.shape[4] > 0, "kv_cache: expected blocks of a token or more, got 0")
    expect_tensor(NAME, "block_tables", block_tables, torch.int32, (None, None))
    expect_move_plan(NAME, "moves", moves, block_tables.shape[0])
    expect_tensor(NAME, "num_seqs", num_seqs, torch.int32, (1,))


def reference(
    *,
    kv_cache: torch.Tensor,
    block_tables: torch.Tensor,
    moves: MovePlan,
    num_seqs: torch.Tensor,
) -> None:
    """Gathers all sources of a sequence before it writes any destination."""
    block_size = kv_cache.shape[4]
    for b in range(int(num_seqs)):
        count = int(moves.num_moves[b])
        source = moves.source[b, :count].long()
        target = int(moves.dst_start[b]) + torch.arange(count)
        table = block_tables[b].long()
        kept = kv_cache[:, table[source // block_size], :, :, source % block_size].clone()
        kv_cache[:, table[target // block_size], :, :, target % block_size] = kept


def bench_case(sequences: int, layers: int, kv_heads: int, dim: int) -> Case:
    """Four accepted nodes of a scattered path."""
    cache = torch.zeros(layers, sequences * 32, 2, kv_heads, 16, dim, dtype=torch.bfloat16)
    moves = MovePlan.allocate(sequences, 4)
    moves.source[:] = torch.tensor([401, 407, 420, 455])
    moves.dst_start[:], moves.num_moves[:] = 400, 4
    args = {
        "kv_cache": cache,
        "block_tables": torch.arange(sequences * 32, dtype=torch.int32).view(sequences, 32),
        "moves": moves,
        "num_seqs": torch.tensor([sequences], dtype=torch.int32),
    }
    moved = sequences * 4 * 2 * layers * 2 * kv_heads * dim * 2
    return Case(f"B={sequences} moves=4 L={layers} H_kv={kv_heads} D={dim} bf16", args, moved)


def bench_cases() -> Iterator[Case]:
    """A small draft model and a 1B shape."""
    for sequences, layers, kv_heads, dim in ((1, 2, 2, 64), (1, 22, 4, 64), (8, 22, 4, 64)):
        yield bench_case(sequences, layers, kv_heads, dim)


OP = Op(
    NAME,
    check,
    reference,
    ("kv_cache",),
    cpu_op(NAME),
    backends={**triton_kernel(NAME), "cuda": cuda_op(NAME, check)},
    bench_cases=bench_cases,
)
