"""Kernels that begin while the one before them still runs (programmatic dependent launch).

From compute capability 9.0 on, a kernel of a program may be launched as soon as every program of
the one before has begun. It looks up what is known by then, and waits for the rest: so the way from
one launch to the next, some two microseconds, is over before it is needed. A decode step of a model
is some hundred launches, and those ways would be a sixth of it.

Every kernel of a chain waits before it writes anything, and before it reads what another one of the
pass has written: one that returned early without waiting could end, and let its successor begin,
before its predecessor has ended.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sdengine.kernels.programs.launch_chain import is_chained

FIRST_ARCH = 90


def can_overlap(arch: int) -> bool:
    """Whether the launches being made overlap: in programs, where the architecture can; never in
    the interpreter."""
    return arch >= FIRST_ARCH and is_chained()


@triton.jit
def begin_early(OVERLAPS: tl.constexpr, LATE: tl.constexpr = False):
    """Lets the next kernel begin, unless that is done later, then waits for all results of the one
    before."""
    if OVERLAPS:
        if not LATE:
            tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@triton.jit
def let_next_begin(OVERLAPS: tl.constexpr):
    """Lets the next kernel begin. A product of many programs does it late: programs of the next one
    that came early would crowd where its own first have ended, and leave others without work."""
    if OVERLAPS:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def begin_in_turn(OVERLAPS: tl.constexpr):
    """Waits for all results of the kernel before, then lets the next begin: what that one reads
    before it waits has been written by the last but one."""
    if OVERLAPS:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def prefetch(place, num_bytes):
    """Asks for the bytes at a place to be brought into the L2 cache, by the copy engine.

    Args:
        place: a pointer, 16 bytes aligned; the same in all lanes, or each has its own instruction.
        num_bytes: int32, a multiple of 16, above 0.
    """
    tl.inline_asm_elementwise(
        "cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0;",
        "=r,l,r",
        [place, num_bytes],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
