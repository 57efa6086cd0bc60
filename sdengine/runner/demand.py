"""How large a step's program is on a device.

Its grids are of a fixed size, and what they hold too much begins, finds nothing to do and ends: so
a program is made for what a step can come to at most, rounded up, because each one is described and
captured when it is first needed.
"""

from __future__ import annotations

from dataclasses import dataclass

from sdengine.kernels.programs.limits import Limits
from sdengine.runner.workspace import Sizes

MIN_ROW_LIMIT = 8
"""Rows of the smallest program of a device."""

MIN_KEY_LIMIT, KEY_STEP = 2048, 4
"""Keys of the smallest program, and how many times as many the next ones serve. Attention has 16,
28, 60 and 156 splits for 2048, 8192, 32768 and 131072 keys, so finer steps would save little, and
each step is a capture of all programs that go on being used."""

SEQ_STEP = 4
"""Likewise of sequences, from one on."""

MIN_LAYERS, LAYER_STEP = 2, 2
"""Likewise of draft layers: one without rows is launched all the same, as long as a plain step of
the draft takes without reading its weights: an estimated 0.2 ms for 1B."""


@dataclass(frozen=True, slots=True)
class Demand:
    """The most that a step comes to.

    Args:
        num_tokens: pending tokens that the target computes.
        num_seqs: sequences that take part.
        num_keys: longest of them, pending tokens included.
        num_trees: sequences that may grow a tree.
        num_nodes: nodes of all trees: `tree_expand` and `tree_select` keep no more than the plan's.
        num_missing: pending tokens that the draft computes; None: it does nothing.
        depth: draft layers.
    """

    num_tokens: int = 1
    num_seqs: int = 1
    num_keys: int = 1
    num_trees: int = 0
    num_nodes: int = 0
    num_missing: int | None = None
    depth: int = 0


def limits_of(demand: Demand, sizes: Sizes, *, skips_layers: bool = False) -> Limits:
    """Limits of the smallest program that serves the demand.

    A draft layer forwards at most `max_width` nodes of a tree, of those that are kept.

    Args:
        demand: the most that a step comes to.
        sizes: what the buffers hold.
        skips_layers: whether the device skips draft layers without rows by itself, so that all
            plans may share a program.
    """
    draft_rows = layers = None
    if demand.num_missing is not None and demand.depth > 0 and not skips_layers:
        layers = _stepped(MIN_LAYERS, LAYER_STEP, demand.depth, sizes.max_depth)
    if demand.num_missing is not None:
        frontier = min(demand.num_trees * sizes.max_width, demand.num_nodes)
        pending = min(demand.num_missing, sizes.max_batched_tokens)
        draft_rows = _row_limit(max(pending, frontier), sizes.max_draft_rows)
    rows = _row_limit(demand.num_tokens + demand.num_nodes, sizes.max_target_rows)
    return Limits(
        rows,
        draft_rows,
        _stepped(1, SEQ_STEP, demand.num_seqs, sizes.max_num_seqs),
        _stepped(MIN_KEY_LIMIT, KEY_STEP, demand.num_keys, sizes.max_context),
        layers,
    )


def rows_of_trees(limits: Limits, sizes: Sizes) -> Limits:
    """Of rows alone: what the largest trees of as many sequences need, no prompt beside them."""
    seqs = limits.seqs or sizes.max_num_seqs
    num_nodes = seqs * sizes.max_nodes
    needed = limits_of(Demand(seqs, num_trees=seqs, num_nodes=num_nodes, num_missing=seqs), sizes)
    return Limits(needed.rows, needed.draft_rows if limits.draft_rows else None)


def _stepped(least: int, step: int, needed: int, capacity: int) -> int:
    """The first of `least`, `least * step`, ... that is enough."""
    while least < needed:
        least *= step
    return min(least, capacity)


def _row_limit(num_rows: int, capacity: int) -> int:
    return min(max(MIN_ROW_LIMIT, row_bucket(num_rows)), capacity)


def row_bucket(num_rows: int) -> int:
    """Rows of the program of a device that passes `num_rows`: a power of two; from 64 on also one
    and a half, and 16 more, so that the root of a tree of 64 or 128 nodes does not double what is
    multiplied."""
    power = 1 << max(num_rows - 1, 0).bit_length()
    half = power // 2
    between = [half + 16, half + half // 2] if half >= 64 else []
    return min(size for size in (*between, power) if size >= num_rows)
