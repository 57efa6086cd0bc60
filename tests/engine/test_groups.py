"""Requests that are waited for together end together: who is far from the end gets more of the
draft, and the text stays what it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sdengine.core.config import SpeculationConfig
from sdengine.core.outputs import RequestOutput
from sdengine.core.sampling_params import SamplingParams
from sdengine.engine import Engine
from sdengine.errors import RequestError
from tests.engine.conftest import MakeEngine, MakeLLM, related_draft, text_checkpoint

SHARED = SpeculationConfig(max_nodes=8, max_depth=4, max_batch_nodes=8, adaptive=False)
SPECULATION = {
    "dyspec": SHARED,
    "rejection": replace(SHARED, verifier="rejection"),
    "ngram": replace(SHARED, method="ngram", min_ngram=1, max_batch_nodes=3),
    "kary": replace(SHARED, method="kary", branching=(2, 1), max_batch_nodes=None),
}
PROMPT = [5, 9, 5, 9, 5, 9, 5]
LONG = SamplingParams(max_tokens=60, temperature=0.8, seed=3, ignore_eos=True)
SHORT = replace(LONG, max_tokens=20)


def make(make_engine: MakeEngine, name: str, **settings: Any) -> Engine:
    speculation = SPECULATION[name]
    draft = related_draft() if speculation.needs_draft_model else None
    return make_engine(draft=draft, speculation=speculation, **settings)


def run(engine: Engine, groups: list[str | None], params: list[SamplingParams]) -> tuple[Any, Any]:
    """Final outputs of one prompt in several groups, and the nodes of each while all decode."""
    for i, (group, one) in enumerate(zip(groups, params)):
        engine.add_request(f"r{i}", PROMPT, one, group)
    nodes, finished = [0] * len(groups), {}
    while engine.has_unfinished_requests():
        outputs = engine.step()
        finished |= {output.request_id: output for output in outputs if output.finished}
        if not finished and len(outputs) == len(groups):
            for i in range(len(groups)):
                tree = engine.step_tree(f"r{i}")
                nodes[i] += 0 if tree is None else len(tree.token_ids)
    return [finished[f"r{i}"] for i in range(len(groups))], nodes


def tokens(outputs: list[RequestOutput]) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in outputs]


@pytest.mark.parametrize("name", ["dyspec", "rejection", "ngram"])
def test_whoever_has_more_left_gets_more_nodes(make_engine: MakeEngine, name: str) -> None:
    """The same text twice, one to be three times as long."""
    params = [replace(one, temperature=0.0 if name == "ngram" else 0.8) for one in (LONG, SHORT)]
    alone, apart = run(make(make_engine, name), [None, None], params)
    outputs, together = run(make(make_engine, name), ["all", "all"], params)
    others, other_nodes = run(make(make_engine, name), ["all", "other"], params)
    assert apart == other_nodes and tokens(alone) == tokens(others)
    assert together[0] > 1.3 * apart[0] > 0
    assert together[1] < 0.7 * apart[1]
    if name != "rejection":
        assert tokens(outputs) == tokens(alone)


def test_static_trees_stay_as_they_are(make_engine: MakeEngine) -> None:
    params = [LONG, SHORT]
    alone, apart = run(make(make_engine, "kary"), [None, None], params)
    outputs, together = run(make(make_engine, "kary"), ["all", "all"], params)
    assert together == apart and tokens(outputs) == tokens(alone)


def test_completions_of_a_request_are_a_group(make_engine: MakeEngine) -> None:
    engine = make(make_engine, "dyspec")
    engine.add_request("r", PROMPT, replace(LONG, n=2))
    engine.add_request("request r", PROMPT, LONG, "r")
    for _ in range(3):  # of equal prompts the first is read, the others wait for its blocks
        engine.step()
    groups = engine.iteration.workspace.state.groups.tolist()
    assert groups[0] == groups[1] != groups[2]
    for name in ("r", "request r"):
        engine.abort_request(name)


def test_while_others_wait_nobody_is_held_back(make_engine: MakeEngine) -> None:
    engine = make(make_engine, "dyspec", max_num_seqs=2)
    is_balanced = engine.iteration.workspace.is_balanced
    for i, params in enumerate((LONG, SHORT, SHORT)):
        engine.add_request(f"r{i}", PROMPT, params, "all")
    seen = []
    while engine.has_unfinished_requests():
        engine.step()
        seen.append((bool(engine.num_waiting), int(is_balanced)))
        if not engine.num_waiting:
            break
        values = engine.iteration.workspace.state.root_values
        assert values.tolist() == [1.0, 1.0]
    assert len(seen) > 5
    for _ in range(2):
        engine.step()
    assert int(is_balanced) == 1
    assert min(engine.iteration.workspace.state.root_values.tolist()) < 1.0
    for i in range(3):
        if engine.has_request(f"r{i}"):
            engine.abort_request(f"r{i}")


def test_a_call_of_generate_is_one(make_llm: MakeLLM) -> None:
    llm = make_llm(draft=text_checkpoint(2), speculation=SHARED)
    groups, step = [], llm.engine.step

    def noted(*limits: Any) -> list[RequestOutput]:
        groups.append(llm.engine.iteration.workspace.state.groups.tolist())
        return step(*limits)

    llm.engine.step = noted  # type: ignore[method-assign]
    for _ in range(2):
        llm.generate(["import os", "the dog"], replace(LONG, max_tokens=6))
    first, last = groups[1], groups[-1]
    assert first[0] == first[1] and last[0] == last[1] != first[0]


def test_a_group_is_a_name(make_engine: MakeEngine) -> None:
    engine = make_engine()
    with pytest.raises(RequestError, match="group to be a string or None, got 7"):
        engine.add_request("r", PROMPT, LONG, 7)  # type: ignore[arg-type]
    engine.add_request("r", PROMPT, replace(LONG, max_tokens=1), "\ud800 of any kind")
    engine.step()
