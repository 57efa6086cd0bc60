"""tree_verify: coupled walks equal the reference and plain pointer chasing."""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from sdengine.kernels.calibration import (
    bin_edges,
    calibrated,
    calibration_bin,
    calibration_class,
)
from sdengine.kernels.programs.program import make_pool, run_op
from sdengine.kernels.sampling_tables import SamplingTables
from sdengine.kernels.token_tree import TokenTree
from sdengine.kernels.verdict import Verdict

from .random_token_trees import fill_token_tree, int_tensor, random_token_tree
from .same_tensors import assert_same_tensors


def coupled_args(tree: TokenTree, target_tokens: torch.Tensor | None, depth: int) -> dict[str, Any]:
    batch = tree.batch_size
    sizes = [int(n) + 1 for n in tree.num_nodes]
    starts = torch.tensor([0, *sizes]).cumsum(0)[:-1].int()
    return {
        "mode": "coupled",
        "tree": tree,
        "logit_starts": starts,
        "wants_logits": torch.ones(batch, dtype=torch.int32),
        "num_seqs": int_tensor([batch]),
        "target_tokens": target_tokens,
        "verdict": unwritten_verdict(batch, depth),
    }


def unwritten_verdict(batch: int, depth: int) -> Verdict:
    """One whose untouched entries are -7."""
    verdict = Verdict.allocate(batch, depth)
    for tensor in (verdict.num_accepted, verdict.path, verdict.out_tokens):
        tensor.fill_(-7)
    return verdict


def run_both(args: dict[str, Any], workers: int = 1) -> Verdict:
    """Runs kernel and reference, insists on equal verdicts and returns it."""
    mine = {**args, "verdict": copy.deepcopy(args["verdict"])}
    run_op("tree_verify", "reference", **mine)
    run_op("tree_verify", "cpu", make_pool(workers), **args)
    assert_same_tensors("verdict", args["verdict"], mine["verdict"])
    return args["verdict"]


def test_a_walk_follows_the_target_and_counts_the_children_it_saw() -> None:
    tree = TokenTree.allocate(1, 4)
    fill_token_tree(tree, 0, [0, 1, 1, 0], [10, 20, 21, 11], [0.9, 0.1, 0.5, 0.9])
    out = run_both(coupled_args(tree, int_tensor([10, 21, 0, 33, 0]), depth=3))
    assert out.path.tolist() == [[1, 3, -7]]
    assert out.out_tokens.tolist() == [[10, 21, 33, -7]]
    assert int(out.num_accepted) == 2
    sure, low, half = calibration_bin(torch.tensor([0.9, 0.1, 0.5])).tolist()
    tried = out.tried[0].nonzero().tolist()
    assert tried == [[0, low], [0, sure], [1, half]], "none behind a match"
    assert out.accepted[0].nonzero().tolist() == [[0, sure], [1, half]]


@pytest.mark.parametrize(
    "wants,expected", [(0, (0, [-1, -7])), (1, (1, [5, 6])), (2, (0, [5, -7]))]
)
def test_wants_logits_decides_how_much_is_walked(wants: int, expected: Any) -> None:
    tree = TokenTree.allocate(1, 1)
    fill_token_tree(tree, 0, [0], [5], [0.5])
    args = coupled_args(tree, int_tensor([5, 6]), depth=1)
    args["wants_logits"] = int_tensor([wants])
    out = run_both(args)
    assert (int(out.num_accepted), out.out_tokens[0].tolist()) == expected


def test_a_row_that_cannot_be_drawn_ends_the_walk() -> None:
    tree = TokenTree.allocate(1, 2)
    fill_token_tree(tree, 0, [0, 1], [5, 6], [0.5, 0.5])
    out = run_both(coupled_args(tree, int_tensor([5, -1, 8]), depth=2))
    assert out.out_tokens.tolist() == [[5, -1, -7]]
    assert int(out.num_accepted) == 1


