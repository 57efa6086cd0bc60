"""A step's program is as large as what the step can come to, and no smaller."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from sdengine.core.config import SpeculationConfig
from sdengine.core.plan import StepPlan
from sdengine.core.sampling_params import SamplingParams
from sdengine.engine import Engine
from sdengine.kernels.programs.device_program import StagedProgram
from sdengine.kernels.programs.limits import Limits
from sdengine.kernels.spec import Op
from sdengine.runner import demand, iteration
from sdengine.runner.iteration import Iteration
from sdengine.runner.variant import Variant
from sdengine.runner.workspace import Sizes
from tests.engine.conftest import run_all
from tests.engine.device.conftest import MakePair
from tests.engine.device.lagging import lagging_device

PROMPTS = [[5, 9, 5, 9, 5, 9, 5], [17], [(7 * i) % 60 + 3 for i in range(40)], [30, 31, 30]]


def params(max_tokens: int = 16) -> list[SamplingParams]:
    return [
        SamplingParams(max_tokens=max_tokens, seed=i, ignore_eos=True) for i in range(len(PROMPTS))
    ]


def drafting(engine: Engine) -> set[Variant]:
    """The variants that grew trees."""
    return {variant for variant in engine.iteration._programs if variant.drafts}


def plan_as(engine: Engine, plans: Callable[[int], StepPlan]) -> None:
    """Has every step with decoding sequences planned so."""
    engine.controller.plan = lambda num_decoding, outlook=None: (  # type: ignore[method-assign]
        plans(num_decoding) if num_decoding else StepPlan(0, 0)
    )


class Watched:
    """Programs whose kernels are looked at before they run: rows, sequences and prefixes within
    what launches are made for. Beyond it they would write past buffers or leave something out."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_seen = 0
        self.embedded: set[int] = set()  # rows that passes were made for
        kernel_of = StagedProgram._kernel

        def watched(program: StagedProgram, spec: Op) -> Callable[..., None]:
            kernel = kernel_of(program, spec)

            def run(**args: Any) -> None:
                self.look(spec.name, args)
                kernel(**args)

            return run

        monkeypatch.setattr(StagedProgram, "_kernel", watched)

    def look(self, op: str, args: dict[str, Any]) -> None:
        if op in ("embed", "rms_norm", "linear"):
            assert int(args["num_rows"]) <= len(args["out"]), op
        if op == "tree_attention":
            batch = args["batch"]
            num_rows = int(batch.num_rows)
            assert num_rows <= len(args["qkv"])
            if num_rows:
                assert int(batch.visible_lens[:num_rows].max()) <= args["max_keys"]
                assert len(batch.row_seq[:num_rows].unique()) <= args["max_seqs"]
        if op == "embed":
            self.embedded.add(len(args["out"]))
        self.num_seen += 1


def test_few_planned_nodes_have_a_small_program(make_tiny: MakePair, on_host: None) -> None:
    """A program for 64 nodes took 5.36 ms where one of 8 rows takes 4.18 (8B shape, H200)."""
    spec = SpeculationConfig(max_nodes=64, max_depth=3, adaptive=False, max_batch_nodes=2)
    engine = make_tiny("triton", speculation=spec)
    run_all(engine, PROMPTS[1:2], params()[:1])
    assert {variant.limits.rows for variant in drafting(engine)} == {8}


