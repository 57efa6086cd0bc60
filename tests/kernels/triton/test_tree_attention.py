"""tree_attention in Triton: within twice plain torch's error; same bits where the path is the same.

Shapes and oracles are those of the CPU kernel's test.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sdengine.kernels.row_batch import RowBatch
from sdengine.kernels.tree_attention import DEVICE_SPLITS, device_splits
from sdengine.kernels.triton import attention_parts as tree_attention_parts
from sdengine.kernels.triton import tree_attention
from sdengine.kernels.triton.launch import INTERPRETER
from sdengine.kernels.triton.tree_attention import Config, split_scratch_floats
from tests.kernels import test_tree_attention as cpu_test
from tests.kernels.test_tree_attention import CHAIN_IN_TREE, Span, path_to
from tests.kernels.triton.guarded import assert_within_twice_plain, run_guarded

SPLIT = DEVICE_SPLITS[0][0]


def make_args(spans: list[Span], heads: int = 4, kv_heads: int = 2, **kw: Any) -> dict[str, Any]:
    return with_scratch(cpu_test.make_args(spans, heads, kv_heads, **kw))


def with_scratch(args: dict[str, Any], rows: int | None = None) -> dict[str, Any]:
    """Scratch for all rows in one pass, or for `rows` of them at a time."""
    capacity = args["block_tables"].shape[1] * args["kv_cache"].shape[3]
    rows = rows or args["qkv"].shape[0]
    size = split_scratch_floats(rows, args["num_heads"], args["head_dim"], capacity)
    return {**args, "scratch": torch.full((size,), float("nan"))}


def run(args: dict[str, Any]) -> torch.Tensor:
    args = {**args, "out": torch.full_like(args["out"], -7.0)}
    return run_guarded("tree_attention", args, scratch=("scratch",))["out"]


def assert_close(args: dict[str, Any]) -> torch.Tensor:
    """What was close to plain torch."""
    out = run(args)
    assert_within_twice_plain("tree_attention", args, {"out": out}, "out", slack_ulps=4)
    return out


SMALL = (0, 0, 1, 3)  # two children of the root, a chain of two below the first


@pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 6, 7, 8])
def test_error_is_at_most_twice_plain_torch(group: int) -> None:
    assert_close(make_args([Span(2, 70, SMALL), Span(1, 1)], group, 1))


def test_ragged_batches_and_several_kv_heads() -> None:
    assert_close(make_args([Span(3, 70, SMALL), Span(0, 9), Span(1, 1), Span(2, 150)], 6, 2))


@pytest.mark.parametrize("dim", [16, 80, 96, 128])
def test_head_dims(dim: int) -> None:
    assert_close(make_args([Span(1, 70, (0, 0))], 2, 1, dim=dim))


@pytest.mark.parametrize("block_size", [8, 24, 64, 128])
def test_block_sizes(block_size: int) -> None:
    assert_close(make_args([Span(1, 130, (0, 1)), Span(1, 65)], 2, 1, block_size=block_size))


@pytest.mark.parametrize("context", [1, 2, 63, 64, 65, SPLIT - 1, SPLIT, SPLIT + 1])
def test_borders_of_tiles_and_splits(context: int) -> None:
    assert_close(make_args([Span(min(context, 2), context, (0, 0, 1))], 2, 1, dim=16))


@pytest.mark.parametrize("context", [2047, 2048, 2048 + 511, 2048 + 513, 16384, 16384 + 1025])
def test_borders_between_sizes_of_splits(context: int) -> None:
    assert_close(make_args([Span(1, context, (0,))], 1, 1, dim=16))


@pytest.mark.parametrize("window", [0, 70])
@pytest.mark.parametrize("context", [1, 64, 127, 128, 300])
def test_when_the_first_tile_is_loaded_changes_no_bit(
    monkeypatch: pytest.MonkeyPatch, context: int, window: int
) -> None:
    args = make_args([Span(1, context, SMALL), Span(1, 63)], 2, 1, dim=16, window=window)
    results = []
    for most in (0, 64):
        monkeypatch.setattr(tree_attention, "MAX_EARLY_ROWS", most)
        assert tree_attention.loads_early(INTERPRETER, 6) == (most > 0)
        results.append(assert_close(args))
    assert torch.equal(*results)


def test_splits_cover_every_place_once() -> None:
    """The kernels' arithmetic against the table."""
    sizes, begins = [], [0]
    for size, end in DEVICE_SPLITS:
        while begins[-1] < min(end, 40_000):
            sizes.append(size)
            begins.append(begins[-1] + size)
    split = torch.arange(len(sizes))
    fine, middle, coarse = (size for size, _ in DEVICE_SPLITS)
    fine_end, middle_end = (end for _, end in DEVICE_SPLITS[:2])
    parts = tree_attention_parts
    assert (parts.FINE.value, parts.MIDDLE.value, parts.COARSE.value) == (fine, middle, coarse)
    assert (parts.FINE_END.value, parts.MIDDLE_END.value) == (fine_end, middle_end)
    first_middle, first_coarse = parts.FINE_SPLITS.value, parts.FEWER_SPLITS.value
    assert begins[first_middle] == fine_end and begins[first_coarse] == middle_end
    assert all(b - a == size for a, b, size in zip(begins, begins[1:], sizes)) and len(split)
    for context in (1, 128, 129, 2048, 2049, 16384, 16385, 30_000):
        expected = sum(begin < context for begin in begins[:-1])
        assert device_splits(context) == expected


