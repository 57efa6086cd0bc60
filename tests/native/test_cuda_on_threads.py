"""The CUDA kernels without a GPU: g++ compiles the same sources against a cuda_runtime.h of CPU
threads, one for each thread of the grid.

Random batches equal the serial results under the address sanitizer, nothing races under the thread
sanitizer, within a block or between blocks, and a barrier left out is found. Through the C face and
ctypes, as Python reaches a GPU, every op gives the bits of the CPU kernels.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
import pytest
import torch

from sdengine.errors import BackendUnavailable
from sdengine.kernels.calibration import identity_table
from sdengine.kernels.cpu_library import load_cpu
from sdengine.kernels.cuda_library import CudaLibrary
from sdengine.kernels.launches import STRUCT_OPS
from sdengine.kernels.programs.program import run_op
from sdengine.kernels.registry import get_op
from sdengine.kernels.token_tree import TokenTree
from sdengine.kernels.tree_verify import walk_scratch_size

from ..kernels.random_token_trees import int_tensor, random_token_tree
from ..kernels.test_residual import rejection_args
from ..kernels.test_tree_verify import filtered_args
from ..kernels.tree_worlds import (
    World,
    assert_same_outputs,
    assert_same_rows,
    assert_same_trees,
    grow,
)
from .cuda_threads import FLAGS, KERNELS, LARGE_TEAMS, SMALL_SHARED, threads_library
from .test_sanitizers import HERE, at_fixed_addresses, compile_driver, run

SOURCES = [KERNELS, *sorted(HERE.glob("cuda_fuzz_*.cpp")), HERE / "fuzz_main.cpp"]
CASES = (
    "cuda_tree_growth",
    "cuda_growth_of_many",
    "cuda_growth_in_scratch",
    "cuda_limits",
    "cuda_shared_memory_stays_granted",
    "cuda_too_much_is_refused",
    "cuda_begin_step",
    "cuda_gather_pending",
    "cuda_build_rows",
    "cuda_commit_plan",
    "cuda_kv_compact",
    "cuda_ngram_match",
    "cuda_most_noise",
    "cuda_tree_verify",
)
GUARD = -0x0123456789ABCDEF
MISSING_BARRIER = 100  # plant 100 + n leaves out the n-th barrier of every thread


@pytest.fixture(scope="module")
def memory_checked(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The driver that sees wrong addresses and undefined arithmetic."""
    folder, flags = tmp_path_factory.mktemp("cuda_memory"), ["-O0", *FLAGS, LARGE_TEAMS]
    return [str(compile_driver(SOURCES, "address,undefined", folder, flags))]


