"""Random worlds for tree tests: each path has a fixed table of candidates, as from a draft."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch

from sdengine.kernels.programs.program import run_op
from sdengine.kernels.registry import get_op
from sdengine.kernels.row_batch import RowBatch
from sdengine.kernels.token_tree import DraftTree, TokenTree, allocate_tree_scratch, mask_words

from .same_tensors import assert_same_tensors

I32 = torch.int32


@dataclass
class World:
    """A batch of drafts and the settings of a tree; tables are drawn from (seed, sequence, path).

    Args:
        levels: probabilities are multiples of 1 / levels, so that ties are common; 0: continuous.
        sharpness: scale of the logits.
    """

    seed: int = 0
    batch: int = 1
    nodes: int = 8
    layers: int = 3
    k: int = 4
    width: int = 64
    rule: str = "node"
    max_children: int = 32
    levels: int = 0
    sharpness: float = 2.0
    vocab: int = 9
    budgets: list[int] | None = None
    total: int | None = None
    depth_limits: list[int] | None = None
    stops: tuple[int, ...] = ()
    min_gain: float = 0.0
    calibration: torch.Tensor | None = None
    prices: list[float] | None = None
    root_values: list[float] | None = None
    block_size: int = 8
    starts: list[int] | None = None
    num_seqs: int | None = None
    tables: dict[tuple[int, ...], tuple[list[int], np.ndarray]] = field(default_factory=dict)

    def candidates(self, b: int, path: tuple[int, ...]) -> tuple[list[int], np.ndarray]:
        """K tokens and float32 probabilities at a path of sequence b."""
        key = (b, *path)
        if key not in self.tables:
            rng = np.random.default_rng([self.seed, len(key), *(t + 1 for t in key)])
            tokens = rng.permutation(max(self.vocab, self.k))
            logits = self.sharpness * rng.standard_normal(len(tokens))
            probs = np.exp(logits) / np.exp(logits).sum()
            if self.levels:
                probs = np.round(probs * self.levels) / self.levels
            if "slot" in self.rule:  # any order, all of the mass within the K candidates
                probs = probs[: self.k] / max(probs[: self.k].sum(), 1e-9)
            else:
                probs = np.sort(probs)[::-1][: self.k]
            self.tables[key] = (tokens[: self.k].tolist(), probs.astype(np.float32))
        return self.tables[key]

    def root_value(self, b: int) -> np.float32:
        """What the root of a sequence is worth."""
        values = None if "uniform" in self.rule else self.root_values
        return np.float32(1 if values is None else values[b])

    @property
    def live(self) -> int:
        """Sequences that run."""
        return self.batch if self.num_seqs is None else self.num_seqs

    @property
    def node_budgets(self) -> list[int]:
        """Budget of each sequence."""
        return [self.nodes] * self.batch if self.budgets is None else self.budgets

    @property
    def total_budget(self) -> int:
        """Budget of the batch."""
        return self.batch * self.nodes if self.total is None else self.total

    @property
    def limits(self) -> list[int]:
        """Depth limit of each sequence."""
        return [self.layers] * self.batch if self.depth_limits is None else self.depth_limits


@dataclass
class Grown:
    """What growing a world left behind: the tree, the last rows, each layer's rows."""

    tree: DraftTree
    layers: list[RowBatch]
    proposals: dict[int, tuple[int, tuple[int, ...]]]  # store row -> (sequence, path)
    args: dict[str, Any]


def paths_of(tree: DraftTree | TokenTree, b: int) -> list[tuple[int, ...]]:
    """Token path of every node of a sequence, the root's () first."""
    paths: list[tuple[int, ...]] = [()]
    for i in range(1, int(tree.num_nodes[b]) + 1):
        paths.append((*paths[int(tree.parents[b, i])], int(tree.tokens[b, i])))
    return paths


