"""max_batch_nodes limits what a step verifies, whatever drafts it and whoever plans it; and ngram's
own settings do what they say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sdengine.controllers import turns
from sdengine.controllers.adaptive import AdaptiveController
from sdengine.controllers.tree_size import GrowingSize
from sdengine.core.config import SpeculationConfig
from sdengine.core.cost_model import CostModel
from sdengine.core.plan import StepPlan, StepReport
from sdengine.core.sampling_params import SamplingParams
from sdengine.drafters.ngram import NgramDrafter
from sdengine.engine import Engine
from sdengine.kernels.calibration import identity_table
from sdengine.runner.workspace import Workspace
from tests.engine.conftest import MakeEngine, related_draft, run_all

PROMPTS = [[5, 9, 5, 9, 5, 9, 5], [7, 8, 7, 8, 7, 8], [3, 4, 6, 3, 4, 6, 3, 4]]
NGRAM = SpeculationConfig(
    method="ngram", max_nodes=16, max_depth=8, min_ngram=1, max_batch_nodes=4, adaptive=False
)
LIMITED: dict[str, SpeculationConfig] = {
    "ngram": NGRAM,
    "ngram-rejection": replace(NGRAM, verifier="rejection"),
    "dyspec": SpeculationConfig(max_nodes=16, max_batch_nodes=4, adaptive=False),
    "sampled": SpeculationConfig(
        method="sampled", verifier="rejection", max_batch_nodes=4, adaptive=False
    ),
}


def params(temperature: float = 0.0, max_tokens: int = 30) -> list[SamplingParams]:
    return [
        SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=i, ignore_eos=True)
        for i in range(len(PROMPTS))
    ]


def engine_with(make_engine: MakeEngine, speculation: SpeculationConfig, **settings: Any) -> Engine:
    draft = related_draft() if speculation.needs_draft_model else None
    return make_engine(draft=draft, speculation=speculation, **settings)


def nodes_by_step(engine: Engine, requests: list[SamplingParams]) -> list[int]:
    """Nodes that each step verified."""
    for i, (prompt, one) in enumerate(zip(PROMPTS, requests)):
        engine.add_request(f"r{i}", prompt, one)
    seen = []
    while engine.has_unfinished_requests():
        engine.step()
        seen.append(engine.last_report.num_nodes)
    return seen


@pytest.mark.parametrize("name", LIMITED)
def test_no_step_verifies_more_than_the_limit(make_engine: MakeEngine, name: str) -> None:
    seen = nodes_by_step(engine_with(make_engine, LIMITED[name]), params())
    assert max(seen) == 4


def test_without_a_limit_ngram_drafts_what_it_finds(make_engine: MakeEngine) -> None:
    speculation = replace(NGRAM, max_batch_nodes=None)
    assert max(nodes_by_step(engine_with(make_engine, speculation), params())) > 12


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("limit", [1, 4, 7])
def test_a_limit_changes_no_token(make_engine: MakeEngine, temperature: float, limit: int) -> None:
    expected = run_all(make_engine(), PROMPTS, params(temperature))
    engine = engine_with(make_engine, replace(NGRAM, max_batch_nodes=limit))
    assert run_all(engine, PROMPTS, params(temperature)) == expected


def test_the_best_nodes_of_the_batch_are_kept(make_engine: MakeEngine) -> None:
    """One sequence repeats itself, two say nothing twice: the whole budget is the first one's."""
    engine = engine_with(make_engine, NGRAM)
    prompts = [[5, 9] * 8, list(range(20, 30)), list(range(40, 50))]
    for i, prompt in enumerate(prompts):
        engine.add_request(f"r{i}", prompt, params(max_tokens=8)[0])
    engine.step()
    while not engine.last_report.num_nodes:
        engine.step()
    assert engine.last_report.num_nodes == 4
    while engine.has_unfinished_requests():
        engine.step()


class Scripted:
    """Grows trees of so many nodes over the batch, step by step, at a worth of a second."""

    def __init__(self, limits: list[int], tokens_per_s: Callable[[int], float]) -> None:
        self.limits = limits
        self._tokens_per_s = tokens_per_s
        self._step = 0

    def plan(self, num_decoding: int, outlook: Any = None) -> StepPlan:
        limit = self.limits[self._step % len(self.limits)]
        worth = self._tokens_per_s(self._step)
        self._step += 1
        return StepPlan(8 if num_decoding else 0, limit, worth)

    def observe(self, plan: StepPlan, report: StepReport) -> None:
        assert report.num_nodes <= plan.max_batch_nodes


