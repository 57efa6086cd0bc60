"""Microbenchmark cases of a model's shape.

Ops whose work depends on the model (matrices, heads, vocabulary) get cases of its sizes at the row
counts of decoding, a tree and more; ops on trees and lengths have the same cases for every model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from benchmarks.shapes import Shape
from sdengine.kernels import (
    draft_topk,
    embed,
    kv_compact,
    linear,
    rms_norm,
    rope_kv_append,
    sample,
    silu_and_mul,
    tree_attention,
)
from sdengine.kernels.packed_weight import pack_weight
from sdengine.kernels.spec import Case

__all__ = ["cases_of"]

ROW_COUNTS = (1, 8, 64)
CONTEXTS = (512, 2048)


def cases_of(op: str, shape: Shape) -> Callable[[], Iterator[Case]] | None:
    """Cases of an op for a model; None where the model plays no part."""
    make = _MAKERS.get(op)
    return None if make is None else lambda: make(shape)


def _linear(s: Shape) -> Iterator[Case]:
    matrices = (
        ("qkv", s.qkv_size, s.hidden_size, False),
        ("o", s.hidden_size, s.num_attention_heads * s.head_dim, False),
        ("gate_up", 2 * s.intermediate_size, s.hidden_size, True),
        ("down", s.hidden_size, s.intermediate_size, False),
        ("head", s.vocab_size, s.hidden_size, False),
    )
    for name, outputs, inputs, gated in matrices:
        dense = torch.randn(outputs, inputs) / inputs**0.5
        weight = pack_weight(dense, torch.bfloat16, interleave_gate_up=gated)
        for rows in ROW_COUNTS:
            yield linear.bench_case(weight, rows, f"{name} N={rows} K={inputs} M={outputs} bf16")


def _attention(s: Shape) -> Iterator[Case]:
    sizes = s.num_attention_heads, s.num_key_value_heads, s.head_dim, torch.bfloat16
    for context in CONTEXTS:
        for rows in ROW_COUNTS:
            yield tree_attention.bench_case(rows, context, *sizes)


_MAKERS: dict[str, Callable[[Shape], Iterator[Case]]] = {
    "embed": lambda s: (embed.bench_case(n, s.vocab_size, s.hidden_size) for n in ROW_COUNTS),
    "rms_norm": lambda s: (rms_norm.bench_case(n, s.hidden_size) for n in ROW_COUNTS),
    "linear": _linear,
    "rope_kv_append": lambda s: (
        rope_kv_append.bench_case(n, s.num_attention_heads, s.num_key_value_heads, s.head_dim)
        for n in ROW_COUNTS
    ),
    "tree_attention": _attention,
    "silu_and_mul": lambda s: (silu_and_mul.bench_case(n, s.intermediate_size) for n in ROW_COUNTS),
    "sample": lambda s: (sample.bench_case(n, s.vocab_size) for n in ROW_COUNTS),
    "draft_topk": lambda s: (
        draft_topk.bench_case(noise, n, s.vocab_size, k)
        for noise, k in (("target", 16), ("fresh", 64))
        for n in ROW_COUNTS
    ),
    "kv_compact": lambda s: (
        kv_compact.bench_case(b, s.num_hidden_layers, s.num_key_value_heads, s.head_dim)
        for b in (1, 8)
    ),
}
