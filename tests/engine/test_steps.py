"""What an engine tells about its steps: where tokens came from, the trees, who runs and waits."""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter, sleep

import pytest

from sdengine.controllers.base import AskOutlook
from sdengine.core.config import SpeculationConfig
from sdengine.core.outputs import StepTree
from sdengine.core.plan import StepPlan, StepReport
from sdengine.core.sampling_params import SamplingParams
from sdengine.engine import Engine
from sdengine.runner.flight import Flight
from sdengine.scheduler.scheduler import Schedule
from tests.engine.conftest import MakeEngine, related_draft
from tests.model.checkpoints import make_checkpoint

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


@pytest.mark.parametrize("max_iterations", [1, 6])
def test_reports_say_which_layers_ran(make_engine: MakeEngine, max_iterations: int) -> None:
    """Of four that are there as many as any sequence may use; none of them in a plain step."""
    # Trees may be full before their last layer.
    chains = replace(TREES, method="chain", max_nodes=4)
    engine = make_engine(draft=related_draft(), speculation=chains)
    engine.controller = Deep([4, 2, 1, 0, 3])
    engine.add_request("r", [5, 9, 140], replace(PARAMS, max_tokens=60))
    seen = []
    while engine.has_unfinished_requests() and len(seen) < 5:
        engine.step(max_iterations, 600.0)
        seen.append({report.num_layers for report in engine.last_reports})
        for report in engine.last_reports:
            assert 0.0 <= report.first_layer_s <= report.draft_time_s
            assert (report.first_layer_s > 0.0) == (report.num_layers > 0)
            if report.num_layers > 1:
                assert report.first_layer_s < report.draft_time_s
    assert seen == [{4}, {2}, {1}, {0}, {3}]
    engine.abort_request("r")


class Deep:
    """Trees of one depth after the other."""

    def __init__(self, depths: list[int]) -> None:
        self._depths = depths

    def plan(self, num_decoding: int, outlook: AskOutlook | None = None) -> StepPlan:
        return StepPlan(self._depths.pop(0), 8, num_iterations=6)

    def observe(self, plan: StepPlan, report: StepReport) -> None:
        pass


class NowAndThen:
    """Grows a tree in the first step and in every `period`-th after it."""

    def __init__(self, period: int) -> None:
        self.period = period
        self.num_steps = 0
        self.seen: list[StepReport] = []

    def plan(self, num_decoding: int, outlook: AskOutlook | None = None) -> StepPlan:
        is_plain = self.num_steps % self.period > 0
        self.num_steps += 1
        return StepPlan(0, 0) if is_plain else StepPlan(4, 8)

    def observe(self, plan: StepPlan, report: StepReport) -> None:
        self.seen.append(report)


def test_a_plain_step_after_a_tree_tells_nothing_of_it(make_engine: MakeEngine) -> None:
    engine = make_engine(draft=related_draft(), speculation=TREES)
    engine.controller = controller = NowAndThen(2)
    trees = [tree for _, _, tree in steps_of(engine)]
    assert len(trees) > 6 and all(tree.token_ids for tree in trees[:-2:2])
    assert [tree.token_ids for tree in trees[1::2]] == [[]] * (len(trees) // 2)
    num_nodes = [len(tree.token_ids) for tree in trees]
    assert [report.num_nodes for report in controller.seen] == num_nodes


def test_a_step_in_which_a_draft_catches_up_says_nothing_of_others(make_engine: MakeEngine) -> None:
    engine = make_engine(draft=related_draft(), speculation=TREES)
    engine.controller = controller = NowAndThen(4)
    steps_of(engine)
    assert [report.is_steady for report in controller.seen[:9]] == [
        *(False, True, True, True),
        *(False, True, True, True),
        False,
    ]


def test_steps_of_a_draft_that_keeps_up_can_be_learned_from(make_engine: MakeEngine) -> None:
    """All but the one that reads the prompt; after an accepted leaf it has two tokens to read."""
    engine = make_engine(draft=str(make_checkpoint()), speculation=TREES)
    engine.add_request("r", [5, 9, 140], PARAMS)
    reports = []
    while engine.has_unfinished_requests():
        engine.step()
        reports.append(engine.last_report)
    assert [report.is_steady for report in reports] == [False] + [True] * (len(reports) - 1)
    assert max(report.num_accepted[0] for report in reports[:-1]) == 4 and len(reports) > 4


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_perfect_draft_stays_perfect_below_every_branch(
    make_engine: MakeEngine, temperature: float
) -> None:
    """Its cache keeps the accepted path alone, as the target's does: no step accepts less."""
    bushy = SpeculationConfig(method="kary", branching=(3, 2, 2), adaptive=False)
    engine = make_engine(draft=str(make_checkpoint()), speculation=bushy)
    engine.add_request("r", [5, 9, 140], replace(PARAMS, temperature=temperature, max_tokens=80))
    accepted = []
    while engine.has_unfinished_requests():
        engine.step()
        accepted += engine.last_report.num_accepted
    assert accepted == [3] * 20


def test_no_step_follows_one_in_which_a_draft_reads_a_part_only(make_engine: MakeEngine) -> None:
    """How much it will have read is not known before that step has ended."""
    engine = make_engine(draft=related_draft(), speculation=TREES, max_num_batched_tokens=32)
    for num_missing, may_follow in ((32, True), (33, False)):
        flight = Flight(Schedule(), StepPlan(4, 8), 1, True, True, num_missing, True, 1, 0.0)
        assert engine._runner.can_follow(flight) is may_follow


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