@pytest.fixture(scope="module")
def race_checked(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The driver that sees races."""
    folder = tmp_path_factory.mktemp("cuda_races")
    flags = ["-O0", *FLAGS, *SMALL_SHARED, LARGE_TEAMS]
    return at_fixed_addresses(compile_driver(SOURCES, "thread", folder, flags))


@pytest.fixture(params=[1, 3])
def warps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Of every block: what goes from warp to warp is seen with several."""
    monkeypatch.setenv("CUDA_BLOCK_THREADS", str(32 * request.param))
    return int(request.param)


@pytest.fixture
def library(warps: int) -> CudaLibrary:
    """The library on CPU threads, loaded as the real one is."""
    return threads_library()


@pytest.mark.usefixtures("warps")
def test_random_batches_equal_the_serial_results(memory_checked: list[str]) -> None:
    result = run(memory_checked)
    assert result.returncode == 0, result.stderr[-4000:]
    for name in CASES:
        assert f"{name}: " in result.stdout


@pytest.mark.parametrize(
    "case,seeds",
    [
        ("cuda_begin_step", [1, 3]),
        ("cuda_gather_pending", [1, 3]),
        ("cuda_build_rows", [1, 3]),
        ("cuda_commit_plan", [1, 3]),
        ("cuda_kv_compact", [1, 3]),
        ("cuda_ngram_match", [1, 3]),
        ("cuda_tree_growth", [1, 4, 5, 7]),
        ("cuda_growth_in_scratch", [1, 4, 5, 7]),
        ("cuda_tree_verify", [2, 3]),
    ],
)
def test_nothing_races(race_checked: list[str], case: str, seeds: list[int]) -> None:
    for seed in seeds:
        result = run([*race_checked, case, str(seed)])
        assert result.returncode == 0, result.stderr[-4000:]


@pytest.mark.parametrize("case", ["cuda_tree_growth", "cuda_tree_verify", "cuda_ngram_match"])
def test_nothing_races_between_warps(
    race_checked: list[str], case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_BLOCK_THREADS", "64")
    result = run([*race_checked, case, "4"])
    assert result.returncode == 0, result.stderr[-4000:]


@pytest.mark.parametrize(
    "case,seed,barrier",
    [
        ("cuda_gather_pending", 1, 1),
        ("cuda_kv_compact", 1, 1),
        ("cuda_tree_growth", 1, 5),
        ("cuda_growth_in_scratch", 1, 5),
        ("cuda_tree_verify", 3, 3),
    ],
)
def test_a_missing_barrier_is_found(
    race_checked: list[str], case: str, seed: int, barrier: int
) -> None:
    result = run([*race_checked, case, str(seed)], MISSING_BARRIER + barrier)
    assert result.returncode != 0 and "data race" in result.stderr, result.stderr[-2000:]


def small_cases(op: str) -> Iterator[dict[str, Any]]:
    """Arguments of the op's microbenchmarks, those that few threads can run."""
    cases = get_op(op).bench_cases
    assert cases is not None
    # tree_expand's other cases have several rows of one root, which share what is noted there.
    for case in list(cases())[: 1 if op == "tree_expand" else 2]:
        args = case.args
        if op == "kv_compact":  # as large as a model
            args = {**args, "kv_cache": args["kv_cache"][:1, :, :, :1].contiguous()}
            args["kv_cache"].copy_(torch.randn(args["kv_cache"].shape))
        yield args


@pytest.mark.parametrize("op", [op for op in STRUCT_OPS if op != "timestamp"])
def test_every_op_gives_the_bits_of_the_cpu(op: str, library: CudaLibrary) -> None:
    for args in small_cases(op):
        mine = copy.deepcopy(args)
        run_op(op, "cpu", **args)
        if op == "tree_verify" and args.get("target_tokens") is None:
            mine["scratch"] = torch.full((walk_scratch_size(args["tree"].batch_size),), -1)
        library.launch(op, 0, **mine)
        assert_same_outputs(op, args, mine)


def test_timestamps_bracket_what_lies_between(library: CudaLibrary) -> None:
    before, after = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    start = perf_counter_ns()
    library.launch("timestamp", 0, out_ns=before)
    for args in small_cases("gather_pending"):
        library.launch("gather_pending", 0, **args)
    library.launch("timestamp", 0, out_ns=after)
    assert 0 < int(after - before) <= perf_counter_ns() - start


@pytest.mark.parametrize("seed", [5, 6, 7])
@pytest.mark.parametrize("rule", ["node", "slot", "uniform", "uniform_slot"])
def test_growing_and_selecting_with_every_option(
    rule: str, seed: int, library: CudaLibrary
) -> None:
    world = World(
        seed=seed,
        batch=3,
        nodes=12,
        layers=3,
        width=4,
        rule=rule,
        levels=8,
        total=20,
        stops=(2,),
        calibration=(identity_table() ** 1.1).repeat(3, 1, 1),
        prices=[0.01] * 40,
        num_seqs=2,
    )
    cpu = grow(world)
    mine = grow(world, run=lambda op, _, **args: library.launch(op, 0, **args))
    assert_same_trees(cpu.tree, mine.tree, world.live)
    for left, right in zip(cpu.layers, mine.layers):
        assert_same_rows(left, right, world.live)
    assert torch.equal(cpu.args["node_slots"], mine.args["node_slots"])
    trees = [TokenTree.allocate(3, 12) for _ in range(2)]
    select = {
        "draft": cpu.tree,
        "thresholds": cpu.tree.values[0, int(cpu.tree.num_nodes[0]) // 2].repeat(30),  # a tie
        "cu_pending": torch.arange(4, dtype=torch.int32),
        "num_seqs": int_tensor([2]),
        "total_budget": int_tensor([3 * seed]),
        "scratch": cpu.args["scratch"],
    }
    run_op("tree_select", **select, tree=trees[0])
    library.launch("tree_select", 0, **select, tree=trees[1])
    assert_same_trees(trees[0], trees[1], world.live)


@pytest.mark.parametrize("seed", range(4))
def test_drawn_children_are_worth_what_draws_expect(seed: int, library: CudaLibrary) -> None:
    """Calibrated slots ask for sums over more candidates than lanes, of more rows than a warp."""
    rates = torch.rand(2, 8, 32, generator=torch.Generator().manual_seed(seed))
    world = World(seed, 2, 60, 3, k=21, width=12, rule="slot", vocab=40, calibration=rates)
    world.sharpness = (0.5, 2.0)[seed % 2]
    cpu = grow(world)
    mine = grow(world, run=lambda op, _, **args: library.launch(op, 0, **args))
    assert_same_trees(cpu.tree, mine.tree, world.live)
    for left, right in zip(cpu.layers, mine.layers):
        assert_same_rows(left, right, world.live)


@pytest.mark.parametrize("seed", range(9))
@pytest.mark.parametrize("rule", ["node", "slot"])
def test_growing_beside_rows_that_are_dear(rule: str, seed: int, library: CudaLibrary) -> None:
    """Rows 3 to 6 are free and the next one costs 0.3: newcomers take the place of other nodes."""
    prices = [0.0] * 7 + [0.3] * 33
    world = World(seed, 3, 12, 3, rule=rule, prices=prices, num_seqs=2)
    world.min_gain, world.total = (0.0, 0.05, 0.3)[seed % 3], (None, 9, 3)[seed // 3]
    cpu = grow(world)
    mine = grow(world, run=lambda op, _, **args: library.launch(op, 0, **args))
    assert_same_trees(cpu.tree, mine.tree, world.live)
    for left, right in zip(cpu.layers, mine.layers):
        assert_same_rows(left, right, world.live)


def test_layers_promise_what_is_above_the_smallest_kept_value(library: CudaLibrary) -> None:
    world = World(2, 2, 12, 2, k=6, total=6, num_seqs=2)
    ran = []
    for min_gain in np.linspace(0.0, 1.0, 17).tolist():
        priced = replace(world, min_gain=min_gain)
        cpu = grow(priced)
        mine = grow(priced, run=lambda op, _, **args: library.launch(op, 0, **args))
        assert_same_rows(cpu.layers[0], mine.layers[0], world.live)
        ran.append(int(cpu.layers[0].num_rows) > 0)
    assert ran[0] and not ran[-1]


@pytest.mark.parametrize("rule", ["node", "slot"])
def test_growing_among_slots_without_a_tree(rule: str, library: CudaLibrary) -> None:
    world = World(0, 4, 40, 5, k=6, rule=rule, vocab=30, min_gain=0.3, depth_limits=[5, 0, 0, 0])
    cpu = grow(world)
    mine = grow(world, run=lambda op, _, **args: library.launch(op, 0, **args))
    assert_same_trees(cpu.tree, mine.tree, world.live)
    for left, right in zip(cpu.layers, mine.layers):
        assert_same_rows(left, right, world.live)


def with_guarded_scratch(args: dict[str, Any]) -> tuple[dict[str, Any], torch.Tensor]:
    """The arguments with a scratch of exactly the promised size, and what lies behind it."""
    size = args["scratch"].numel()
    guarded = torch.full((size + 512,), GUARD)
    return {**args, "scratch": guarded[:size]}, guarded[size:]


@pytest.mark.parametrize("rule", ["node", "slot"])
def test_the_largest_trees_grow_beyond_shared_memory(rule: str, library: CudaLibrary) -> None:
    """256 rows of 32 candidates and 1024 nodes take 270 KiB, of which no GPU has so many."""
    world = World(7, 2, 1024, 3, k=32, width=256, rule=rule, sharpness=0.5, vocab=40, num_seqs=2)

    def run(op: str, _: str = "", **args: Any) -> None:
        args, behind = with_guarded_scratch(args)
        library.launch(op, 0, **args)
        assert bool((behind == GUARD).all()), "past the end of the scratch"

    cpu, mine = grow(world), grow(world, run=run)
    assert_same_trees(cpu.tree, mine.tree, world.live)
    for left, right in zip(cpu.layers, mine.layers):
        assert_same_rows(left, right, world.live)
    assert int(cpu.layers[1].num_rows) == 512 and int(cpu.tree.num_nodes.sum()) == 2048


def assert_same_walks(args: dict[str, Any], library: CudaLibrary) -> None:
    """CPU and device walk alike."""
    mine = {**args, "verdict": copy.deepcopy(args["verdict"])}
    run_op("tree_verify", "cpu", **args)
    scratch = torch.full((walk_scratch_size(args["tree"].batch_size),), -1)
    library.launch("tree_verify", 0, **mine, scratch=scratch)
    assert_same_outputs("tree_verify", args, mine)


@pytest.mark.parametrize("lift", [0.0, 14.0, 60.0])
@pytest.mark.parametrize("vocab", [5, 64, 4102, 4100])
def test_coupled_walks_with_every_filter(vocab: int, lift: float, library: CudaLibrary) -> None:
    """Lifted first tokens are out of the reach of the others: of some at 14, of all at 60."""
    rng = random.Random(vocab)
    tree = random_token_tree(rng, batch=4, max_nodes=20, vocab=4)
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randn(int(tree.num_nodes.sum()) + 4, vocab, generator=generator)
    logits[:, :4] += lift
    assert_same_walks(filtered_args(tree, logits), library)


@pytest.mark.parametrize("spread", [1.0, 20.0])
@pytest.mark.parametrize("seed,vocab", [(1, 8), (2, 70), (3, 4100)])
def test_rejection_walks(seed: int, vocab: int, spread: float, library: CudaLibrary) -> None:
    torch.manual_seed(seed)
    args = rejection_args(random.Random(seed), 4, 10, vocab, 8)
    args["logits"] *= spread
    assert_same_walks(args, library)


def test_a_library_of_other_sources_is_refused(
    library: CudaLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = next(small_cases("gather_pending"))
    monkeypatch.setattr(library, "sizeof", lambda op: 8)
    with pytest.raises(BackendUnavailable, match="gather_pending takes 8 bytes of arguments"):
        library.launch("gather_pending", 0, **args)


def test_a_library_without_a_function_was_built_from_other_sources(library: CudaLibrary) -> None:
    """One of the CPU's threads has no graphs; an older one may lack anything."""
    with pytest.raises(BackendUnavailable, match="has no make_stream, it was built from other"):
        library.make_stream()
    with pytest.raises(BackendUnavailable, match="has no error_string, it was built from other"):
        CudaLibrary(Path(str(load_cpu().__file__)))


def test_walking_logits_needs_scratch() -> None:
    args = rejection_args(random.Random(0), 1, 2, 8, 8)
    with pytest.raises(ValueError, match="scratch: expected a tensor, since"):
        get_op("tree_verify").backends["cuda"](**args)
    scratch = torch.zeros(walk_scratch_size(args["tree"].batch_size), dtype=torch.int64)
    with pytest.raises(ValueError, match="expected a tensor on cuda"):
        get_op("tree_verify").backends["cuda"](**args, scratch=scratch)


def test_unloadable_libraries_say_why(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable, match="the compiled library is missing"):
        CudaLibrary(tmp_path / "nowhere.so")
    broken = tmp_path / "broken.so"
    broken.write_text("no library")
    with pytest.raises(BackendUnavailable, match="backend 'cuda'"):
        CudaLibrary(broken)


@pytest.mark.parametrize("op", STRUCT_OPS)
def test_tensors_have_to_be_on_the_gpu(op: str) -> None:
    with pytest.raises(ValueError, match=f"{op}: .*: expected a tensor on cuda, got cpu"):
        get_op(op).backends["cuda"](**next(small_cases(op)))
