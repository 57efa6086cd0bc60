"""One forward pass of a Llama-family decoder, described as launches on static buffers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from sdengine.cache.kv_cache import KVCache
from sdengine.kernels.programs.memory import Memory, StagedMemory
from sdengine.kernels.programs.program import Program
from sdengine.kernels.row_batch import RowBatch
from sdengine.kernels.tree_attention import attention_scratch, device_scratch_floats
from sdengine.model.config import ModelConfig
from sdengine.runner.weights import LayerWeights, ModelWeights

NUM_COUNTERS = 1 << 14
"""Tiles of a product whose parts a device may compute side by side."""


@dataclass(frozen=True, slots=True)
class Activations:
    """Scratch of one model's forward pass over at most N rows.

    Shared by all layers and by all passes of the model, because they run one after another. What
    only a product reads is stored as the product would round it: half of the bytes that a core's
    cache has to fetch from another's.

    Args:
        normed: where a launch of its own leaves normalised rows for the products of a device; None
            on a CPU, whose products normalise rows themselves.
    """

    hidden: torch.Tensor  # [N, E] float32
    normed: torch.Tensor | None  # [N, E] of the weights' dtype
    qkv: torch.Tensor  # [N, (H + 2 H_kv) D] float32
    attended: torch.Tensor  # [N, H D]
    ffn: torch.Tensor  # [N, F] as `attended`
    scratch: torch.Tensor  # float32, of attention, and of the products between two of them
    counters: torch.Tensor  # int32, zeros: of those products

    @classmethod
    def allocate(
        cls,
        weights: ModelWeights,
        num_rows: int,
        max_context: int,
        num_threads: int,
        memory: Memory,
    ) -> Activations:
        """Buffers for `num_rows` rows attending to at most `max_context` keys."""
        config = weights.config
        shape = (num_rows, config.num_heads, config.head_dim, max_context)
        is_staged = isinstance(memory, StagedMemory)

        def operand(width: int) -> torch.Tensor:
            return memory.empty(num_rows, width, dtype=weights.layers[0].o.input_dtype)

        return cls(
            hidden=memory.empty(num_rows, config.hidden_size),
            normed=operand(config.hidden_size) if is_staged else None,
            qkv=memory.empty(num_rows, config.qkv_rows),
            attended=operand(config.num_heads * config.head_dim),
            ffn=operand(config.intermediate_size),
            scratch=memory.empty(device_scratch_floats(*shape))
            if is_staged
            else attention_scratch(*shape, num_threads),
            counters=memory.zeros(NUM_COUNTERS if is_staged else 0, dtype=torch.int32),
        )

    def first(self, num_rows: int) -> Activations:
        """The first rows of every buffer."""
        return Activations(
            self.hidden[:num_rows],
            None if self.normed is None else self.normed[:num_rows],
            self.qkv[:num_rows],
            self.attended[:num_rows],
            self.ffn[:num_rows],
            self.scratch,
            self.counters,
        )


@dataclass(frozen=True, slots=True)
class Spans:
    """Packed rows of several sequences and where their keys and values lie.

    Args:
        rows: the rows, grouped by sequence.
        block_tables: [B, P_max] int32, logical block -> physical block.
    """

    rows: RowBatch
    block_tables: torch.Tensor

    def first(self, num_rows: int) -> Spans:
        """The same with room for fewer rows."""
        return Spans(self.rows.first(num_rows), self.block_tables)


@dataclass(frozen=True, slots=True)
class Logits:
    """Where a pass leaves its logits: row i belongs to packed row `rows[i]`.

    Args:
        values: [R, V] float32, written.
        rows: [R] int32; None: row i is packed row i.
        num_rows: [1] int32.
    """

    values: torch.Tensor
    rows: torch.Tensor | None
    num_rows: torch.Tensor

    def first(self, num_rows: int) -> Logits:
        """The same with room for fewer rows."""
        rows = None if self.rows is None else self.rows[:num_rows]
        return Logits(self.values[:num_rows], rows, self.num_rows)


def describe_forward(
    program: Program,
    weights: ModelWeights,
    cache: KVCache,
    spans: Spans,
    buffers: Activations,
    logits: Logits | None,
    row_limit: int | None,
) -> None:
    """Appends the launches of one pass: tokens of `spans` in, keys and values into `cache`, logits
    out.

    Args:
        program: gets the launches.
        weights: the model.
        cache: its KV cache, written at the batch's slots.
        spans: rows to compute, by sequence.
        buffers: scratch for at least as many rows.
        logits: rows whose logits are wanted; None computes keys and values only.
        row_limit: most rows of this model's passes, of the program's limits; None: as many as
            `spans` holds.
    """
    if row_limit is not None:
        spans, buffers = spans.first(row_limit), buffers.first(row_limit)
        logits = None if logits is None else logits.first(row_limit)
    batch = spans.rows
    num_rows = batch.num_rows
    program.launch(
        "embed", tokens=batch.tokens, weight=weights.embed, out=buffers.hidden, num_rows=num_rows
    )
    for index, layer in enumerate(weights.layers):
        _describe_attention(program, weights, index, cache.layer(index), spans, buffers)
        _describe_mlp(program, weights.config, layer, batch, buffers)
    if logits is None:
        return
    normed = _normed(program, weights.config, weights.final_norm, batch, buffers)
    if logits.rows is None:
        normed["x"] = normed["x"][: logits.values.shape[0]]
    program.launch(
        "linear",
        **normed,
        weight=weights.lm_head,
        out=logits.values,
        num_rows=logits.num_rows,
        rows=logits.rows,
    )


def _normed(
    program: Program,
    config: ModelConfig,
    weight: torch.Tensor,
    batch: RowBatch,
    buffers: Activations,
) -> dict[str, Any]:
    """A product's argument x, normalised hidden states: by the product itself or by a launch before
    it."""
    if buffers.normed is None:
        return {"x": buffers.hidden, "norm": weight, "eps": config.rms_norm_eps}
    program.launch(
        "rms_norm",
        x=buffers.hidden,
        weight=weight,
        out=buffers.normed,
        num_rows=batch.num_rows,
        eps=config.rms_norm_eps,
    )
    return {"x": buffers.normed}


def _describe_attention(
    program: Program,
    weights: ModelWeights,
    index: int,
    cache: torch.Tensor,
    spans: Spans,
    buffers: Activations,
) -> None:
    config, layer, batch = weights.config, weights.layers[index], spans.rows
    heads = {
        "num_heads": config.num_heads,
        "num_kv_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
    }
    normed = _normed(program, config, layer.attn_norm, batch, buffers)
    program.launch(
        "linear",
        **normed,
        weight=layer.qkv,
        out=buffers.qkv,
        num_rows=batch.num_rows,
        bias=layer.qkv_bias,
        scratch=buffers.scratch,
        counters=buffers.counters,
    )
    program.launch(
        "rope_kv_append",
        qkv=buffers.qkv,
        cos_sin=weights.cos_sin,
        positions=batch.positions,
        slots=batch.slots,
        kv_cache=cache,
        num_rows=batch.num_rows,
        q_norm=layer.q_norm,
        k_norm=layer.k_norm,
        eps=config.rms_norm_eps,
        **heads,
    )
    program.launch(
        "tree_attention",
        qkv=buffers.qkv,
        kv_cache=cache,
        block_tables=spans.block_tables,
        batch=batch,
        out=buffers.attended,
        scratch=buffers.scratch,
        scale=config.head_dim**-0.5,
        window=config.layer_windows[index] or 0,
        max_keys=program.limits.keys,
        max_seqs=program.limits.seqs,
        **heads,
    )
    program.launch(
        "linear",
        x=buffers.attended,
        weight=layer.o,
        out=buffers.hidden,
        num_rows=batch.num_rows,
        bias=layer.o_bias,
        accumulate=True,
        scratch=buffers.scratch,
        counters=buffers.counters,
    )


def _describe_mlp(
    program: Program,
    config: ModelConfig,
    layer: LayerWeights,
    batch: RowBatch,
    buffers: Activations,
) -> None:
    normed = _normed(program, config, layer.mlp_norm, batch, buffers)
    program.launch(
        "linear",
        **normed,
        weight=layer.gate_up,
        out=buffers.ffn,
        num_rows=batch.num_rows,
        bias=layer.gate_up_bias,
        activation="silu_gate",
    )
    program.launch(
        "linear",
        x=buffers.ffn,
        weight=layer.down,
        out=buffers.hidden,
        num_rows=batch.num_rows,
        bias=layer.down_bias,
        accumulate=True,
        scratch=buffers.scratch,
        counters=buffers.counters,
    )
