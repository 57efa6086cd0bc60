"""What an engine tells about its steps: where tokens came from, the trees, who runs and waits."""

from __future__ import annotations

from time import perf_counter, sleep

import pytest

from sdengine.core.config import SpeculationConfig
from sdengine.core.outputs import StepTree
from sdengine.core.sampling_params import SamplingParams
from sdengine.engine import Engine
from tests.engine.conftest import MakeEngine, related_draft

TREES = SpeculationConfig(max_nodes=8, max_depth=4, adaptive=False)
PARAMS = SamplingParams(max_tokens=30, temperature=0.7, seed=3, ignore_eos=True)


def steps_of(engine: Engine) -> list[tuple[list[int], list[bool], StepTree]]:
    """New tokens, their origins and the tree of every step of one request."""
    engine.add_request("r", [5, 9, 140], PARAMS)
    steps, num_seen = [], 0
    while engine.has_unfinished_requests():
        for output in engine.step():
            completion, tree = output.outputs[0], engine.step_tree("r")
            assert tree is not None and len(completion.from_draft) == len(completion.token_ids)
            new = slice(num_seen, None)
            steps.append((list(completion.token_ids[new]), list(completion.from_draft[new]), tree))
            num_seen = len(completion.token_ids)
    return steps


def test_tokens_know_whether_they_were_drafted(make_engine: MakeEngine) -> None:
    steps = steps_of(make_engine(draft=related_draft(), speculation=TREES))
    for tokens, from_draft, tree in steps:
        drafted = [tree.token_ids[node] for node in tree.accepted]
        assert [*drafted, tree.own_token_id][: len(tokens)] == tokens
        assert from_draft == [True] * len(drafted[: len(tokens)]) + [False] * (
            len(tokens) - len(drafted)
        )
    assert any(any(from_draft) for _, from_draft, _ in steps)


def test_a_tree_s_parents_come_first_and_its_accepted_path_is_one(make_engine: MakeEngine) -> None:
    for _, _, tree in steps_of(make_engine(draft=related_draft(), speculation=TREES)):
        assert len(tree.parents) == len(tree.token_ids) <= 8
        assert all(-1 <= parent < node for node, parent in enumerate(tree.parents))
        path = [-1, *tree.accepted]
        assert [tree.parents[node] for node in tree.accepted] == path[:-1]


def test_plain_steps_have_no_nodes_and_no_drafted_tokens(make_engine: MakeEngine) -> None:
    for tokens, from_draft, tree in steps_of(make_engine()):
        assert from_draft == [False] and tree == StepTree([], [], [], tokens[0])


def test_a_sequence_that_did_not_move_has_no_tree(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.add_request("long", list(range(3, 100)), PARAMS)  # several chunks of prefill
    assert engine.step() == [] and engine.step_tree("long") is None
    assert engine.step_tree("unknown") is None
    engine.abort_request("long")


def test_ngram_trees_grow_however_long_the_text_is(make_engine: MakeEngine) -> None:
    """Longer than a step has room for: a drafter without a cache has nothing to catch up with."""
    ngrams = SpeculationConfig(method="ngram", min_ngram=1, max_nodes=4, adaptive=False)
    nodes = []
    for max_num_batched_tokens in (16, 512):
        engine = make_engine(speculation=ngrams, max_num_batched_tokens=max_num_batched_tokens)
        engine.add_request("r", [5, 9] * 20, PARAMS)
        reports = []
        while engine.has_unfinished_requests():
            if engine.step():
                reports.append(engine.last_report)
        nodes.append([report.num_nodes for report in reports])
        assert all(report.is_steady for report in reports[1:]), "nothing could be learned from them"
    assert nodes[0] == nodes[1] and sum(nodes[0]) > 10


@pytest.mark.parametrize("max_num_seqs,expected", [(1, (1, 2)), (3, (3, 0))])
def test_running_and_waiting_are_counted(
    make_engine: MakeEngine, max_num_seqs: int, expected: tuple[int, int]
) -> None:
    engine = make_engine(max_num_seqs=max_num_seqs)
    for name in "abc":
        engine.add_request(name, [5, 6], PARAMS)
    assert (engine.num_running, engine.num_waiting) == (0, 3)
    engine.step()
    assert (engine.num_running, engine.num_waiting) == expected
    assert len(engine.last_report.num_accepted) == expected[0]
    for name in "abc":
        engine.abort_request(name)


def test_idle_time_between_requests_is_nobodys(make_engine: MakeEngine) -> None:
    engine = make_engine(draft=related_draft(), speculation=TREES)
    steps_of(engine)
    sleep(2.0)
    started = perf_counter()
    engine.add_request("late", [5, 9, 140], PARAMS)
    outputs = []
    while engine.has_unfinished_requests():
        outputs += engine.step()
    elapsed = perf_counter() - started
    stats = outputs[-1].metrics.speculation
    assert stats is not None
    assert 0 < stats.draft_time_s + stats.verify_time_s + stats.other_time_s <= elapsed
