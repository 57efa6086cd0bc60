"""What an op is, as data: contract, implementations, cost. Tests, benchmarks and programs all read
it.

Shape letters, used in every docstring: B sequences, N packed rows, T tree nodes, K candidates, S
context tokens, H query heads, H_kv key/value heads, D head dim, E hidden size, F ffn size, V
vocabulary, L layers, P blocks, W mask words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch

Args = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Case:
    """One set of arguments for tests and microbenchmarks.

    Args:
        label: Short text for a table row, e.g. "M=16 2048x5632 bf16".
        args: Keyword arguments of the op, freshly allocated.
        bytes_moved: Compulsory memory traffic in bytes.
        operations: Arithmetic operations (a multiply-add counts two).
    """

    label: str
    args: Args
    bytes_moved: int = 0
    operations: int = 0


@dataclass(frozen=True, slots=True)
class Op:
    """One kernel under one name.

    Args:
        name: Base name of its files in every folder.
        check: Called with the op's arguments when it is launched; raises ValueError naming the
            argument.
        reference: Plain torch, obviously right; mutates the output arguments.
        outputs: Names of the arguments the op writes.
        cpu: Appends one native launch to a `_cpu.Program`; None when there is no CPU kernel.
        backends: Further implementations by name (triton, cuda): callables like `reference`.
        bench_cases: Yields microbenchmark cases.
    """

    name: str
    check: Callable[..., None]
    reference: Callable[..., None]
    outputs: tuple[str, ...]
    cpu: Callable[..., None] | None = None
    backends: Mapping[str, Callable[..., None]] = field(default_factory=dict)
    bench_cases: Callable[[], Iterator[Case]] | None = None


def expect(op: str, condition: bool, message: str) -> None:
    """Raises ValueError("op: message") unless `condition`."""
    if not condition:
        raise ValueError(f"{op}: {message}")


def expect_tensor(
    op: str,
    name: str,
    tensor: object,
    dtype: torch.dtype | tuple[torch.dtype, ...],
    shape: tuple[int | None, ...],
) -> torch.Tensor:
    """Checks one tensor argument at the door and returns it.

    Args:
        op: Name of the op, for the message.
        name: Name of the argument.
        tensor: The argument.
        dtype: Accepted dtype or dtypes.
        shape: Expected sizes; None accepts any size on that axis.

    Raises:
        ValueError: Not a tensor, wrong dtype, rank, size, or not contiguous.
    """
    expect(
        op,
        isinstance(tensor, torch.Tensor),
        f"{name}: expected a tensor, got {type(tensor).__name__}",
    )
    assert isinstance(tensor, torch.Tensor)
    dtypes = dtype if isinstance(dtype, tuple) else (dtype,)
    expect(
        op,
        tensor.dtype in dtypes,
        f"{name}: expected {' or '.join(map(str, dtypes))}, got {tensor.dtype}",
    )
    fits = tensor.dim() == len(shape) and all(
        want is None or want == got for want, got in zip(shape, tensor.shape)
    )
    wanted = ["any" if s is None else s for s in shape]
    expect(op, fits, f"{name}: expected shape {wanted}, got {list(tensor.shape)}")
    expect(op, tensor.is_contiguous(), f"{name}: expected a contiguous tensor")
    return tensor


def expect_float32(op: str, **tensors: torch.Tensor) -> None:
    """Checks activations of a CPU's launch, which a GPU's may round to 16 bits.

    Raises:
        ValueError: One is not float32; the message names it.
    """
    for name, tensor in tensors.items():
        expect(
            op,
            tensor.dtype == torch.float32,
            f"{name}: expected torch.float32 for backend 'cpu', got {tensor.dtype}",
        )


def address(tensor: torch.Tensor | None) -> int:
    """Data pointer for a native launch; 0 when the argument was not given."""
    return 0 if tensor is None else tensor.data_ptr()


def addresses(struct: Any) -> list[int]:
    """Data pointers of a struct of tensors, in field order."""
    return [getattr(struct, part.name).data_ptr() for part in fields(struct)]


def tensors_of(args: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor among the arguments of an op, structs of tensors looked into."""
    for name, value in args.items():
        if isinstance(value, torch.Tensor):
            yield name, value
        elif is_dataclass(value):
            for part in fields(value):
                inner = getattr(value, part.name)
                if isinstance(inner, torch.Tensor):
                    yield f"{name}.{part.name}", inner


def expect_one_device(op: str, args: dict[str, Any], device_type: str) -> torch.device:
    """Checks that all tensors lie on the same device of a type, "cpu" or "cuda", and returns it.

    Raises:
        ValueError: one does not; the message names it.
    """
    device: torch.device | None = None
    for name, tensor in tensors_of(args):
        is_near = tensor.device.type == device_type
        expect(op, is_near, f"{name}: expected a tensor on {device_type}, got {tensor.device}")
        device = device or tensor.device
        expect(op, tensor.device == device, f"{name}: expected {device}, got {tensor.device}")
    assert device is not None
    return device