def test_a_draft_has_rows_of_its_own(
    make_tiny: MakePair, on_host: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its layers are `max_width` nodes wide, whatever the trees come to."""
    watched = Watched(monkeypatch)
    spec = SpeculationConfig(max_nodes=64, max_depth=3, adaptive=False)
    engine = make_tiny("triton", speculation=spec, max_num_seqs=1)
    width = engine.iteration.workspace.sizes.max_width
    assert width <= 32
    run_all(engine, PROMPTS[1:2], params()[:1])
    (limits,) = {variant.limits for variant in drafting(engine)}
    assert limits.rows == 80 and width <= limits.draft_rows <= 32
    assert watched.embedded == {limits.rows, limits.draft_rows}


def test_a_method_without_a_draft_model_asks_for_no_draft_rows(
    make_tiny: MakePair, on_host: None
) -> None:
    spec = SpeculationConfig(method="ngram", max_nodes=12, min_ngram=1, adaptive=False)
    engine = make_tiny("triton", speculation=spec)
    run_all(engine, PROMPTS, params())
    assert {v.limits.draft_rows for v in engine.iteration._programs} == {None}


@pytest.mark.parametrize("method", ["dyspec", "kary", "ngram"])
@pytest.mark.parametrize("lags", [False, True])
def test_no_step_outgrows_its_program(
    make_tiny: MakePair, on_host: None, monkeypatch: pytest.MonkeyPatch, method: str, lags: bool
) -> None:
    """Whatever is planned, and though the step before is under way: everything within its limits,
    which are not rounded up here, and the tokens of plain decoding."""
    monkeypatch.setattr(iteration, "RECORDED_AFTER", 0)
    monkeypatch.setattr(demand, "_row_limit", lambda needed, capacity: min(needed, capacity))
    monkeypatch.setattr(demand, "_stepped", lambda _, __, needed, capacity: min(needed, capacity))
    shape: dict[str, Any] = {"max_nodes": 24, "max_depth": 4}
    if method == "kary":
        shape = {"branching": (3, 2, 2)}
    spec = SpeculationConfig(method=method, adaptive=False, **shape)
    expected = run_all(make_tiny("cpu"), PROMPTS, params())
    device = lagging_device(monkeypatch) if lags else None
    watched = Watched(monkeypatch)
    engine = make_tiny("triton", speculation=spec, max_num_seqs=3)
    rng = random.Random(f"{method} {lags}")
    depth = engine.iteration.drafter.max_depth
    plan_as(engine, lambda _: StepPlan(rng.randint(0, depth), rng.choice((1, 2, 7, 8, 24, 72))))
    for _ in range(2):
        assert run_all(engine, PROMPTS, params()) == expected
    assert len(drafting(engine)) > 2 and watched.num_seen > 1000
    assert device is None or device.num_ahead() > 6


def test_a_sequence_has_another_program_before_it_outgrows_the_last(
    make_tiny: MakePair, on_host: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 slots of 131072 keys had 12560 programs a layer for a step at 1024 keys."""
    monkeypatch.setattr(demand, "MIN_KEY_LIMIT", 8)
    engine = make_tiny("triton", max_num_seqs=8)
    run_all(engine, PROMPTS[1:2], params(40)[:1])
    limits = [variant.limits for variant in engine.iteration._programs]
    assert [limit.keys for limit in limits] == [8, 32, engine.iteration.workspace.sizes.max_context]
    assert {limit.seqs for limit in limits} == {1}
    run_all(engine, PROMPTS[:3], params(2)[:3])
    assert {variant.limits.seqs for variant in engine.iteration._programs} == {1, 4}


@pytest.mark.parametrize("depth, num_layers", [(1, 2), (2, 2), (3, 4), (5, 7), (7, 7), (9, 7)])
def test_a_program_has_few_layers_more_than_were_planned(
    make_tiny: MakePair, on_host: None, depth: int, num_layers: int
) -> None:
    """A layer without rows is launched all the same: some 0.2 ms of a draft of 1B."""
    spec = SpeculationConfig(max_nodes=16, max_depth=7, adaptive=False)
    expected = run_all(make_tiny("cpu"), PROMPTS, params())
    engine = make_tiny("triton", speculation=spec)
    plan_as(engine, lambda num_decoding: StepPlan(depth, 16 * num_decoding))
    assert run_all(engine, PROMPTS, params()) == expected
    programs = [engine.iteration.program(variant) for variant in drafting(engine)]
    assert programs and {num_grown(program) for program in programs} == {num_layers}


def num_grown(program: Any) -> int:
    """Layers of a program."""
    return [op for op, _ in program._launches].count("tree_expand")


def test_layers_that_a_graph_can_skip_are_all_there() -> None:
    """Then fewer programs serve all plans; so they do on a CPU, which skips them, too."""
    sizes = Sizes(4, 64, 64, 16, 8, 8, 67, 16, 8, 4, 8, 2)
    asked = demand.Demand(num_trees=1, num_nodes=9, num_missing=1, depth=3)
    assert demand.limits_of(asked, sizes).layers == 4
    assert demand.limits_of(asked, sizes, skips_layers=True).layers is None
    assert demand.limits_of(replace(asked, num_missing=None), sizes).layers is None


def test_a_cpu_has_one_program_for_all_plans(make_tiny: MakePair) -> None:
    spec = SpeculationConfig(max_nodes=16, max_depth=7, adaptive=False)
    engine = make_tiny("cpu", speculation=spec)
    depths = iter(range(1000))
    plan_as(engine, lambda num_decoding: StepPlan(next(depths) % 7 + 1, 4))
    run_all(engine, PROMPTS, params())
    assert len(drafting(engine)) == 1


def test_costs_are_those_of_the_programs_that_decode(
    make_tiny: MakePair, on_host: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[Limits] = []
    empty_program = Iteration.empty_program

    def noted(self: Iteration, limits: Limits) -> Any:
        measured.append(limits)
        return empty_program(self, limits)

    monkeypatch.setattr(Iteration, "empty_program", noted)
    engine = make_tiny("triton", speculation=SpeculationConfig(max_nodes=16, max_depth=7))
    trials = set(measured)
    run_all(engine, PROMPTS[1:2], params(2)[:1])
    assert {limits.layers for limits in trials} == {None, 2, 4}
    assert {limits.rows for limits in trials if limits.layers is None} == {8, 16}
    plan_as(engine, lambda _: StepPlan(4, 16))
    run_all(engine, PROMPTS[1:2], params(4)[:1])
    (decoding,) = (variant.limits for variant in drafting(engine) if variant.limits.layers == 4)
    assert (decoding.draft_rows, decoding.keys, decoding.seqs) in {
        (limits.draft_rows, limits.keys, limits.seqs) for limits in trials if limits.layers == 4
    }


def test_a_larger_program_serves_until_its_own_was_asked_for_often(
    make_tiny: MakePair, on_host: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A capture takes as long as many steps, and speculation on trial would pay for it."""
    monkeypatch.setattr(iteration, "RECORDED_AFTER", 3)
    spec = SpeculationConfig(max_nodes=24, max_depth=4, adaptive=False)
    expected = run_all(make_tiny("cpu"), PROMPTS[1:2], params(40)[:1])
    engine = make_tiny("triton", speculation=spec)
    sizes = [24, 4, 4, 4, 4, *[2] * 100]
    seen = []

    def plan(_: int) -> StepPlan:
        seen.append(len(drafting(engine)))
        nodes = sizes.pop(0)
        return StepPlan(min(nodes, 4), nodes)

    plan_as(engine, plan)
    assert run_all(engine, PROMPTS[1:2], params(40)[:1]) == expected
    assert seen[:10] == [0, 1, 1, 1, 1, 2, 2, 2, 2, 3]
    served = {(v.limits.rows, v.limits.layers) for v in drafting(engine)}
    assert served == {(32, 4), (8, 4), (8, 2)}


def test_what_covers_what() -> None:
    small, wide, deep = Limits(8, layers=2), Limits(16, layers=2), Limits(8, layers=4)
    assert wide.covers(small) and deep.covers(small) and wide.covers(wide)
    assert not small.covers(wide) and not wide.covers(deep) and not small.covers(Limits(8))
    assert Limits().covers(deep) and small.order < wide.order < deep.order < Limits().order
    assert not Variant(True, limits=wide).serves(Variant(False, limits=small))
    assert Variant(True, limits=wide).serves(Variant(True, limits=small))


def test_no_prompt_s_program_serves_small_trees(make_tiny: MakePair, on_host: None) -> None:
    """It may have a hundred times their rows."""
    spec = SpeculationConfig(max_nodes=4, max_depth=2, adaptive=False)
    engine = make_tiny("triton", speculation=spec)
    run_all(engine, PROMPTS[2:3], params()[:1])  # its last eight tokens with a tree upon them
    assert {variant.limits.rows for variant in drafting(engine)} == {16, 8}
