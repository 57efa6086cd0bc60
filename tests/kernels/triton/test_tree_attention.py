"""tree_attention in Triton: within twice plain torch's error; same bits where the path is the same.

Shapes and oracles are those of the CPU kernel's test.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from sdengine.kernels.triton.tree_attention import SPLIT, split_scratch_floats
from tests.kernels import test_tree_attention as cpu_test
from tests.kernels.test_tree_attention import BUSHY, CHAIN_IN_TREE, Span, path_to
from tests.kernels.triton.guarded import assert_within_twice_plain, run_guarded


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


def assert_close(args: dict[str, Any]) -> None:
    assert_within_twice_plain("tree_attention", args, {"out": run(args)}, "out", slack_ulps=4)


@pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 6, 7, 8])
def test_error_is_at_most_twice_plain_torch(group: int) -> None:
    assert_close(make_args([Span(3, 70, BUSHY), Span(1, 1), Span(2, 150)], group, 1))


@pytest.mark.parametrize("dim", [80, 96, 128])
def test_head_dims(dim: int) -> None:
    assert_close(make_args([Span(2, 70, (0, 0, 1))], 4, 2, dim=dim))


@pytest.mark.parametrize("block_size", [8, 24, 64, 128])
def test_block_sizes(block_size: int) -> None:
    assert_close(make_args([Span(2, 130, (0, 1, 0)), Span(1, 65)], 3, 1, block_size=block_size))


@pytest.mark.parametrize("context", [1, 63, 64, 65, SPLIT - 1, SPLIT, SPLIT + 1, SPLIT + 70])
def test_borders_of_tiles_and_splits(context: int) -> None:
    assert_close(make_args([Span(min(context, 5), context, BUSHY)], 2, 1))


@pytest.mark.parametrize("window", [1, 5, 64, 130])
def test_sliding_window(window: int) -> None:
    for context, chain in ((7, 7), (140, 20), (SPLIT + 150, 3)):
        assert_close(make_args([Span(chain, context, BUSHY)], 2, 1, window=window))


def test_splits_inside_the_window_are_shared_and_its_first_is_not() -> None:
    assert_close(make_args([Span(3, 3 * SPLIT + 20, BUSHY)], 2, 1, window=2 * SPLIT))


@pytest.mark.parametrize("window", [1, 3, 8])
def test_ancestors_outside_the_window_may_keep_their_bits(window: int) -> None:
    args = make_args([Span(1, 124, CHAIN_IN_TREE[:12])], 2, 1, window=window)
    expected = run(args)
    full = make_args([Span(1, 124, CHAIN_IN_TREE[:12])])["batch"].ancestor_mask
    assert not torch.equal(full, args["batch"].ancestor_mask)
    args["batch"].ancestor_mask.copy_(full)
    assert torch.equal(run(args), expected)


def test_wide_trees_use_several_mask_words() -> None:
    parents = tuple(max(0, node - 1 - node % 3) for node in range(1, 151))
    args = make_args([Span(1, 100, parents)], 2, 1, words=3)
    rows = [1, 63, 64, 65, 127, 128, 129, 150]
    assert_close(with_scratch(cpu_test.rows_alone(args, 0, rows)))


@pytest.mark.parametrize("window", [0, 6, 100])
@pytest.mark.parametrize("context", [1, 60, 64, 127, SPLIT - 3])
def test_a_tree_row_has_the_bits_of_plain_decoding(context: int, window: int) -> None:
    parents = CHAIN_IN_TREE[:9] if context % 2 else BUSHY
    args = make_args([Span(1, context, parents)], 6, 2, window=window)
    together = run(args)
    for node in range(0, len(parents) + 1, 3):
        chain = cpu_test.as_chain(args, node, context, path_to(node, parents))
        assert torch.equal(run(with_scratch(chain))[0], together[node]), node


def test_rows_have_the_same_bits_in_any_company_and_any_number_of_passes() -> None:
    args = make_args([Span(4, 65, BUSHY), Span(1, 700), Span(37, 120)], 6, 2)
    together = run(args)
    for rows in (1, 7, 40):
        assert torch.equal(run(with_scratch(args, rows)), together)
    alone = cpu_test.rows_alone(args, 0, [2])
    assert torch.equal(run(with_scratch(alone))[0], together[2])
    order = torch.randperm(30).add(17).tolist()
    assert torch.equal(run(with_scratch(cpu_test.rows_alone(args, 2, order))), together[order])


def test_other_rows_cannot_poison_a_row() -> None:
    """A NaN key and value of a later row or of a sibling must not reach rows that do not see it."""
    args = make_args([Span(20, 90, BUSHY)], 2, 1)
    expected = run(args)
    args["kv_cache"] = args["kv_cache"].clone()
    for index in (80, 90 + 1):  # a chain row; tree node 2
        block, offset = int(args["block_tables"][0, index // 16]), index % 16
        args["kv_cache"][block, :, :, offset] = float("nan")
    got = run(args)
    assert torch.equal(got[:10], expected[:10]) and got[10:].isnan().all()
    args["kv_cache"][int(args["block_tables"][0, 5]), :, :, 0] = 0.5  # heal the chain row
    args["batch"].visible_lens[20:] = 80  # and let no tree row see it
    got = run(args)
    sees = torch.tensor([2 in path_to(node, BUSHY) for node in range(1, 13)])
    assert torch.equal(got[20:].isnan().all(-1), sees)


def test_a_row_that_sees_nothing_is_zero_and_rows_past_num_rows_stay() -> None:
    args = make_args([Span(2, 9), Span(1, 20), Span(1, 20)])
    batch = args["batch"]
    batch.visible_lens[0] = 0
    batch.num_rows[0] = 2
    batch.cu_rows[2:] = torch.tensor([1, 3])  # sequences that are not live may hold anything
    out = run(args)
    assert (out[0] == 0).all() and (out[1] != -7.0).all() and (out[2:] == -7.0).all()


def test_a_sequence_without_rows() -> None:
    args = make_args([Span(2, 9), Span(0, 20), Span(1, 20)])
    alone = with_scratch(cpu_test.rows_alone(args, 2, [2]))
    assert torch.equal(run(alone)[0], run(args)[2])


def test_large_scores_stay_finite() -> None:
    args = make_args([Span(2, 300)])
    args["scale"] = 1e4
    assert torch.isfinite(run(args)).all()


def test_scratch_too_small_for_one_row_is_refused() -> None:
    args = make_args([Span(1, 9)])
    with pytest.raises(ValueError, match=r"scratch: expected at least 264 elements .* got 263"):
        run({**args, "scratch": args["scratch"][:263]})
    assert replace(args["batch"]).max_rows == 1