@pytest.mark.parametrize("tokens_per_s", [lambda _: 0.0, lambda step: step // 3 * 1e-9])
def test_each_plan_has_a_limit_of_its_own(
    make_engine: MakeEngine, tokens_per_s: Callable[[int], float]
) -> None:
    """A small one leaves nothing behind for a larger one after it."""
    engine = engine_with(make_engine, NGRAM)
    engine.controller = Scripted([2, 48, 1, 9, 48], tokens_per_s)
    assert max(nodes_by_step(engine, params())) > 9
    assert np.isfinite(engine.iteration.workspace.thresholds.numpy()).all()


class Alike:
    """Trees of one layer, of so many nodes a sequence."""

    def __init__(self, nodes: int) -> None:
        self._nodes = nodes

    def plan(self, num_decoding: int, outlook: Any = None) -> StepPlan:
        return StepPlan(min(num_decoding, 1), 64, max_seq_nodes=self._nodes)

    def observe(self, plan: StepPlan, report: StepReport) -> None:
        assert report.num_nodes <= len(report.num_accepted) * plan.max_seq_nodes


@pytest.mark.parametrize("nodes", [1, 2, 3, 5])
def test_a_plan_may_narrow_static_trees_all_alike(make_engine: MakeEngine, nodes: int) -> None:
    """To the first of each sequence's tokens that rank highest, whatever the batch has room for."""
    prompts, requests = PROMPTS, params(0.8)
    expected = run_all(make_engine(), prompts, requests)
    engine = engine_with(make_engine, SpeculationConfig(method="kary"))
    engine.controller = Alike(nodes)
    for i, (prompt, one) in enumerate(zip(prompts, requests)):
        engine.add_request(f"r{i}", prompt, one)
    got, sizes = {}, set()
    while engine.has_unfinished_requests():
        for output in engine.step():
            got[output.request_id] = list(output.outputs[0].token_ids)
            tree = engine.step_tree(output.request_id)
            if tree is not None and tree.token_ids:
                sizes.add(len(tree.token_ids))
                assert set(tree.parents) == {-1}
    assert sizes == {min(nodes, 4)}
    assert [got[f"r{i}"] for i in range(len(prompts))] == expected


def test_adaptive_trees_of_ngrams_begin_small(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nodes a sequence, where rows cost nothing that would cut them and text is ambiguous: by
    the seventeenth token all three texts have repeated themselves in more than one way."""
    monkeypatch.setattr(turns, "FIRST_PLAIN_STEPS", 16)
    engine = engine_with(make_engine, replace(NGRAM, max_batch_nodes=None))
    flat = CostModel((1, 64), (1e-6, 1e-6), 0.0, 0.0)
    engine.controller = AdaptiveController(flat, GrowingSize(8, 16))
    few_words = [replace(one, temperature=2.0, top_k=2) for one in params(max_tokens=60)]
    first = next(nodes for nodes in nodes_by_step(engine, few_words) if nodes)
    assert first == 2 * len(PROMPTS)


def test_a_drafter_from_outside_is_limited_too(make_engine: MakeEngine) -> None:
    def make_drafter(workspace: Workspace) -> NgramDrafter:
        return NgramDrafter(workspace, 1, 2)

    engine = engine_with(make_engine, NGRAM, make_drafter=make_drafter)
    assert max(nodes_by_step(engine, params())) == 4


@pytest.mark.parametrize("method", ["ngram", "dyspec"])
@pytest.mark.parametrize("calibrate", [True, False])
def test_estimates_are_fitted_where_that_was_asked_for(
    make_engine: MakeEngine, method: str, calibrate: bool
) -> None:
    base = NGRAM if method == "ngram" else SpeculationConfig(max_nodes=8, adaptive=False)
    engine = engine_with(make_engine, replace(base, calibrate=calibrate))
    run_all(engine, PROMPTS, params())
    assert engine.iteration.verdict.tried.any()
    tables = engine.iteration.workspace.calibration
    assert bool((tables != identity_table()).any()) == calibrate


def test_ngram_trusts_its_votes_when_told_to(make_engine: MakeEngine) -> None:
    """A table that believes in nothing is not looked at."""
    engine = engine_with(make_engine, replace(NGRAM, calibrate=False))
    engine.iteration.workspace.calibration[:] = 0.0
    assert max(nodes_by_step(engine, params())) == 4
