"""Number formats of weights, KV caches and, on a GPU, of what one layer hands to the next product.

Arithmetic is in float32 whatever the format; products with 16-bit weights round their other operand
on tensor cores (and to bfloat16 on AVX-512, where there is a dot product for it).
"""

from __future__ import annotations

import torch

NUMBER_FORMATS = (torch.float32, torch.bfloat16, torch.float16)
"""In the order of csrc/cpu/number_format.h."""

FORMAT_NAMES = "float32, bfloat16 or float16"


def format_code(dtype: torch.dtype) -> int:
    """What a native launch knows a format by."""
    return NUMBER_FORMATS.index(dtype)


def short_name(dtype: torch.dtype) -> str:
    """Of a format, in labels: "fp32", "bf16", "fp16"."""
    return ("fp32", "bf16", "fp16")[format_code(dtype)]
