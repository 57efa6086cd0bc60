"""Launch plans: what an op launches for given arguments, as data: to be run, or compiled.

Each kernel file has `launches(arch, **args)`, a pure function from the op's arguments to a list of
`Launch`. Running it needs a device (or the interpreter); compiling it ahead of time needs neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, TypeVar

import torch
import triton
import triton.language as tl

from sdengine.kernels.spec import expect_one_device
from sdengine.kernels.triton.assembler import use_sound_assembler

MIN_ROWS = 16  # the narrowest product to which Triton 3.6 gives the instruction of wider ones
INTERPRETER = 0  # the `arch` of kernels that run in Triton's interpreter
COMPUTE_DTYPES = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel launch.

    Args:
        kernel: A `triton.jit` function.
        grid: Programs per axis; fixed by capacities, never by the sizes inside tensors.
        arguments: Run-time arguments by name: tensors, integers, floats; None is a constant.
        constants: `tl.constexpr` arguments by name.
        num_warps, num_stages: Of a program.
        fp_fusion: Whether a * b + c may be contracted. Off where bits must equal the reference's.
        max_registers: Of a thread; None leaves it to the compiler.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    constants: Mapping[str, Any] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 2
    fp_fusion: bool = True
    max_registers: int | None = None

    @property
    def overlaps(self) -> bool:
        """Whether it begins before the launch in front of it has ended; see `overlap.py`."""
        return bool(self.constants.get("OVERLAPS", False))

    def run(self) -> None:
        """Enqueues the kernel on the current stream, or interprets it."""
        if 0 in self.grid:
            return
        self.kernel[self.grid](
            **self.arguments,
            **self.constants,
            num_warps=self.num_warps,
            num_stages=self.num_stages,
            enable_fp_fusion=self.fp_fusion,
            **({"launch_pdl": True} if self.overlaps else {}),
            **({"maxnreg": self.max_registers} if self.max_registers else {}),
        )


def is_interpreted() -> bool:
    """Whether kernels made in this process run in the interpreter (TRITON_INTERPRET=1)."""
    return bool(triton.knobs.runtime.interpret)


def arch_of_device() -> int:
    """Compute capability of the current device as one number (90 for 9.0), or INTERPRETER."""
    if is_interpreted():
        return INTERPRETER
    use_sound_assembler()
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def nearest(table: Mapping[int, T], arch: int) -> T:
    """The entry of the highest architecture that is not above `arch`; else the lowest entry."""
    below = [key for key in table if key <= arch]
    return table[max(below) if below else min(table)]


def compute_dtype(dtype: torch.dtype, arch: int) -> tl.dtype:
    """What products of `dtype` operands are computed from, as a constant for a kernel.

    Raises:
        ValueError: bfloat16 in the interpreter, which multiplies bit patterns there.
    """
    if dtype == torch.bfloat16 and arch == INTERPRETER:
        raise ValueError(
            f"triton interpreter: expected float32 or float16 operands, got {dtype}; its "
            "arithmetic on bfloat16 is wrong, run on a GPU or in another format"
        )
    return COMPUTE_DTYPES[dtype]


def plan_op(op: str, arch: int, args: Mapping[str, Any]) -> list[Launch]:
    """Launches of an op whose arguments have been checked."""
    plan: list[Launch] = import_module(f"sdengine.kernels.triton.{op}").launches(arch, **args)
    return plan


def device_of(op: str, args: dict[str, Any]) -> AbstractContextManager[Any]:
    """Makes the device of an op's tensors the current one: Triton launches on that one's stream.

    Raises:
        ValueError: They do not lie on one CUDA device; the message names one that does not.
    """
    if is_interpreted():
        return nullcontext()
    return torch.cuda.device(expect_one_device(op, args, "cuda"))


def run_op(op: str, args: dict[str, Any]) -> None:
    """Runs an op whose arguments have been checked, where its tensors are."""
    with device_of(op, args):
        for launch in plan_op(op, arch_of_device(), args):
            launch.run()
