"""tree_attention: within twice plain torch's error; the same bits wherever the path is the same.

Where a processor has dot products of bfloat16, queries and probabilities are rounded for them: then
the error may be twice that of these roundings alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from sdengine.kernels.cpu_library import load_cpu
from sdengine.kernels.programs.program import make_pool, run_op
from sdengine.kernels.row_batch import RowBatch
from sdengine.kernels.tree_attention import attention_scratch, reference, visible_path

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


@dataclass
class Span:
    """Rows of one sequence: a chain ending at `context` keys, then tree nodes by their parents."""

    chain: int
    context: int
    parents: tuple[int, ...] = ()


def signed(bits: int) -> int:
    """A 64-bit word as the int64 with the same bits."""
    return bits - (1 << 64) if bits >> 63 else bits


def path_to(node: int, parents: tuple[int, ...]) -> list[int]:
    """Nodes from below the root to `node` (numbered from 1), itself included."""
    path: list[int] = []
    while node > 0:
        path.insert(0, node)
        node = parents[node - 1]
    return path


def mask_words(path: list[int], words: int) -> list[int]:
    bits = sum(1 << (node - 1) for node in path)
    return [signed(bits >> (64 * w) & (1 << 64) - 1) for w in range(words)]


def make_args(
    spans: list[Span],
    heads: int = 4,
    kv_heads: int = 2,
    dim: int = 64,
    dtype: torch.dtype = F32,
    block_size: int = 16,
    window: int = 0,
    words: int = 1,
) -> dict[str, Any]:
    """Random queries and a random cache; the rows of each span as the row batch describes them."""
    positions, visible, masks, cu_rows = [], [], [], [0]
    for span in spans:
        for i in range(span.chain):
            positions.append(span.context - span.chain + i)
            visible.append(positions[-1] + 1)
            masks.append([0] * words)
        for node in range(1, len(span.parents) + 1):
            path = path_to(node, span.parents)
            positions.append(span.context - 1 + len(path))
            visible.append(span.context)
            masks.append(mask_words(path[-window:] if window else path, words))
        cu_rows.append(len(positions))
    capacity = max(s.context + len(s.parents) for s in spans)
    blocks = (capacity + block_size - 1) // block_size
    rows = len(positions)
    batch = make_batch(positions, visible, masks, cu_rows, [s.context for s in spans])
    return {
        "qkv": torch.randn(rows, (heads + 2 * kv_heads) * dim),
        "kv_cache": torch.randn(len(spans) * blocks, 2, kv_heads, block_size, dim).to(dtype),
        "block_tables": torch.randperm(len(spans) * blocks).int().view(len(spans), blocks),
        "batch": batch,
        "out": torch.full((rows, heads * dim), -7.0),
        "scratch": attention_scratch(rows, heads, dim, capacity, num_threads=8),
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": dim,
        "scale": dim**-0.5,
        "window": window,
    }


def make_batch(
    positions: list[int],
    visible: list[int],
    masks: list[list[int]],
    cu_rows: list[int],
    tree_starts: list[int],
) -> RowBatch:
    batch = RowBatch.allocate(len(tree_starts), len(positions), len(masks[0]))
    batch.positions[:] = torch.tensor(positions)
    batch.visible_lens[:] = torch.tensor(visible)
    batch.ancestor_mask[:] = torch.tensor(masks, dtype=torch.int64)
    batch.cu_rows[:] = torch.tensor(cu_rows)
    batch.row_seq[:] = torch.arange(len(tree_starts)).repeat_interleave(batch.cu_rows.diff())
    batch.tree_starts[:] = torch.tensor(tree_starts)
    batch.num_rows[0] = len(positions)
    return batch


def run(args: dict[str, Any], threads: int = 1) -> torch.Tensor:
    args = {**args, "out": torch.full_like(args["out"], -7.0)}
    run_op("tree_attention", pool=make_pool(threads), **args)
    return args["out"]


def rows_alone(args: dict[str, Any], b: int, rows: list[int]) -> dict[str, Any]:
    """The same launch with only some rows of sequence b in it."""
    full = args["batch"]
    batch = make_batch(
        full.positions[rows].tolist(),
        full.visible_lens[rows].tolist(),
        full.ancestor_mask[rows].tolist(),
        [0, len(rows)],
        [int(full.tree_starts[b])],
    )
    return {
        **args,
        "qkv": args["qkv"][rows].clone(),
        "out": args["out"][rows].clone(),
        "block_tables": args["block_tables"][b : b + 1].clone(),
        "batch": batch,
    }


def as_chain(args: dict[str, Any], row: int, context: int, path: list[int]) -> dict[str, Any]:
    """Plain decoding of a row of sequence 0: its path in order, in blocks of another size."""
    length, block_size = context + len(path), 8
    logical = torch.cat([torch.arange(context), context - 1 + torch.tensor(path, dtype=torch.long)])
    old = args["kv_cache"].shape[3]
    kept = args["kv_cache"][args["block_tables"][0].long()[logical // old], :, :, logical % old]
    blocks = (length + block_size - 1) // block_size
    table = torch.randperm(blocks + 3)[:blocks]
    cache = torch.full(
        (blocks + 3, 2, args["num_kv_heads"], block_size, args["head_dim"]), float("nan")
    ).to(kept.dtype)
    at = torch.arange(length)
    cache[table[at // block_size], :, :, at % block_size] = kept
    return {
        **args,
        "qkv": args["qkv"][row : row + 1].clone(),
        "kv_cache": cache,
        "block_tables": table.int().view(1, -1),
        "batch": make_batch([length - 1], [length], [[0]], [0, 1], [length]),
        "out": args["out"][:1].clone(),
    }


BUSHY = (0, 0, 1, 1, 2, 4, 0, 6, 8, 3, 5, 11)  # several depths, ancestors scattered among siblings
CHAIN_IN_TREE = tuple(range(40))  # deep enough to cross a split from any context below 128


def rounded_reference(args: dict[str, Any]) -> torch.Tensor:
    """In float64, but queries (scaled to powers of two) and probabilities are rounded."""
    heads, kv_heads, dim = args["num_heads"], args["num_kv_heads"], args["head_dim"]
    batch, cache, size = args["batch"], args["kv_cache"], args["kv_cache"].shape[3]
    out = torch.zeros(len(args["out"]), heads * dim, dtype=torch.float64)
    for row in range(int(batch.num_rows)):
        b = int(batch.row_seq[row])
        path = visible_path(batch, row, b, args["window"])
        blocks = args["block_tables"][b].long()[path // size]
        keys, values = cache[blocks, :, :, path % size].double().unbind(1)
        query = args["qkv"][row, : heads * dim] * (args["scale"] / math.log(2))
        query = query.bfloat16().double().view(kv_heads, -1, dim)
        scores = torch.einsum("hgd,shd->hgs", query, keys)
        probs = (scores - scores.amax(-1, keepdim=True)).exp2()
        sums = torch.einsum("hgs,shd->hgd", probs.bfloat16().double(), values)
        out[row] = (sums / probs.sum(-1, keepdim=True)).reshape(-1)
    return out


def assert_within_twice_plain(args: dict[str, Any]) -> None:
    wide = {**args, "qkv": args["qkv"].double(), "out": args["out"].double()}
    reference(**wide)
    if args["kv_cache"].dtype == BF16 and load_cpu().selected_isa() == "avx512_bf16":
        plain = rounded_reference(args)
    else:
        plain = args["out"].clone()
        reference(**{**args, "out": plain})
    error = (run(args) - wide["out"]).abs().max()
    ulp = wide["out"].abs().max() * 2.0**-23  # plain torch is exact by luck on short paths
    assert error <= 2 * (plain - wide["out"]).abs().max() + 4 * ulp


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("dim", [64, 80, 96, 128])
def test_error_is_at_most_twice_plain_torch(dim: int, group: int, dtype: torch.dtype) -> None:
    spans = [Span(3, 70, BUSHY), Span(1, 1), Span(2, 150)]
    assert_within_twice_plain(make_args(spans, heads=2 * group, dim=dim, dtype=dtype))


@pytest.mark.parametrize("dim", [8, 24, 40, 72, 88, 120, 256])
@pytest.mark.parametrize("block_size", [8, 24, 64])
def test_unusual_sizes(dim: int, block_size: int) -> None:
    for dtype in (F32, BF16, F16):
        spans = [Span(4, 33, (0, 1, 0)), Span(1, 129)]
        assert_within_twice_plain(make_args(spans, 6, 2, dim, dtype, block_size))


@pytest.mark.parametrize("context", [1, 2, 31, 32, 33, 127, 128, 129, 255, 256, 257, 300])
def test_borders_of_tiles_and_splits(context: int) -> None:
    for chain in {1, min(context, 40)}:
        for dtype in (F32, BF16):
            assert_within_twice_plain(make_args([Span(chain, context, BUSHY)], 3, 1, dtype=dtype))


@pytest.mark.parametrize("window", [1, 5, 64, 130])
def test_sliding_window(window: int) -> None:
    for context, chain in ((7, 7), (140, 60), (300, 3)):
        for dtype in (F32, BF16):
            spans = [Span(chain, context, BUSHY)]
            assert_within_twice_plain(make_args(spans, 4, 2, dtype=dtype, window=window))


@pytest.mark.parametrize("window", [1, 3, 8])
def test_ancestors_outside_the_window_may_keep_their_bits(window: int) -> None:
    args = make_args([Span(1, 124, CHAIN_IN_TREE)], 4, 2, window=window)
    expected = run(args)
    full = make_args([Span(1, 124, CHAIN_IN_TREE)])["batch"].ancestor_mask
    assert not torch.equal(full, args["batch"].ancestor_mask)
    args["batch"].ancestor_mask.copy_(full)
    assert torch.equal(run(args), expected)
    assert_within_twice_plain(args)


def test_wide_trees_use_several_mask_words() -> None:
    parents = tuple(max(0, node - 1 - node % 3) for node in range(1, 151))
    assert_within_twice_plain(make_args([Span(1, 100, parents)], 4, 2, words=3))


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize("window", [0, 6, 100])
@pytest.mark.parametrize("context", [1, 60, 120, 127, 128, 250, 1000])
def test_a_tree_row_has_the_bits_of_plain_decoding(
    context: int, window: int, dtype: torch.dtype
) -> None:
    for parents in (BUSHY, CHAIN_IN_TREE):
        args = make_args([Span(1, context, parents)], 6, 2, 64, dtype, window=window)
        together = run(args)
        for node in range(len(parents) + 1):
            chain = as_chain(args, node, context, path_to(node, parents))
            assert torch.equal(run(chain)[0], together[node]), node


@pytest.mark.parametrize("dim,heads,kv_heads", [(80, 7, 1), (128, 6, 3), (96, 5, 1), (64, 8, 1)])
def test_the_same_for_other_shapes(dim: int, heads: int, kv_heads: int) -> None:
    args = make_args([Span(1, 1000, BUSHY)], heads, kv_heads, dim, BF16)
    together = run(args)
    for node in (0, 3, 9, 12):
        assert torch.equal(run(as_chain(args, node, 1000, path_to(node, BUSHY)))[0], together[node])


def test_prefill_rows_have_the_bits_of_plain_decoding() -> None:
    for window in (0, 50):
        args = make_args([Span(150, 290)], 3, 1, 64, BF16, window=window)
        together = run(args)
        for row in (0, 1, 41, 42, 64, 116, 149):
            assert torch.equal(run(as_chain(args, row, 141 + row, []))[0], together[row]), row


@pytest.mark.parametrize("threads", [2, 3, 7])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_bits_do_not_depend_on_threads(threads: int, dtype: torch.dtype) -> None:
    for spans in ([Span(1, 900)], [Span(5, 400, BUSHY), Span(1, 3), Span(100, 700)]):
        args = make_args(spans, 8, 2, dtype=dtype)
        assert torch.equal(run(args, threads), run(args, 1))


def test_little_scratch_changes_nothing() -> None:
    args = make_args([Span(1, 900)], 8, 2)
    expected = run(args)
    for floats in (0, 7, 5000):
        assert torch.equal(run({**args, "scratch": torch.empty(floats)}, 4), expected)


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_bits_do_not_depend_on_the_batch(dtype: torch.dtype) -> None:
    args = make_args([Span(20, 400, BUSHY), Span(1, 3), Span(30, 131)], 6, 2, dtype=dtype)
    together = run(args)
    assert torch.equal(run(rows_alone(args, 1, [32]))[0], together[32])
    assert torch.equal(run(rows_alone(args, 0, [2]))[0], together[2])
    assert torch.equal(run(rows_alone(args, 0, [25, 31])), together[[25, 31]])
    order = torch.randperm(30).add(33).tolist()
    assert torch.equal(run(rows_alone(args, 2, order)), together[order])


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("late", [80, 81])
def test_other_rows_cannot_poison_a_row(late: int, dtype: torch.dtype) -> None:
    """A NaN key and value of a later row or of a sibling must not reach rows that do not see it."""
    args = make_args([Span(40, 90, BUSHY)], 4, 2, dtype=dtype)
    expected = run(args)
    broken = {**args, "kv_cache": args["kv_cache"].clone()}
    for index in (late, 90 + 1):  # a chain row; tree node 2
        block, offset = int(args["block_tables"][0, index // 16]), index % 16
        broken["kv_cache"][block, :, :, offset] = float("nan")
    got = run(broken)
    assert torch.equal(got[: late - 50], expected[: late - 50])
    assert got[late - 50].isnan().all() and got[40:].isnan().all()
    only_sibling = {**args, "kv_cache": args["kv_cache"].clone()}
    only_sibling["kv_cache"][int(args["block_tables"][0, 5]), :, :, 11] = float("nan")  # index 91
    got = run(only_sibling)
    sees = torch.tensor([2 in path_to(node, BUSHY) for node in range(13)])
    assert got[39:][sees].isnan().all() and torch.equal(got[39:][~sees], expected[39:][~sees])


def test_a_row_that_sees_nothing_is_zero_and_rows_past_num_rows_stay() -> None:
    args = make_args([Span(2, 9), Span(1, 20), Span(1, 20)])
    batch = args["batch"]
    batch.visible_lens[0] = 0
    batch.num_rows[0] = 2
    batch.cu_rows[2:] = torch.tensor([1, 3])  # sequences that are not live may hold anything
    out = run(args)
    assert (out[0] == 0).all() and (out[1] != -7.0).all() and (out[2:] == -7.0).all()


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize("dim", [40, 64])
def test_results_can_be_stored_rounded(dim: int, dtype: torch.dtype) -> None:
    args = make_args([Span(3, 300), Span(2, 20, (0, 0, 1))], dim=dim, dtype=dtype)
    args["batch"].visible_lens[0] = 0
    wide = run(args, 2)
    rounded = run({**args, "out": args["out"].bfloat16()}, 2)
    assert rounded.dtype == BF16 and torch.equal(rounded, wide.bfloat16())


def test_a_sequence_without_rows() -> None:
    args = make_args([Span(2, 9), Span(0, 20), Span(1, 20)])
    assert torch.equal(run(rows_alone(args, 2, [2]))[0], run(args)[2])


def test_large_scores_stay_finite() -> None:
    args = make_args([Span(2, 300)])
    args["scale"] = 1e4
    assert torch.isfinite(run(args)).all()


def test_names_the_wrong_argument() -> None:
    args = make_args([Span(1, 9)])
    with pytest.raises(ValueError, match=r"tree_attention: block_size: expected a multiple of 8"):
        run({**args, "kv_cache": torch.zeros(2, 2, 2, 12, 64)})
    with pytest.raises(ValueError, match=r"tree_attention: head_dim: expected a multiple of 8"):
        run({**args, "head_dim": 20})
    for heads in ({"num_heads": 0}, {"num_kv_heads": 0}):
        with pytest.raises(ValueError, match=r"tree_attention: num_heads: expected a positive"):
            run({**args, **heads})
    with pytest.raises(ValueError, match=r"tree_attention: block_size: .* got 0"):
        run({**args, "kv_cache": torch.zeros(2, 2, args["num_kv_heads"], 0, 64)})
    with pytest.raises(ValueError, match=r"tree_attention: block_tables: expected room"):
        run({**args, "block_tables": args["block_tables"][:, :0].contiguous()})