def test_of_equal_siblings_the_first_is_accepted() -> None:
    tree = TokenTree.allocate(1, 2)
    fill_token_tree(tree, 0, [0, 0], [5, 5], [0.5, 0.9])
    out = run_both(coupled_args(tree, int_tensor([5, 7, 8]), depth=2))
    assert (out.path[0, 0], out.out_tokens.tolist()) == (1, [[5, 7, -7]])
    assert int(out.accepted.sum()) == 1


def test_a_walk_ends_at_the_deepest_path_that_fits() -> None:
    tree = TokenTree.allocate(1, 3)
    fill_token_tree(tree, 0, [0, 1, 2], [5, 6, 7], [0.5] * 3)
    out = run_both(coupled_args(tree, int_tensor([5, 6, 7, 8]), depth=2))
    assert out.out_tokens.tolist() == [[5, 6, 7]]


@pytest.mark.parametrize("seed", range(20))
def test_random_trees_equal_the_reference(seed: int) -> None:
    rng = random.Random(seed)
    tree = random_token_tree(rng, batch=5, max_nodes=40, vocab=3)
    rows = int(tree.num_nodes.sum()) + 5
    targets = int_tensor([rng.randrange(3) for _ in range(rows)])
    out = run_both(
        coupled_args(tree, targets, depth=rng.choice([1, 4, 40])), workers=rng.choice([1, 2])
    )
    assert (out.accepted <= out.tried).all()
    assert torch.equal(out.accepted.sum((1, 2)), out.num_accepted)


def sampled_targets(args: dict[str, Any], rows: int) -> torch.Tensor:
    """What `sample` draws for every node of every tree."""
    tree, starts = args["tree"], args["logit_starts"].tolist()
    row_seq, positions = torch.zeros(rows).int(), torch.zeros(rows).int()
    for b, start in enumerate(starts):
        for node in range(int(tree.num_nodes[b]) + 1):
            row_seq[start + node] = b
            depth = int(tree.depths[b, node]) if node else 0
            positions[start + node] = args["tree_starts"][b] - 1 + depth
    out = torch.empty(rows, dtype=torch.int32)
    parameters = {name: args[name] for name in ("logits", "sampling")}
    counts = {"num_rows": int_tensor([rows]), "out_tokens": out}
    run_op("sample", row_seq=row_seq, positions=positions, **parameters, **counts)
    return out


def filtered_args(tree: TokenTree, logits: torch.Tensor) -> dict[str, Any]:
    """Coupled walks of four sequences with every filter; the first tokens are likely, and a row in
    the middle holds NaN.

    Args:
        tree: of batch 4, of tokens below 4.
        logits: [nodes and roots, V], written.
    """
    rows, vocab = logits.shape
    logits[:, :4] += 4.0
    logits[rows // 2, vocab // 2] = float("nan")
    return coupled_args(tree, None, depth=6) | {
        "logits": logits,
        "tree_starts": int_tensor([1, 50, 300, 7]),
        "sampling": SamplingTables(
            temperature=torch.tensor([0.0, 0.5, 1.0, 2.0]),
            top_k=int_tensor([0, 2, 0, 40]),
            top_p=torch.tensor([1.0, 1.0, 0.8, 0.3]),
            min_p=torch.tensor([0.0, 0.0, 0.1, 0.0]),
            seeds=torch.tensor([1, 2**40, -3, 9]),
        ),
    }


@pytest.mark.parametrize("seed", range(10))
def test_drawing_visited_nodes_only_gives_the_tokens_of_sample(seed: int) -> None:
    rng = random.Random(seed)
    tree = random_token_tree(rng, batch=4, max_nodes=30, vocab=4)
    rows = int(tree.num_nodes.sum()) + 4
    args = coupled_args(tree, None, depth=8)
    args["logits"] = torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed))
    args["tree_starts"] = int_tensor([rng.randrange(1, 500) for _ in range(4)])
    args["sampling"] = SamplingTables(
        temperature=torch.tensor([0.0, 0.5, 1.0, 2.0]),
        top_k=int_tensor([0, 2, 0, 0]),
        top_p=torch.tensor([1.0, 1.0, 0.8, 1.0]),
        min_p=torch.tensor([0.0, 0.0, 0.0, 0.1]),
        seeds=torch.tensor([rng.randrange(-(2**62), 2**62) for _ in range(4)]),
    )
    lazy = run_both(args)
    eager = run_both(coupled_args(tree, sampled_targets(args, rows), depth=8))
    assert_same_tensors("verdict", lazy, eager)


