"""Batches of requests: what is timed, which seeds run, and what the trees' observer counts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from benchmarks.generate import build_parser
from benchmarks.generate_runs import Contender, batches, compare, open_engine
from benchmarks.reliability import ReliabilityBin, TreeObserver, expected_error
from sdengine.cli.measure import Run, run_batch
from sdengine.core.sampling_params import SamplingParams
from sdengine.kernels.token_tree import TokenTree
from tests.benchmarks.fakes import FakeEngine

PARAMS = SamplingParams(max_tokens=6, temperature=0.5, seed=7)


def test_the_last_batch_is_filled_from_the_first_prompts() -> None:
    assert batches(["a", "b", "c"], 2) == [["a", "b"], ["c", "a"]]
    assert batches(["a"], 3) == [["a", "a", "a"]]


def test_requests_of_a_batch_have_seeds_of_their_own() -> None:
    engine = FakeEngine()
    run = run_batch(engine, ["x", "x"], PARAMS)
    assert [params.seed for _, params in engine.requests] == [7, 8]
    assert run.token_ids == [list(map(ord, "abcdef"))] * 2
    assert len(run.speculation) == 2 and run.speculation[0].num_steps == 3


def test_speed_counts_from_the_last_first_token_and_gaps_are_shared() -> None:
    # the second request starts a second after the first, which has committed five tokens by then
    commits = [[(1.0, 2), (2.0, 5), (4.0, 7)], [(2.0, 1), (3.0, 3)]]
    run = Run.from_commits([], commits)
    assert list(run.first_token_s) == [1.0, 2.0]
    assert run.decode_s == 2.0 and run.num_decoded == 4
    assert run.tokens_per_s == 2.0
    assert list(run.gaps_s) == pytest.approx([1 / 3] * 3 + [1.0] * 2 + [0.5] * 2)


def test_every_run_reads_its_prompts_anew() -> None:
    engine = open_engine(build_parser().parse_args(["--num-threads", "1"]), None, 1)
    rows: list[list[int]] = []  # of the target's passes
    for _ in range(2):
        rows.append([])
        prompts = ["class Point:\n    def __init__(self, x, y):\n        self.x = x\n" * 3]
        run_batch(engine, prompts, PARAMS, lambda: rows[-1].append(engine.last_report.num_rows))
    assert rows[0] == rows[1] and rows[0][0] > engine.config.block_size


def test_everybody_takes_turns_and_is_held_against_the_same_plain_runs() -> None:
    log: list[str] = []
    engines = []
    for name in ("plain", "a", "b"):
        engine = FakeEngine(is_speculative=name != "plain")
        add = engine.add_request
        engine.add_request = lambda *a, n=name, add=add: (log.append(n), add(*a))  # type: ignore
        engines.append(Contender("dyspec", name, engine, None))  # type: ignore[arg-type]
    plain, *others = engines
    pairs = compare(plain, others, ["p"], PARAMS, 3)
    assert "".join(name[0] for name in log) == "pabbappab"
    assert len(pairs) == 2 and pairs[0].plain is pairs[1].plain
    assert all(pair.is_identical and len(pair.speculative) == 3 for pair in pairs)
    assert not any(run.speculation for run in pairs[0].plain)


def observed(
    num_accepted: int, path: list[int], num_nodes: int = 4, first_reach: float = 0.75
) -> list[ReliabilityBin]:
    """Bins after one step over the tree root--1--2, 1--3, root--4 of slot 1 of 2."""
    tree = TokenTree.allocate(2, 6)
    tree.num_nodes[1] = num_nodes
    tree.parents[1, 1:5] = torch.tensor([0, 1, 1, 0])
    tree.reach[1, 1:5] = torch.tensor([first_reach, first_reach / 2, first_reach * 0.4, 0.1])
    verdict = SimpleNamespace(
        num_accepted=torch.tensor([9, num_accepted]),
        path=torch.tensor([[0] * 3, path + [0] * (3 - len(path))]),
    )
    state = SimpleNamespace(wants_logits=torch.tensor([2, 1], dtype=torch.int32))
    workspace = SimpleNamespace(token_tree=tree, state=state)
    engine = SimpleNamespace(
        iteration=SimpleNamespace(workspace=workspace, verdict=verdict),
        last_report=SimpleNamespace(num_nodes=num_nodes),
    )
    observer = TreeObserver(engine)
    observer()
    return observer.bins()


def test_children_of_visited_nodes_are_observed_and_no_others() -> None:
    # 1 and 2 accepted: of the root's children 0.75 came true, 0.1 did not; below node 1, 0.5 did
    # and 0.4 did not
    bins = observed(2, [1, 2])
    assert [(round(b.predicted, 3), b.seen, b.count) for b in bins] == [
        (0.1, 0.0, 1),
        (0.4, 0.0, 1),
        (0.5, 1.0, 1),
        (0.75, 1.0, 1),
    ]
    # nothing accepted: the children of 1 were never tested
    assert [(round(b.predicted, 3), b.seen) for b in observed(0, [])] == [(0.1, 0.0), (0.75, 0.0)]
    assert observed(0, [], num_nodes=0) == []


def test_children_of_a_node_that_was_not_believed_in_are_not_believed_in() -> None:
    bins = observed(2, [1, 2], first_reach=0.0)  # 1 and 2 accepted, 3 and 4 not
    assert [(round(b.predicted, 3), b.seen, b.count) for b in bins] == [
        (0.0, pytest.approx(2 / 3), 3),
        (0.1, 0.0, 1),
    ]


def test_the_expected_error_weighs_bins_by_their_children() -> None:
    assert expected_error([]) == 0.0
    bins = [ReliabilityBin(0.2, 0.3, 30), ReliabilityBin(0.9, 0.7, 10)]
    assert expected_error(bins) == pytest.approx(0.125)
