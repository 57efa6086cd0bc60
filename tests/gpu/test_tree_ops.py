"""The integer kernels on the device: the bits of the CPU's, over growing trees and batches."""

from __future__ import annotations

import copy

import pytest
import torch

from benchmarks.kernels.harness import UNCOMPARABLE_OPS
from sdengine.kernels.calibration import identity_table
from sdengine.kernels.launches import STRUCT_OPS
from sdengine.kernels.programs.program import run_op
from sdengine.kernels.token_tree import TokenTree
from tests.gpu.on_device import IS_DRY_RUN, run_on_device
from tests.kernels.random_token_trees import int_tensor
from tests.kernels.tree_worlds import (
    World,
    assert_same_outputs,
    assert_same_rows,
    assert_same_trees,
    grow,
)
from tests.native.test_cuda_on_threads import small_cases


@pytest.mark.parametrize("op", [op for op in STRUCT_OPS if op not in UNCOMPARABLE_OPS])
def test_microbenchmark_cases(op: str) -> None:
    for args in small_cases(op):
        mine = copy.deepcopy(args)
        run_op(op, "reference", **args)
        run_on_device(op, "cuda", **mine)
        assert_same_outputs(op, args, mine)


@pytest.mark.parametrize("seed", range(2 if IS_DRY_RUN else 8))
@pytest.mark.parametrize("rule", ["node", "slot", "uniform", "uniform_slot"])
def test_growing_and_selecting(rule: str, seed: int) -> None:
    batch = 3 if IS_DRY_RUN else 3 + 5 * seed
    world = World(
        seed=seed,
        batch=batch,
        nodes=12 if IS_DRY_RUN else 12 + 25 * seed,
        layers=3,
        width=4,
        rule=rule,
        levels=8 if seed % 2 else 0,
        total=20 * batch // 3,
        stops=(2,),
        calibration=(identity_table() ** 1.1).repeat(batch, 1, 1),
        prices=[0.01] * (40 * batch),
        num_seqs=batch - 1,
    )
    expected = grow(world)
    mine = grow(world, run=run_on_device)
    assert_same_trees(expected.tree, mine.tree, world.live)
    for left, right in zip(expected.layers, mine.layers):
        assert_same_rows(left, right, world.live)
    assert torch.equal(expected.args["node_slots"], mine.args["node_slots"])
    trees = [TokenTree.allocate(batch, world.nodes) for _ in range(2)]
    middle = max(int(expected.tree.num_nodes[0]) // 2, 1)
    select = {
        "draft": expected.tree,
        "thresholds": expected.tree.values[0, middle].repeat(40 * batch),  # a tie
        "cu_pending": torch.arange(batch + 1, dtype=torch.int32),
        "num_seqs": int_tensor([batch - 1]),
        "total_budget": int_tensor([6 * batch]),
        "scratch": expected.args["scratch"],
    }
    run_op("tree_select", "reference", **select, tree=trees[0])
    run_on_device("tree_select", **select, tree=trees[1])
    assert_same_trees(trees[0], trees[1], world.live)


@pytest.mark.parametrize("is_priced", [False, True])
@pytest.mark.parametrize("rule", ["node", "slot"])
def test_the_largest_trees_grow_beyond_shared_memory(rule: str, is_priced: bool) -> None:
    """256 rows of 32 candidates and 1024 nodes take 270 KiB."""
    batch = 1 if IS_DRY_RUN else 5
    world = World(4, batch, 1024, 3, k=32, width=256, rule=rule, sharpness=0.5, vocab=40)
    if is_priced:  # more nodes than shared memory ranks at a time
        world.prices = torch.linspace(0.0, 0.002, 1024 * batch).tolist()
        world.root_values = torch.linspace(0.8, 1.2, batch).tolist()
    expected, mine = grow(world), grow(world, run=run_on_device)
    assert_same_trees(expected.tree, mine.tree, batch)
    for left, right in zip(expected.layers, mine.layers):
        assert_same_rows(left, right, batch)
    num_rows = int(expected.layers[1].num_rows)
    assert num_rows > 0 if is_priced else num_rows == 256 * batch
