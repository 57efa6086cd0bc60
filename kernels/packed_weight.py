"""Packed weights: the layout that `linear` streams (csrc/cpu/packed_weight.h draws it).

Packing reads the source where it lies (a memory-mapped checkpoint, say) and writes the packed copy
directly, so that loading a model needs no second copy of a matrix. Packs lie on 2 MB pages where
the system has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sdengine.kernels.cpu_library import load_cpu
from sdengine.kernels.huge_pages import HugePageArena
from sdengine.kernels.number_format import FORMAT_NAMES, NUMBER_FORMATS, format_code
from sdengine.kernels.spec import expect

BLOCK_OUTPUTS, STRIP_OUTPUTS = 32, 16
LINE_BYTES = 64
BLOCK_STRIPS = BLOCK_OUTPUTS // STRIP_OUTPUTS


@dataclass(frozen=True, slots=True, eq=False)
class PackedWeight:
    """A weight matrix W [M, K] in blocks of 32 outputs, two strips each.

    Args:
        storage: [G, lines, S, elements of a line of 64 bytes]: G groups of S strips, a line of each
            in turn; S is 1, or 4 where dot products of bfloat16 read four at a time. A line holds
            16 outputs of one input (float32), of two, one after the other (float16), or in pairs
            (bfloat16). Zero where W has no element.
        num_outputs: M.
        num_inputs: K.
        is_gate_up: W stacks a gate [M / 2, K] on an up projection [M / 2, K]; a block holds a
            strip of each.
    """

    storage: torch.Tensor
    num_outputs: int
    num_inputs: int
    is_gate_up: bool = False

    @property
    def dtype(self) -> torch.dtype:
        return self.storage.dtype

    @property
    def shape(self) -> tuple[int, int]:
        return (self.num_outputs, self.num_inputs)

    @property
    def input_dtype(self) -> torch.dtype:
        """To what `linear` rounds its inputs, so that they may be stored so: bfloat16 where it has
        dot products of that."""
        return self.dtype if self.storage.shape[2] > 1 else torch.float32

    @property
    def nbytes(self) -> int:
        """Bytes that one pass over the weight reads, padding included."""
        return self.storage.numel() * self.storage.element_size()

    def unpack(self) -> torch.Tensor:
        """W as a plain [M, K] tensor of the same dtype (tests and the reference)."""
        groups, lines, together, _ = self.storage.shape
        line = (STRIP_OUTPUTS, -1) if self.dtype == torch.bfloat16 else (-1, STRIP_OUTPUTS)
        strips = self.storage.view(groups, lines, together, *line).transpose(1, 2)
        order = (0, 1, 3, 2, 4) if self.dtype == torch.bfloat16 else (0, 1, 4, 2, 3)
        columns = strips.permute(order).reshape(-1, STRIP_OUTPUTS, lines * line_inputs(self.dtype))
        columns = columns[..., : self.num_inputs]
        if not self.is_gate_up:
            return columns.reshape(-1, self.num_inputs)[: self.num_outputs].contiguous()
        halves = columns.unflatten(0, (-1, BLOCK_STRIPS)).transpose(0, 1)
        features = self.num_outputs // 2
        return halves.reshape(BLOCK_STRIPS, -1, self.num_inputs)[:, :features].reshape(self.shape)


def pack_weight(
    weight: torch.Tensor | Sequence[torch.Tensor],
    dtype: torch.dtype | None = None,
    interleave_gate_up: bool = False,
    pool: Any = None,
    arena: HugePageArena | None = None,
) -> PackedWeight:
    """Packs W [M, K] for `linear`.

    Args:
        weight: [M, K] float32, bfloat16 or float16, rows contiguous in themselves (any row
            stride); or several of one dtype, which are stacked ([q, k, v], [gate, up]) without
            being copied first.
        dtype: of the packed weight, one of the same; None keeps the source's. Rounding is to
            nearest even.
        interleave_gate_up: W stacks gate on up; pack them side by side for
            `linear(activation="silu_gate")`.
        pool: Native thread pool that shares the work; None packs on this thread.
        arena: where the matrices of one model lie side by side; None takes memory of its own.

    Returns:
        The packed weight; it does not refer to `weight`.

    Raises:
        ValueError: Wrong dtype, rank, shape or stride; M odd with `interleave_gate_up`.
    """
    parts = [weight] if isinstance(weight, torch.Tensor) else list(weight)
    dtype = _check_parts(parts, dtype)
    num_outputs, num_inputs = sum(p.shape[0] for p in parts), parts[0].shape[1]
    expect(
        "pack_weight",
        num_outputs > 0 and num_inputs > 0,
        f"weight: expected elements, got {list(parts[0].shape)}",
    )
    even = not interleave_gate_up or num_outputs % 2 == 0
    expect(
        "pack_weight", even, f"weight: gate and up need an even number of rows, got {num_outputs}"
    )
    outputs = num_outputs // 2 if interleave_gate_up else num_outputs
    blocks = -(-outputs // (STRIP_OUTPUTS if interleave_gate_up else BLOCK_OUTPUTS))
    native = load_cpu()
    shape = _packed_shape(blocks, num_inputs, dtype, native.strips_together(format_code(dtype)))
    storage = (arena or HugePageArena()).zeros(shape, dtype)
    native.pack_weight(
        pool if pool is not None else native.ThreadPool(1),
        [(p.data_ptr(), p.shape[0], p.stride(0)) for p in parts],
        format_code(parts[0].dtype),
        storage.data_ptr(),
        format_code(dtype),
        num_inputs,
        num_outputs,
        interleave_gate_up,
    )
    return PackedWeight(storage, num_outputs, num_inputs, interleave_gate_up)


def line_inputs(dtype: torch.dtype) -> int:
    """Inputs that a line of a strip holds."""
    return LINE_BYTES // dtype.itemsize // STRIP_OUTPUTS


def _packed_shape(
    blocks: int, num_inputs: int, dtype: torch.dtype, together: int
) -> tuple[int, ...]:
    groups = -(-blocks * BLOCK_STRIPS // together)
    lines = -(-num_inputs // line_inputs(dtype))
    return (groups, lines, together, LINE_BYTES // dtype.itemsize)


def _check_parts(parts: list[torch.Tensor], dtype: torch.dtype | None) -> torch.dtype:
    """Validates the matrices to be stacked; returns the dtype to pack in."""
    expect("pack_weight", len(parts) > 0, "weight: expected at least one matrix, got none")
    for part in parts:
        expect(
            "pack_weight",
            isinstance(part, torch.Tensor),
            f"weight: expected a tensor, got {type(part).__name__}",
        )
        expect(
            "pack_weight",
            part.dtype in NUMBER_FORMATS,
            f"weight: expected {FORMAT_NAMES}, got {part.dtype}",
        )
        expect(
            "pack_weight", part.dtype == parts[0].dtype, "weight: expected one dtype in all parts"
        )
        expect(
            "pack_weight",
            part.device.type == "cpu",
            f"weight: expected a cpu tensor, got one on {part.device}",
        )
        expect(
            "pack_weight", part.dim() == 2, f"weight: expected shape [M, K], got {list(part.shape)}"
        )
        same = part.shape[1] == parts[0].shape[1]
        expect(
            "pack_weight",
            same,
            f"weight: expected K={parts[0].shape[1]} in all parts, got {part.shape[1]}",
        )
        expect(
            "pack_weight",
            part.stride(1) == 1 or part.shape[1] == 1,
            "weight: expected contiguous rows",
        )
    dtype = parts[0].dtype if dtype is None else dtype
    expect("pack_weight", dtype in NUMBER_FORMATS, f"dtype: expected {FORMAT_NAMES}, got {dtype}")
    return dtype
