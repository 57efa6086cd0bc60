"""The large model's tensors, planned one layer at a time and made a block of rows at a time.

What the small model has is placed; the rest is random where it cannot matter and zero where it
would: new query heads, FFN units and layers compute something, and the columns (or whole
projections) that would add it to the stream are zero.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from benchmarks.shapes import Shape
from benchmarks.upscale.placement import Placement
from benchmarks.upscale.residual import ResidualEmbedding
from benchmarks.upscale.safetensors_writer import PlannedTensor
from sdengine.model.checkpoint import Checkpoint

__all__ = ["LargeModel"]

BLOCK_ELEMENTS = 1 << 22
WORD_VALUES = 4  # 16-bit random numbers in a 64-bit one


@dataclass(frozen=True, slots=True)
class LargeModel:
    """Plans the tensors of the enlarged model.

    Args:
        checkpoint: the small model.
        shape: of the large one.
        placement: of the small model in it.
        residual: likewise of its stream.
        surplus: weight of surplus vocabulary rows in the constant channel, negated.
        seed: of everything random.
    """

    checkpoint: Checkpoint
    shape: Shape
    placement: Placement
    residual: ResidualEmbedding
    surplus: float
    seed: int

    def shards(self) -> Iterator[list[PlannedTensor]]:
        """Tensors file by file: embedding, layers, output."""
        config = self.checkpoint.config
        vocabulary = torch.arange(config.vocab_size)
        embed = self.residual.writing(self._small("embed").T, 0, self.shape.hidden_size).T
        constant = self.residual.constant
        yield [
            self._reading(
                "model.embed_tokens.weight",
                self.shape.vocab_size,
                vocabulary,
                embed,
                channel=None if constant is None else (constant, constant),
            )
        ]
        for layer in range(self.shape.num_hidden_layers):
            yield [*self._attention(layer), *self._mlp(layer)]
        head = self._small("embed" if config.tie_word_embeddings else "lm_head")
        yield [
            self._ones("model.norm.weight"),
            self._reading(
                "lm_head.weight",
                self.shape.vocab_size,
                vocabulary,
                self.residual.reading(head, self._small("final_norm")),
                channel=None if constant is None else (0.0, -self.surplus),
            ),
        ]

    def _attention(self, layer: int) -> Iterator[PlannedTensor]:
        shape, place = self.shape, self.placement
        prefix = f"model.layers.{layer}."
        heads = shape.num_attention_heads * shape.head_dim
        kv_heads = shape.num_key_value_heads * shape.head_dim
        reads, nothing = self._small_reads(layer, "attn_norm", "qkv")
        query, key, value = reads or (nothing, nothing, nothing)
        query_rows, kv_rows = place.query_rows[: len(query)], place.kv_rows
        silent = place.silent_key_rows
        if reads is None:
            kv_rows = silent = place.kv_rows[:0]
        else:
            key, value = key[place.kv_sources], value[place.kv_sources]
        # Scores are divided by sqrt(head_dim), which has grown.
        query = query * math.sqrt(place.head_factor)
        yield self._ones(prefix + "input_layernorm.weight")
        attention = prefix + "self_attn."
        yield self._reading(attention + "q_proj.weight", heads, query_rows, query)
        yield self._reading(attention + "k_proj.weight", kv_heads, kv_rows, key, silent=silent)
        yield self._reading(attention + "v_proj.weight", kv_heads, kv_rows, value)
        yield self._writing(attention + "o_proj.weight", heads, query_rows, layer, "o")

    def _mlp(self, layer: int) -> Iterator[PlannedTensor]:
        width = self.shape.intermediate_size
        prefix = f"model.layers.{layer}."
        reads, nothing = self._small_reads(layer, "mlp_norm", "gate_up")
        gate, up = reads or (nothing, nothing)
        rows = torch.arange(len(gate))
        yield self._ones(prefix + "post_attention_layernorm.weight")
        yield self._reading(prefix + "mlp.gate_proj.weight", width, rows, gate)
        yield self._reading(prefix + "mlp.up_proj.weight", width, rows, up)
        yield self._writing(prefix + "mlp.down_proj.weight", width, rows, layer, "down")

    def _small(self, name: str) -> torch.Tensor:
        device = self.residual.basis.device
        weight = self.checkpoint.weight(name, torch.float64, check_finite=True)
        return weight.to(device, copy=True)

    def _small_reads(
        self, layer: int, norm: str, name: str
    ) -> tuple[list[torch.Tensor] | None, torch.Tensor]:
        """The layer's matrices that read the stream, widened; None where the small model ends; and
        a matrix of no rows.
        """
        nothing = self.residual.basis.new_empty(0, self.shape.hidden_size)
        if layer >= self.checkpoint.config.num_layers:
            return None, nothing
        norm_weight = self._small(f"layers.{layer}.{norm}")
        parts = self.checkpoint.parts(f"layers.{layer}.{name}", torch.float64, check_finite=True)
        device = norm_weight.device
        return [self.residual.reading(part.to(device), norm_weight) for part in parts], nothing

    def _ones(self, name: str) -> PlannedTensor:
        size = self.shape.hidden_size
        return PlannedTensor(name, (size,), lambda: iter([torch.ones(size)]))

    def _reading(
        self,
        name: str,
        num_rows: int,
        rows: torch.Tensor,
        values: torch.Tensor,
        *,
        silent: torch.Tensor | None = None,
        channel: tuple[float, float] | None = None,
    ) -> PlannedTensor:
        """A matrix [num_rows, E'] of random rows, of which `rows` are `values` and `silent` zero.

        Args:
            channel: what the constant channel holds in placed rows and in the others.
        """
        width = self.shape.hidden_size
        is_placed = torch.zeros(num_rows, dtype=torch.bool)
        is_placed[rows] = True
        source = torch.zeros(num_rows, dtype=torch.int64)
        source[rows] = torch.arange(len(rows))

        def blocks() -> Iterator[torch.Tensor]:
            noise = _Noise(self.seed, name, values.device)
            for start, end in _ranges(num_rows, width):
                block = noise.uniform(end - start, width)
                inside = is_placed[start:end].nonzero().flatten()
                chosen = values[source[start + inside].to(block.device)]
                block[inside.to(block.device)] = chosen.to(block.dtype)
                if silent is not None:
                    zeros = silent[(silent >= start) & (silent < end)] - start
                    block[zeros.to(block.device)] = 0.0
                if channel is not None:
                    block[:, -1] = channel[1]
                    block[inside.to(block.device), -1] = channel[0]
                yield block

        return PlannedTensor(name, (num_rows, width), blocks)

    def _writing(
        self, name: str, num_columns: int, columns: torch.Tensor, layer: int, small_name: str
    ) -> PlannedTensor:
        """A matrix [E', num_columns] that is zero but for `columns`."""
        height = self.shape.hidden_size
        is_new = layer >= self.checkpoint.config.num_layers
        weight = None if is_new else self._small(f"layers.{layer}.{small_name}")
        device = self.residual.basis.device

        def blocks() -> Iterator[torch.Tensor]:
            for start, end in _ranges(height, num_columns):
                block = torch.zeros(end - start, num_columns, device=device)
                if weight is not None:
                    rows = self.residual.writing(weight, start, end)
                    block[:, columns.to(device)] = rows.to(block.dtype)
                yield block

        return PlannedTensor(name, (height, num_columns), blocks)


class _Noise:
    """Random weights of one tensor: seeded by its name, the same however many tensors there are."""

    def __init__(self, seed: int, name: str, device: torch.device) -> None:
        digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
        self._generator = torch.Generator(device)
        self._generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        self._device = device

    def uniform(self, num_rows: int, width: int) -> torch.Tensor:
        """[num_rows, width] of variance 1 / width.

        Four numbers from each 64-bit one: normal deviates take ten times as long, most of the time
        of the whole program.
        """
        count = num_rows * width
        words = torch.empty(-(-count // WORD_VALUES), dtype=torch.int64, device=self._device)
        words.random_(-(1 << 63), None, generator=self._generator)
        values = words.view(torch.int16)[:count].view(num_rows, width)
        return values.float().mul_(math.sqrt(3.0 / width) / (1 << 15))


def _ranges(num_rows: int, width: int) -> Iterator[tuple[int, int]]:
    step = max(1, BLOCK_ELEMENTS // width)
    for start in range(0, num_rows, step):
        yield start, min(start + step, num_rows)