def test_names_the_wrong_field() -> None:
    tree = random_token_tree(random.Random(0), batch=4, max_nodes=5, vocab=4)
    args = filtered_args(tree, torch.randn(int(tree.num_nodes.sum()) + 4, 8))
    verdict: Verdict = args["verdict"]
    sampling: SamplingTables = args["sampling"]
    for name, wrong, message in (
        ("sampling", None, "sampling: expected a SamplingTables, got NoneType"),
        (
            "sampling",
            replace(sampling, seeds=sampling.seeds.int()),
            "sampling.seeds: expected torch.int64, ",
        ),
        (
            "sampling",
            replace(sampling, temperature=torch.ones(3)),
            r"sampling.temperature: expected shape \[4\], got \[3\]",
        ),
        ("verdict", verdict.path, "verdict: expected a Verdict, got Tensor"),
        (
            "verdict",
            Verdict.allocate(3, 6),
            r"verdict.path: expected shape \[4, 'any'\], got \[3, 6\]",
        ),
        (
            "verdict",
            replace(verdict, tried=verdict.path),
            r"verdict.tried: expected shape \[4, 8, 32\], got \[4, 6\]",
        ),
    ):
        with pytest.raises(ValueError, match=f"tree_verify: {message}"):
            run_op("tree_verify", **{**args, name: wrong})


def test_bins_cover_the_unit_interval_in_order() -> None:
    edges = bin_edges()
    assert (edges[1:] > edges[:-1]).all() and float(edges[0]) == 0.0 and float(edges[-1]) == 1.0
    below = torch.nextafter(edges[1:-1], torch.zeros(31))
    assert calibration_bin(edges[1:-1]).tolist() == list(range(1, 32))
    assert calibration_bin(below).tolist() == list(range(31))
    assert calibration_bin(torch.tensor([-1.0, float("nan"), 0.0, 1.0, 2.0])).tolist() == [
        0,
        0,
        0,
        31,
        31,
    ]


def test_the_kernel_uses_the_same_bins() -> None:
    edges = bin_edges()
    values = torch.cat([edges, torch.nextafter(edges, torch.zeros(33)), torch.rand(500)]).tolist()
    tree = TokenTree.allocate(1, len(values))
    fill_token_tree(tree, 0, [0] * len(values), list(range(len(values))), values)
    args = coupled_args(tree, torch.full((len(values) + 1,), 10**6, dtype=torch.int32), depth=1)
    run_both(args)
    assert int(args["verdict"].tried.sum()) == len(values)


def test_ranks_fall_into_classes_in_order() -> None:
    classes = [calibration_class(rank) for rank in range(14)]
    assert classes == [0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 6, 6, 7, 7]
    tree = TokenTree.allocate(1, 14)
    fill_token_tree(tree, 0, [0] * 14, list(range(14)), [0.5] * 14)
    args = coupled_args(tree, torch.full((15,), 99, dtype=torch.int32), depth=1)
    run_both(args)
    assert args["verdict"].tried[0].sum(1).tolist() == [classes.count(c) for c in range(8)]


def test_calibration_keeps_estimates_under_the_identity_and_their_order() -> None:
    estimates = torch.linspace(0, 1, 2001)
    centers = (bin_edges()[1:] + bin_edges()[:-1]) / 2
    assert (calibrated(estimates, centers) - estimates).abs().max() < 1e-6
    table = (centers**2 * 0.9).sort().values
    values = calibrated(estimates, table)
    assert (values[1:] >= values[:-1]).all() and values.min() >= 0 and values.max() <= 1
