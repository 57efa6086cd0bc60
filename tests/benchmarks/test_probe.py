"""The probe: what smaller trees would have accepted, and a run with the bundled pair."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from benchmarks import probe
from benchmarks.probe_model import StepCosts, TreeSampler, between, predict
from sdengine.core.cost_model import CostModel
from sdengine.core.plan import StepReport
from sdengine.kernels.token_tree import DraftTree, TokenTree

COSTS = CostModel((1, 5, 9), (1e-3, 2e-3, 4e-3), 2e-4, 1e-4)


def sampled() -> TreeSampler:
    """One step over root--1--3, root--2--4 with values 0.9, 0.5, 0.6, 0.4; 1 and 3 accepted."""
    draft, tree = DraftTree.allocate(1, 4), TokenTree.allocate(1, 4)
    draft.num_nodes[0] = 4
    draft.values[0, 1:] = torch.tensor([0.9, 0.5, 0.6, 0.4])
    draft.depths[0, 1:] = torch.tensor([1, 1, 2, 2])
    tree.creation_ids[0] = torch.tensor([0, 1, 3, 2, 4])  # preorder
    verdict = SimpleNamespace(
        num_accepted=torch.tensor([2], dtype=torch.int32),
        path=torch.tensor([[1, 2, 0, 0]], dtype=torch.int32),
    )
    state = SimpleNamespace(wants_logits=torch.ones(1, dtype=torch.int32))
    workspace = SimpleNamespace(draft_tree=draft, token_tree=tree, state=state)
    report = StepReport((2,), 4, 5, 6e-4, 4e-3, 5e-3, True)
    engine = SimpleNamespace(
        iteration=SimpleNamespace(workspace=workspace, verdict=verdict), last_report=report
    )
    sampler = TreeSampler(engine)
    sampler()
    return sampler


def test_a_budget_accepts_what_lies_among_its_first_nodes() -> None:
    sampler = sampled()
    # in the order of values: 1, 3, 2, 4
    assert [sampler.tokens_per_step(n) for n in (1, 2, 3, 4, 9)] == [2, 3, 3, 3, 3]
    assert [sampler.draft_layers(n) for n in (1, 2, 4)] == [1, 2, 2]
    assert [sampler.nodes(n) for n in (3, 9)] == [3, 4]


def test_predictions_are_the_cost_model_scaled_to_the_sample() -> None:
    sampler = sampled()
    # drafting two layers took 0.6 ms where the model says 0.3, five rows 4 ms where it says 2
    assert sampler.draft_factor(COSTS) == pytest.approx(2.0)
    assert sampler.verify_factor(COSTS) == pytest.approx(2.0)
    assert sampler.other_s == pytest.approx(4e-4)
    costs = StepCosts(COSTS, 2.0, 2.0)
    found = predict(sampler, costs, 2, 1, plain_s=2.4e-3)
    assert found.step_s == pytest.approx(2 * 3e-4 + 2 * 1.5e-3 + 4e-4)
    assert found.speedup == pytest.approx(3 * 2.4e-3 / found.step_s)


def test_costs_lie_between_those_of_a_small_and_a_large_tree() -> None:
    found = between(StepCosts(COSTS, 1.0, 2.0), StepCosts(COSTS, 3.0, 6.0), 0.25)
    assert (found.draft_factor, found.verify_factor) == (1.5, 3.0)


def test_the_bundled_pair_is_probed_from_end_to_end(capsys) -> None:
    argv = ["--held-out", "1", "--max-tokens", "16", "--repeats", "1", "--max-nodes", "4"]
    argv += ["--temperatures", "0", "--num-threads", "1", "--json"]
    assert probe.main(argv) == 0
    (found,) = json.loads(capsys.readouterr().out)["verdicts"]
    assert [p["budget"] for p in found["predictions"]] == [1, 2, 3, 4]
    lengths = [p["tokens_per_step"] for p in found["predictions"]]
    assert lengths == sorted(lengths) and lengths[0] >= 1.0 and lengths[-1] <= 5.0
    assert found["measured"] > 0 and found["error"] == found["predicted"] / found["measured"] - 1
    assert found["use"].startswith("speculation=")
    if found["best"]:
        assert f"max_nodes={found['best']}" in found["use"]


@pytest.mark.parametrize(
    "argv", [["--repeats", "0"], ["--max-nodes", "0"], ["--model", "no/where"]]
)
def test_wrong_arguments_exit_2_on_one_line(argv: list[str], capfd) -> None:
    assert probe.main(argv) == 2
    assert capfd.readouterr().err.count("\n") == 1
