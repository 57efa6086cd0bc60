"""The launch of kv_compact."""

from __future__ import annotations

from typing import Any

from sdengine.kernels.launches.structs import KvCompactArgs, Launch, MovePlanView
from sdengine.kernels.spec import address


def launch_of(**args: Any) -> Launch:
    """The launch of checked arguments."""
    cache, tables = args["kv_cache"], args["block_tables"]
    layers, blocks, _, heads, block_size, head_dim = cache.shape
    arguments = KvCompactArgs(
        address(cache),
        cache.element_size(),
        address(tables),
        tables.shape[1],
        MovePlanView.of(args["moves"]),
        address(args["num_seqs"]),
        layers,
        blocks,
        heads,
        block_size,
        head_dim,
    )
    return Launch(arguments, tables.shape[0])