@pytest.mark.parametrize("window,context", [(1, 7), (5, 7), (5, 140), (64, 140), (70, SPLIT + 20)])
def test_sliding_window(window: int, context: int) -> None:
    assert_close(make_args([Span(3, context, SMALL)], 2, 1, dim=16, window=window))


def test_splits_inside_the_window_are_shared_and_its_first_is_not() -> None:
    args = make_args([Span(1, 3 * SPLIT + 20, (0, 0))], 2, 1, dim=16, window=2 * SPLIT)
    assert_close(args)


@pytest.mark.parametrize("window", [1, 3, 8])
def test_ancestors_outside_the_window_may_keep_their_bits(window: int) -> None:
    args = make_args([Span(1, 70, CHAIN_IN_TREE[:5])], 2, 1, dim=16, window=window)
    expected = run(args)
    full = make_args([Span(1, 70, CHAIN_IN_TREE[:5])])["batch"].ancestor_mask
    assert torch.equal(full, args["batch"].ancestor_mask) == (window == 8)
    args["batch"].ancestor_mask.copy_(full)
    assert torch.equal(run(args), expected)


def test_wide_trees_use_several_mask_words() -> None:
    parents = tuple(max(0, node - 1 - node % 3) for node in range(1, 151))
    args = make_args([Span(1, 100, parents)], 2, 1, dim=16, words=3)
    rows = [1, 63, 64, 65, 129, 150]
    assert_close(with_scratch(cpu_test.rows_alone(args, 0, rows)))


@pytest.mark.parametrize("window", [0, 6, 100])
@pytest.mark.parametrize("context", [1, 62, SPLIT - 2])
def test_a_tree_row_has_the_bits_of_plain_decoding(context: int, window: int) -> None:
    parents = (0, 0, 1, 3, 4, 2)
    args = make_args([Span(1, context, parents)], 3, 1, window=window)
    together = run(args)
    for node in (2, 5, 6):
        chain = cpu_test.as_chain(args, node, context, path_to(node, parents))
        assert torch.equal(run(with_scratch(chain))[0], together[node]), node


def test_rows_have_the_same_bits_in_any_company_and_any_number_of_passes() -> None:
    args = make_args([Span(2, 65, SMALL), Span(1, SPLIT + 8), Span(5, 80)], 3, 1)
    together = run(args)
    assert torch.equal(run(with_scratch(args, 5)), together)
    assert torch.equal(run(with_scratch(cpu_test.rows_alone(args, 0, [3])))[0], together[3])
    order = [11, 8, 10]
    assert torch.equal(run(with_scratch(cpu_test.rows_alone(args, 2, order))), together[order])


@pytest.mark.parametrize("window", [0, 200])
@pytest.mark.parametrize("context", [1, 63, 300, 1024, 1300, 2048 + 600, 16384 + 1100])
def test_how_many_splits_a_program_goes_through_changes_no_bit(
    monkeypatch: pytest.MonkeyPatch, context: int, window: int
) -> None:
    args = make_args([Span(1, context, SMALL), Span(1, 63)], 2, 1, dim=16, window=window)
    results = []
    for least, enough in ((1 << 30, 0), (0, 1 << 30), (0, 0)):
        monkeypatch.setattr(tree_attention, "MIN_WIDE_PROGRAMS", least)
        monkeypatch.setattr(tree_attention, "ENOUGH_PROGRAMS", enough)
        plan = tree_attention.launches(INTERPRETER, **args)
        assert plan[0].constants["GOES_ON"] == (least == 0)
        results.append(assert_close(args))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.skipif(
    torch.cuda.is_available(),
    reason="a device computes float32 in row tiles of one width; tests/gpu varies bfloat16's",
)
@pytest.mark.parametrize("rows", [8, 64])
def test_the_width_of_a_row_tile_does_not_matter(rows: int, monkeypatch: Any) -> None:
    args = make_args([Span(5, 150, SMALL), Span(1, 66)], 3, 1, dim=16)
    expected = run(args)
    monkeypatch.setattr(tree_attention, "F32_CONFIG", Config(rows, 4, 1))
    assert torch.equal(run(args), expected)


