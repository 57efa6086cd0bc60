"""Microbenchmark cases of a model's shape: named, or read from a config.json.

Ops whose work depends on the model (matrices, heads, vocabulary) get cases of its sizes at the row
counts of decoding, a tree and more; ops on trees and lengths have the same cases for every model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

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

__all__ = ["NAMED", "KernelShape", "cases_of", "read_shape"]

ROW_COUNTS = (1, 8, 64)
CONTEXTS = (512, 2048)


@dataclass(frozen=True, slots=True)
class KernelShape:
    """Sizes of a Llama-family model that its kernels see."""

    hidden_size: int
    ffn_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int


NAMED = {
    "pair-target": KernelShape(256, 704, 8, 4, 2, 64, 2048),
    "pair-draft": KernelShape(128, 352, 2, 2, 1, 64, 2048),
    "68m": KernelShape(768, 3072, 2, 12, 12, 64, 32000),
    "1.1b": KernelShape(2048, 5632, 22, 32, 4, 64, 32000),
    "7b": KernelShape(4096, 11008, 32, 32, 32, 128, 32000),
    "8b": KernelShape(4096, 14336, 32, 32, 8, 128, 128256),
}


def read_shape(text: str) -> KernelShape:
    """A named shape, or that of a checkpoint's config.json (the file or its directory).

    Raises:
        CheckpointError: no such name, and no usable config there.
    """
    if text in NAMED:
        return NAMED[text]
    from sdengine.errors import CheckpointError
    from sdengine.model.config_file import load_model_config

    path = Path(text)
    directory = path.parent if path.name == "config.json" else path
    if not (directory / "config.json").is_file():
        raise CheckpointError.from_parts(
            f"--shape to be one of {', '.join(NAMED)}, or a config.json", repr(text)
        )
    config = load_model_config(directory)
    return KernelShape(
        config.hidden_size,
        config.intermediate_size,
        config.num_layers,
        config.num_heads,
        config.num_kv_heads,
        config.head_dim,
        config.vocab_size,
    )


def cases_of(op: str, shape: KernelShape) -> Callable[[], Iterator[Case]] | None:
    """Cases of an op for a model; None where the model plays no part."""
    make = _MAKERS.get(op)
    return None if make is None else lambda: make(shape)


def _linear(s: KernelShape) -> Iterator[Case]:
    heads = (s.num_heads + 2 * s.num_kv_heads) * s.head_dim
    matrices = (
        ("qkv", heads, s.hidden_size, False),
        ("o", s.hidden_size, s.num_heads * s.head_dim, False),
        ("gate_up", 2 * s.ffn_size, s.hidden_size, True),
        ("down", s.hidden_size, s.ffn_size, False),
        ("head", s.vocab_size, s.hidden_size, False),
    )
    for name, outputs, inputs, gated in matrices:
        dense = torch.randn(outputs, inputs) / inputs**0.5
        weight = pack_weight(dense, torch.bfloat16, interleave_gate_up=gated)
        for rows in ROW_COUNTS:
            yield linear.bench_case(weight, rows, f"{name} N={rows} K={inputs} M={outputs} bf16")


def _attention(s: KernelShape) -> Iterator[Case]:
    sizes = s.num_heads, s.num_kv_heads, s.head_dim, torch.bfloat16
    for context in CONTEXTS:
        for rows in ROW_COUNTS:
            yield tree_attention.bench_case(rows, context, *sizes)


_MAKERS: dict[str, Callable[[KernelShape], Iterator[Case]]] = {
    "embed": lambda s: (embed.bench_case(n, s.vocab_size, s.hidden_size) for n in ROW_COUNTS),
    "rms_norm": lambda s: (rms_norm.bench_case(n, s.hidden_size) for n in ROW_COUNTS),
    "linear": _linear,
    "rope_kv_append": lambda s: (
        rope_kv_append.bench_case(n, s.num_heads, s.num_kv_heads, s.head_dim) for n in ROW_COUNTS
    ),
    "tree_attention": _attention,
    "silu_and_mul": lambda s: (silu_and_mul.bench_case(n, s.ffn_size) for n in ROW_COUNTS),
    "sample": lambda s: (sample.bench_case(n, s.vocab_size) for n in ROW_COUNTS),
    "draft_topk": lambda s: (
        draft_topk.bench_case(noise, n, s.vocab_size, k)
        for noise, k in (("target", 16), ("fresh", 64))
        for n in ROW_COUNTS
    ),
    "kv_compact": lambda s: (
        kv_compact.bench_case(b, s.num_layers, s.num_kv_heads, s.head_dim) for b in (1, 8)
    ),
}
