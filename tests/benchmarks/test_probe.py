"""The probe: what smaller trees would have accepted, and a run with the bundled pair."""

from __future__ import annotations

import json
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import probe
from benchmarks.probe_model import Prediction, Rung, TreeSampler, Turn, predict, steps_of_a_request
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
    state = SimpleNamespace(
        wants_logits=torch.ones(1, dtype=torch.int32),
        max_emit=torch.full((1,), 9, dtype=torch.int32),
    )
    sizes = SimpleNamespace(max_depth=4)
    workspace = SimpleNamespace(draft_tree=draft, token_tree=tree, state=state, sizes=sizes)
    report = StepReport((2,), 4, 5, 6e-4, 4e-3, 5e-3, True)
    engine = SimpleNamespace(iteration=SimpleNamespace(workspace=workspace, verdict=verdict))
    sampler = TreeSampler(engine, lambda: report)
    sampler()
    return sampler


def predicted(samplers: list[TreeSampler], rungs: list[Rung], budget: int) -> Prediction:
    """For a sequence of 60 tokens."""
    (found,) = predict(samplers, COSTS, rungs, [budget], 1, 60)
    return found


def test_a_budget_accepts_what_lies_among_its_first_nodes() -> None:
    sampler = sampled()
    # in the order of values: 1, 3, 2, 4
    assert [int(sampler.tokens(n).sum()) for n in (1, 2, 3, 4, 9)] == [2, 3, 3, 3, 3]
    assert [sampler.draft_layers(n) for n in (1, 2, 4)] == [1, 2, 2]
    assert [sampler.nodes(n) for n in (3, 9)] == [3, 4]


def test_a_step_without_a_tree_commits_one_token() -> None:
    sampler = sampled()
    sampler._last_report = lambda: StepReport((0,), 0, 1, 0.0, 1e-3, 1e-3, True)
    sampler()
    sampler._last_report = lambda: StepReport((0,), 0, 9, 0.0, 1e-3, 1e-3, False)  # prefill
    sampler()
    assert sampler.tokens(4).tolist() == [3, 1] and sampler.nodes(4) == 2


def test_steps_that_a_request_cuts_short_are_not_sampled() -> None:
    sampler = sampled()
    sampler._max_emit[0] = 4  # a tree of depth 4 could commit 5
    sampler()
    assert sampler.num_trees == 1
    sampler._max_emit[0] = 5
    sampler()
    assert sampler.num_trees == 2


def test_the_draft_time_of_a_prompt_tells_what_a_missed_token_takes() -> None:
    sampler = sampled()
    assert sampler.prompt_tokens == 0 and sampler.missed_token_s(1e-4) == 0.0
    prompt = StepReport((2,), 4, 44, 1e-4 + 40 * 2e-5, 4e-3, 5e-3, False)
    sampler._last_report = lambda: prompt
    sampler()
    assert sampler.prompt_tokens == 40
    assert sampler.missed_token_s(1e-4) == pytest.approx(2e-5)


def test_predictions_follow_the_cost_model_between_measured_steps() -> None:
    # by the model: 1 node 0.2 + 1.25 ms, 2 nodes 0.3 + 1.5 ms, 4 nodes 0.3 + 2 ms
    rungs = [Rung(1, 1.45), Rung(4, 4.6)]  # of a plain step of 1 ms: as modelled, and twice that
    ends = [predicted([sampled()], rungs, n).plain_steps for n in (1, 4)]
    assert ends == pytest.approx([1.45, 4.6])
    found = predicted([sampled()], rungs, 2)
    assert found.plain_steps == pytest.approx(1.8 * 2**0.5)
    noisy = [Rung(1, 2.0), Rung(4, 1.9)]
    assert 1.9 <= predicted([sampled()], noisy, 2).plain_steps <= 2.0
    decoded = 60 - 3  # the first step comes with the prompt
    steps = decoded / 3 + (3 - 1) / 2 / 3
    assert found.speedup == pytest.approx(decoded / (steps * found.plain_steps))


def test_samples_are_corrected_by_the_steps_that_requests_took() -> None:
    """Every sampled step commits three tokens, but the requests' steps committed more."""
    sampler = sampled()
    steps = steps_of_a_request(sampler.tokens(4), 60)  # (60 + 1) / 3
    turns = [Turn(1.0, 2.0, 0, [(60, 10)]), Turn(2.0, 4.0, 0, [(60, 10), (60, 20)])]
    rung = Rung.from_turns(4, turns)
    assert (rung.plain_steps, rung.plain_s) == (2.0, 1.5)
    assert rung.correction([sampler]) == pytest.approx(3 * steps / 40)
    rungs = [Rung(1, 2.0), rung]
    found = {n: predicted([sampler], rungs, n) for n in (1, 2, 4)}
    plain = {n: predicted([sampler], [Rung(1, 2.0), Rung(4, 2.0)], n) for n in found}
    factors = [found[n].speedup / plain[n].speedup for n in found]
    assert factors == pytest.approx([1.0, (3 * steps / 40) ** 0.5, 3 * steps / 40])
    assert found[4].tokens_per_step == pytest.approx(3 * 3 * steps / 40)


