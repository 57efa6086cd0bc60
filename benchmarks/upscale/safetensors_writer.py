"""Writes a safetensors file a few rows at a time: tensors are made while they are written."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

__all__ = ["PlannedTensor", "write_safetensors"]

DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
ALIGNMENT = 8


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor that does not exist yet.

    Args:
        name: as stored.
        shape: of the whole tensor.
        blocks: makes it: consecutive rows, in order.
    """

    name: str
    shape: tuple[int, ...]
    blocks: Callable[[], Iterator[torch.Tensor]]

    def num_bytes(self, dtype: torch.dtype) -> int:
        """Its size in a file."""
        return math.prod(self.shape) * dtype.itemsize


def write_safetensors(path: Path, tensors: Sequence[PlannedTensor], dtype: torch.dtype) -> None:
    """Writes one file; only one block of one tensor is in memory at a time.

    Args:
        path: the file, replaced where it exists.
        tensors: in the order in which they are stored.
        dtype: float32, bfloat16 or float16; blocks are converted to it.
    """
    with path.open("wb") as file:
        header = _header(tensors, dtype)
        file.write(len(header).to_bytes(8, "little") + header)
        for tensor in tensors:
            before = file.tell()
            for block in tensor.blocks():
                stored = block.to(dtype).cpu().contiguous()
                file.write(stored.view(torch.uint8).numpy().data)
            written = file.tell() - before
            assert written == tensor.num_bytes(dtype), (tensor.name, written)


def _header(tensors: Sequence[PlannedTensor], dtype: torch.dtype) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for tensor in tensors:
        end = start + tensor.num_bytes(dtype)
        entries[tensor.name] = {
            "dtype": DTYPE_NAMES[dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(entries).encode()
    return text + b" " * (-len(text) % ALIGNMENT)
