"""Sampling tables: how each sequence draws its tokens, as a struct of tensors.

Filters follow one another: top-k, then top-p on the renormalised rest, then min-p.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sdengine.kernels.spec import expect, expect_tensor

PARAMETER_DTYPES = {
    "temperature": torch.float32,
    "top_k": torch.int32,
    "top_p": torch.float32,
    "min_p": torch.float32,
    "seeds": torch.int64,
}


@dataclass(frozen=True, slots=True, eq=False)
class SamplingTables:
    """One entry per sequence.

    Args:
        temperature: [B] float32; below 1e-5 the sequence is greedy: argmax, lowest id on ties, no
            noise.
        top_k: [B] int32, keep logits >= the k-th largest; below 1 or from V on: off.
        top_p: [B] float32, then keep the shortest descending prefix whose renormalised mass
            reaches top_p; from 1 on: off.
        min_p: [B] float32, then keep probabilities >= min_p times the largest; 0: off.
        seeds: [B] int64, key of all noise.
    """

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    seeds: torch.Tensor

    def filters(self, b: int) -> tuple[float, int, float, float]:
        """(temperature, top_k, top_p, min_p) of a sequence, for references."""
        tables = (self.temperature, self.top_k, self.top_p, self.min_p)
        temperature, top_k, top_p, min_p = (table[b].item() for table in tables)
        return temperature, int(top_k), top_p, min_p


def expect_sampling_tables(
    op: str, name: str, tables: object, batch_size: int | None = None
) -> SamplingTables:
    """Checks every tensor of a SamplingTables argument at the door and returns it."""
    expect(
        op,
        isinstance(tables, SamplingTables),
        f"{name}: expected a SamplingTables, got {type(tables).__name__}",
    )
    assert isinstance(tables, SamplingTables)
    for field, dtype in PARAMETER_DTYPES.items():
        tensor = expect_tensor(op, f"{name}.{field}", getattr(tables, field), dtype, (batch_size,))
        batch_size = len(tensor)
    return tables