def test_a_speed_up_is_of_all_batches_together() -> None:
    poor = sampled()
    poor._needed = [np.zeros(0, dtype=np.int64)] * 9
    rungs = [Rung(4, 1.0)]
    alone = [predicted([s], rungs, 4).speedup for s in (sampled(), poor)]
    found = predicted([sampled(), poor, sampled()], rungs, 4)
    assert alone[1] == pytest.approx(1.0)
    assert found.speedup == pytest.approx(3 / (2 / alone[0] + 1)), "their times add up"
    assert found.tokens_per_step == pytest.approx((3 + 9 * 1 + 3) / 11)


def test_the_last_step_of_a_request_commits_what_is_left() -> None:
    tokens = np.array([1, 2, 5, 3])
    rng = np.random.default_rng(0)

    def steps(count: int) -> int:
        taken = 0
        while count > 0:
            count, taken = count - int(rng.choice(tokens)), taken + 1
        return taken

    simulated = np.mean([steps(40) for _ in range(4000)])
    assert steps_of_a_request(tokens, 40) == pytest.approx(simulated, rel=0.01)


def test_the_bundled_pair_is_probed_from_end_to_end(capsys) -> None:
    argv = ["--held-out", "1", "--max-tokens", "16", "--repeats", "1", "--max-nodes", "4"]
    argv += ["--temperatures", "0", "--num-threads", "1", "--json", "--check", "2", "adaptive"]
    assert probe.main(argv) == 0
    (found,) = json.loads(capsys.readouterr().out)["verdicts"]
    assert [p["budget"] for p in found["predictions"]] == [1, 2, 3, 4]
    lengths = [p["tokens_per_step"] for p in found["predictions"]]
    # Every budget takes steps of its own through the few tokens, which another library begins
    # with another prompt: one node more gave 0.05 tokens less once.
    assert all(larger > smaller - 0.2 for smaller, larger in pairwise(lengths))
    assert 1.0 <= lengths[0] < lengths[-1] <= 5.0
    assert [check["budget"] for check in found["checks"]] == ["2", "adaptive"]
    for check in found["checks"]:
        assert check["error"] == check["predicted"] / check["measured"] - 1
    assert found["use"].startswith("speculation=")
    if found["best"]:
        assert f"max_nodes={found['best']}" in found["use"]


def test_a_table_of_costs_decides_instead_of_the_clock(capsys) -> None:
    argv = ["--held-out", "3", "--max-tokens", "48", "--repeats", "1", "--max-nodes", "5"]
    argv += ["--temperatures", "0", "--json", "--check", "2", "5", "adaptive"]
    argv += ["--step-costs", "1.1b-avx2"]
    found = []
    for _ in range(2):
        assert probe.main(argv) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["conditions"]["step costs"] == "1.1b-avx2"
        assert "machine limits" not in document["conditions"]
        found.append(document["verdicts"])
    assert found[0] == found[1], "no clock decides"
    (verdict,) = found[0]
    assert [p["budget"] for p in verdict["predictions"]] == [1, 2, 3, 4, 5]
    two, five, adaptive = verdict["checks"]
    # by the table a step of 3 rows and 2 draft layers at most takes 70.5 ms, a plain one 63.1
    step = verdict["predictions"][1]["plain_steps"]
    assert (2.3 + 66.6 + 0.2) / 63.1 - 1e-6 <= step <= (2.3 + 1.4 + 66.6 + 0.2) / 63.1 + 1e-6
    assert abs(two["error"]) < 0.07 and abs(five["error"]) < 0.07
    assert 0.7 < adaptive["measured"] < 6.0


@pytest.mark.parametrize(
    "argv",
    [
        ["--step-costs", "no-table"],
        ["--repeats", "0"],
        ["--check", "5"],
        ["--max-nodes", "0"],
        ["--max-nodes", "5000"],
        ["--model", "no/where"],
        ["--held-out", "0"],
        ["--held-out", "-5"],
        ["--held-out", "1", "--prompt-file", "README.md"],
        ["--max-tokens", "1"],
        ["--max-tokens", "9"],
    ],
)
def test_wrong_arguments_exit_2_on_one_line(
    argv: list[str], monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    if "--model" not in argv:
        monkeypatch.setattr(probe, "Contestant", None)
    assert probe.main(argv) == 2
    err = capfd.readouterr().err
    assert err.startswith("sdengine: expected ") and err.count("\n") == 1


def test_budgets_that_can_be_checked_are_listed_as_numbers(capfd) -> None:
    assert probe.main(["--max-nodes", "16", "--check", "7", "100", "9"]) == 2
    err = capfd.readouterr().err
    assert "--check of 1, 2, 3, 4, 6, 8, 12, 16, adaptive, got 7, 100, 9" in err
