"""The assembler that makes machine code of what Triton compiles.

ptxas 12.8, which Triton 3.6 brings for devices before compute capability 10.0, is wrong about some
of our kernels: it adds to uniform registers before it has set them, and a product then reads its
tile from a stray address (seen in `finish_rows` for heads of 64; 12.9 and 13.0 are right on the
same PTX). That Triton brings a newer one for newer devices, which assembles for the older ones too.
"""

from __future__ import annotations

import re
from functools import cache

import triton

from sdengine.errors import BackendUnavailable

SOUND = (12, 9)
TOOLS = ("ptxas", "ptxas_blackwell")  # what Triton calls the one that it uses, and the newer one


@cache
def use_sound_assembler() -> None:
    """Makes Triton use an assembler that can be trusted, in this process and its children.

    Raises:
        BackendUnavailable: there is none.
    """
    knobs = triton.knobs.nvidia
    unsound = []
    for name in TOOLS:
        try:
            tool = getattr(knobs, name)
        except (AttributeError, OSError, RuntimeError):  # not every Triton has, or knows, both
            continue
        if version_of(tool.version) >= SOUND:
            if name != TOOLS[0]:
                knobs.ptxas = tool.path
            return
        unsound.append(f"{tool.version} ({tool.path})")
    raise BackendUnavailable(
        f"backend 'triton': expected a ptxas of CUDA {'.'.join(map(str, SOUND))} or newer, because "
        f"older ones miscompile our kernels, got {' and '.join(unsound) or 'none'}; set "
        "TRITON_PTXAS_PATH to one, or update triton"
    )


def version_of(text: str) -> tuple[int, ...]:
    """(12, 9) of "12.9"."""
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])