def test_other_rows_cannot_poison_a_row() -> None:
    """A NaN key and value of a later row or of a sibling must not reach rows that do not see it."""
    args = make_args([Span(4, 90, SMALL)], 2, 1, dim=16)
    expected = run(args)
    poison(args, 88)  # the chain's third row
    got = run(args)
    assert torch.equal(got[:2], expected[:2]) and got[2:].isnan().all()
    args["batch"].visible_lens[4:] = 88  # let the tree's rows not see it
    poison(args, 90)  # node 1, parent of 3 and 4
    assert run(args)[4:].isnan().all(-1).tolist() == [True, False, True, True]


def poison(args: dict[str, Any], index: int) -> None:
    """Makes key and value of a logical index of sequence 0 NaN."""
    args["kv_cache"][int(args["block_tables"][0, index // 16]), :, :, index % 16] = float("nan")


def test_a_row_that_sees_nothing_is_zero_and_rows_past_num_rows_stay() -> None:
    args = make_args([Span(2, 9), Span(1, 20), Span(1, 20)], dim=16)
    batch = args["batch"]
    batch.visible_lens[0] = 0
    batch.num_rows[0] = 2
    batch.cu_rows[2:] = torch.tensor([1, 3])  # sequences that are not live may hold anything
    out = run(args)
    assert (out[0] == 0).all() and (out[1] != -7.0).all() and (out[2:] == -7.0).all()


def test_large_scores_stay_finite() -> None:
    args = make_args([Span(1, 100)])
    args["scale"] = 1e4
    assert torch.isfinite(run(args)).all()


def test_scratch_too_small_for_one_row_is_refused() -> None:
    args = make_args([Span(1, 9)])
    with pytest.raises(ValueError, match=r"scratch: expected at least 264 elements .* got 263"):
        run({**args, "scratch": args["scratch"][:263]})


@pytest.mark.parametrize("context", [SPLIT - 1, 2 * SPLIT, 1300])
@pytest.mark.parametrize("is_wide", [False, True])
def test_a_promise_of_keys_and_sequences_sets_the_grid_and_no_bit(
    monkeypatch: pytest.MonkeyPatch, context: int, is_wide: bool
) -> None:
    """Of six slots two are live, the last among them, in blocks for 4096 keys."""
    monkeypatch.setattr(tree_attention, "MIN_WIDE_PROGRAMS", 0 if is_wide else 1 << 30)
    monkeypatch.setattr(tree_attention, "ENOUGH_PROGRAMS", 0)
    idle = [Span(0, 1)] * 4
    args = make_args([Span(3, context, SMALL), *idle, Span(1, 63)], 2, 1, dim=16)
    tables = torch.zeros(6, 4096 // args["kv_cache"].shape[3], dtype=torch.int32)
    tables[:, : args["block_tables"].shape[1]] = args["block_tables"]
    args = with_scratch({**args, "block_tables": tables})
    promised = {**args, "max_keys": context, "max_seqs": 2}
    grids = [tree_attention.launches(INTERPRETER, **a)[0].grid for a in (args, promised)]
    assert [grid[2] for grid in grids] == [device_splits(4096), device_splits(context)]
    assert grids[0][0] - grids[1][0] == 4
    expected = assert_close(args)
    assert torch.equal(run(promised), expected)
    if context > SPLIT and not is_wide:
        assert not torch.equal(run({**promised, "max_keys": SPLIT}), expected), "it is not in use"


def test_a_layer_of_many_slots_and_keys_begins_no_thousands_of_programs() -> None:
    """8 slots of 131072 keys, of which one decodes at 1024; before, (10, 8, 156)."""
    batch = RowBatch.allocate(8, 8, 1, "meta")
    shape = {"num_heads": 32, "num_kv_heads": 8, "head_dim": 128, "scale": 1.0}
    args: dict[str, Any] = {
        "qkv": torch.empty(8, 48 * 128, device="meta"),
        "kv_cache": torch.empty(9, 2, 8, 64, 128, dtype=torch.bfloat16, device="meta"),
        "block_tables": torch.empty(8, 2048, dtype=torch.int32, device="meta"),
        "batch": batch,
        "out": torch.empty(8, 4096, dtype=torch.bfloat16, device="meta"),
        "scratch": torch.empty(split_scratch_floats(8, 32, 128, 131072), device="meta"),
        **shape,
    }
    first, _ = tree_attention.launches(90, **args)
    assert first.grid == (10, 8, 156)
    first, _ = tree_attention.launches(90, **args, max_keys=2048, max_seqs=1)
    assert first.grid == (2, 8, 16) and first.arguments["num_splits"] == 156


@pytest.mark.parametrize("name", ["max_keys", "max_seqs"])
def test_a_promise_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected None or at least 1, got 0"):
        run({**make_args([Span(1, 9)]), name: 0})