def expand_args(world: World) -> dict[str, Any]:
    """The arguments that stay the same over the layers."""
    b = world.batch
    starts = [3 + 5 * i for i in range(b)] if world.starts is None else world.starts
    capacity = world.layers * world.width
    blocks = (max(starts) + capacity) // world.block_size + 2
    shuffled = torch.randperm(b * blocks, generator=torch.Generator().manual_seed(world.seed))
    return {
        "rule": world.rule,
        "max_children": world.max_children,
        "max_width": world.width,
        "block_size": world.block_size,
        "tree": DraftTree.allocate(b, world.nodes),
        "tree_starts": torch.tensor(starts, dtype=I32),
        "node_budgets": torch.tensor(world.node_budgets, dtype=I32),
        "total_budget": torch.tensor([world.total_budget], dtype=I32),
        "depth_limits": torch.tensor(world.limits, dtype=I32),
        "stop_tokens": torch.tensor([[-1, *world.stops]] * b, dtype=I32),
        "min_layer_gain": torch.tensor([world.min_gain]),
        "calibration": world.calibration,
        "row_prices": None if world.prices is None else torch.tensor(world.prices),
        "cu_pending": torch.arange(b + 1, dtype=I32),
        "root_values": None if world.root_values is None else torch.tensor(world.root_values),
        "block_tables": shuffled.to(I32).view(b, blocks),
        "num_seqs": torch.tensor([world.live], dtype=I32),
        "scratch": allocate_tree_scratch(b, world.nodes, world.width, world.k),
        "rows": RowBatch.allocate(b, b * world.width, mask_words(capacity)),
        "node_slots": torch.zeros(b * world.width, dtype=I32),
    }


def grow(world: World, backend: str = "cpu", run: Callable[..., None] = run_op) -> Grown:
    """Runs tree_expand over all layers, giving each row the candidates of its path."""
    args = expand_args(world)
    tree, rows = args["tree"], args["rows"]
    cu = torch.zeros(world.batch + 1, dtype=I32)
    cu[1 : world.live + 1] = torch.arange(1, world.live + 1)
    frontier: torch.Tensor | None = None
    layers: list[RowBatch] = []
    proposals: dict[int, tuple[int, tuple[int, ...]]] = {}
    for layer in range(world.layers):
        count = int(cu[world.live])
        tokens = torch.full((max(1, world.batch * world.width), world.k), -1, dtype=I32)
        probs = torch.zeros(tokens.shape)
        offset = layer * world.batch * world.width
        for b in range(world.live):
            paths = paths_of(tree, b) if layer else [()]
            for row in range(int(cu[b]), int(cu[b + 1])):
                path = paths[0 if frontier is None else int(frontier[row])]
                row_tokens, row_probs = world.candidates(b, path)
                tokens[row] = torch.tensor(row_tokens, dtype=I32)
                probs[row] = torch.from_numpy(row_probs)
                proposals[offset + row] = (b, path)
        assert count <= world.batch * world.width
        run(
            "tree_expand",
            backend,
            layer=layer,
            candidate_tokens=tokens,
            candidate_probs=probs,
            cu_rows=cu,
            frontier_nodes=frontier,
            proposal_offset=offset,
            **args,
        )
        layers.append(copy.deepcopy(rows))
        cu, frontier = rows.cu_rows, rows.row_node  # the op may overwrite what it reads
    return Grown(tree, layers, proposals, args)


def assert_same_trees(left: Any, right: Any, live: int) -> None:
    """Every field of two DraftTrees or TokenTrees agrees, over the live part."""
    for f in fields(left):
        a, b = getattr(left, f.name), getattr(right, f.name)
        for s in range(live):
            end = int(left.num_nodes[s]) + 1
            same = torch.equal(a[s, :end], b[s, :end]) if a.dim() > 1 else a[s] == b[s]
            assert same, f"{f.name}[{s}]: {a[s]} != {b[s]}"


def assert_same_rows(left: RowBatch, right: RowBatch, live: int) -> None:
    """Every field of two row batches agrees, over the live part."""
    n = int(left.num_rows)
    for f in fields(left):
        a, b = getattr(left, f.name), getattr(right, f.name)
        end = {"cu_rows": live + 1, "tree_starts": live, "num_rows": 1}.get(f.name, n)
        assert torch.equal(a[:end], b[:end]), f"{f.name}: {a[:end]} != {b[:end]}"


def assert_same_outputs(op: str, left: dict[str, Any], right: dict[str, Any]) -> None:
    """Every output of an op agrees: trees and rows over their live part, the rest bit for bit."""
    for name in get_op(op).outputs:
        a, b = left.get(name), right.get(name)
        if isinstance(a, RowBatch):
            assert_same_rows(a, b, int(left["num_seqs"]))
        elif isinstance(a, (DraftTree, TokenTree)):
            assert_same_trees(a, b, int(left["num_seqs"]))
        else:
            assert_same_tensors(name, a, b)
