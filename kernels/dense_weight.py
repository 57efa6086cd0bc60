"""Dense weights: a matrix as it lies in a checkpoint, for `linear` on a GPU.

A tensor core takes its operand from shared memory, which a tile of a row-major matrix fills with
full cache lines as it is; there is nothing that packing could gain.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sdengine.kernels.number_format import NUMBER_FORMATS
from sdengine.kernels.spec import expect, expect_tensor


@dataclass(frozen=True, slots=True, eq=False)
class DenseWeight:
    """A weight matrix W, row-major.

    Args:
        matrix: [M, K] float32, bfloat16 or float16, contiguous; not copied.
        is_gate_up: W stacks a gate [M / 2, K] on an up projection [M / 2, K], for
            `linear(activation="silu_gate")`.

    Raises:
        ValueError: Wrong dtype, rank or layout; M odd with `is_gate_up`.
    """

    matrix: torch.Tensor
    is_gate_up: bool = False

    def __post_init__(self) -> None:
        expect_tensor("DenseWeight", "matrix", self.matrix, NUMBER_FORMATS, (None, None))
        is_even = not self.is_gate_up or self.num_outputs % 2 == 0
        message = f"matrix: gate and up need an even number of rows, got {self.num_outputs}"
        expect("DenseWeight", is_even, message)

    @property
    def dtype(self) -> torch.dtype:
        return self.matrix.dtype

    @property
    def input_dtype(self) -> torch.dtype:
        """To what `linear` rounds its inputs."""
        return self.dtype

    @property
    def num_outputs(self) -> int:
        """M."""
        return self.matrix.shape[0]

    @property
    def num_inputs(self) -> int:
        """K."""
        return self.matrix.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        return (self.num_outputs, self.num_inputs)

    @property
    def nbytes(self) -> int:
        """Bytes that one pass over the weight reads."""
        return self.matrix.numel() * self.matrix.element_size()

    def unpack(self) -> torch.Tensor:
        """W itself (the same verb as `PackedWeight.unpack`)."""
        return self.matrix
