"""rope_kv_append in the harness: which of its outputs the contract specifies."""

from __future__ import annotations

from typing import Any

import torch


def specified_outputs(args: dict[str, Any]) -> list[torch.Tensor]:
    """The rotated queries and the cache; the k part of qkv holds unspecified values afterwards."""
    return [args["qkv"][:, : args["num_heads"] * args["head_dim"]], args["kv_cache"]]
