"""The comparison of tree methods: its walks are the engine's, its rivals are what they claim."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.held_out import held_out_prompts
from benchmarks.tree_methods.comparison import Comparison, Prompts, compare
from benchmarks.tree_methods.estimates import paired_ratio, ratio, standard_error
from benchmarks.tree_methods.lab import Growth, TreeLab
from benchmarks.tree_methods.pairs import Pair, load_pair, train_on_bigrams
from benchmarks.tree_methods.report import claim, to_markdown
from benchmarks.tree_methods.sequoia import best_sum, non_increasing
from benchmarks.tree_methods.specinfer import walk_node
from benchmarks.tree_methods.walks import decode, plain_texts
from sdengine import Engine, SamplingParams, SpeculationConfig
from sdengine.model.registry import resolve_model
from sdengine.model.tokenizer import load_tokenizer
from sdengine.policies.dyspec import DySpecPolicy
from sdengine.train.module import LlamaModule, LlamaShape

PARAMS = SamplingParams(max_tokens=16, temperature=0.6, seed=3, ignore_eos=True)
DEPTH, NODES = 4, 8


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return load_pair("bundled", tmp_path_factory.mktemp("drafts"))


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    tokenizer = load_tokenizer(resolve_model("python-completion").target)
    return [list(tokenizer.encode(p.text))[:40] for p in held_out_prompts(6, seed=5)]


def config(verifier: str) -> SpeculationConfig:
    return SpeculationConfig(
        verifier=verifier, adaptive=False, calibrate=False, max_nodes=NODES, max_depth=DEPTH
    )


def growth(verifier: str) -> Growth:
    policy = DySpecPolicy.from_config(config(verifier))
    is_rejection = verifier == "rejection"
    return Growth(policy, NODES, DEPTH, 64 if is_rejection else NODES, is_rejection)


@pytest.mark.parametrize("verifier", ["coupled", "rejection"])
def test_the_lab_commits_what_the_engine_commits(verifier: str, pair: Pair, prompts) -> None:
    """Token for token and step for step, though the target scores visited nodes alone."""
    prompt = prompts[0]
    lab = TreeLab(pair, growth(verifier), 1, 100)
    longer = replace(PARAMS, max_tokens=PARAMS.max_tokens + 3 * DEPTH)
    (committed,) = decode(lab, [prompt], PARAMS, plain_texts(lab, [prompt], longer))
    engine = Engine(
        "python-completion",
        dtype="float32",
        num_threads=1,
        max_num_seqs=1,
        speculation=config(verifier),
    )
    engine.add_request("r", prompt, longer)  # trees near the end of a request are cut
    steps: list[int] = []
    while engine.has_unfinished_requests():
        (output,) = engine.step()
        steps.append(1 + engine.last_report.num_accepted[0])
    assert steps[: len(committed)] == committed
    generated = list(output.outputs[0].token_ids)
    assert lab.tokens[0][len(prompt) :] == generated[: sum(committed)]
    assert max(committed) > 1 and sum(committed) >= PARAMS.max_tokens


@pytest.mark.parametrize("verifier", ["coupled", "rejection"])
def test_the_labs_layers_are_as_wide_as_the_engines(verifier: str, pair: Pair) -> None:
    wide = replace(config(verifier), max_nodes=512, max_depth=10)
    growth = Growth(DySpecPolicy.from_config(wide), 512, 10, 64, verifier == "rejection")
    engine = Engine(
        "python-completion", dtype="float32", num_threads=1, max_num_seqs=1, speculation=wide
    )
    expected = engine.iteration.workspace.sizes.max_width
    assert TreeLab(pair, growth, 1, 100).sizes.max_width == expected


def test_chains_of_specinfer_fit_the_budget_and_the_depth(pair: Pair, prompts) -> None:
    params = replace(PARAMS, max_tokens=2)
    comparison = Comparison(pair, Prompts(prompts, prompts), params, 2, fit_tokens=2)
    assert comparison.cell("specinfer", 1, True).note == "1 chains of 1"
    assert comparison.cell("specinfer", 9, True).note == "4 chains of 2"


def test_a_table_gets_the_methods_that_it_lacks_and_no_other_settings(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    from benchmarks.tree_methods import __main__ as command

    monkeypatch.setattr(command, "load_pair", lambda *_: pair)
    words = ["--pairs", "bundled", "--temperatures", "0", "--budgets", "2", "--out", str(tmp_path)]
    words += ["--max-tokens", "2", "--fit-tokens", "2", "--max-depth", "2", "--prompts", "6"]
    for methods in (["chain"], ["chain", "dyspec-raw"]):
        assert command.main([*words, "--methods", *methods]) == 0
        document = json.loads((tmp_path / "tree_methods.json").read_text())
        assert [cell["method"] for cell in document["cells"]] == methods
    capsys.readouterr()
    assert command.main([*words, "--max-tokens", "3"]) == 2
    assert "expected new tokens 2 of the table" in capsys.readouterr().err


def test_every_method_is_compared(pair: Pair, prompts) -> None:
    params = replace(PARAMS, max_tokens=8)
    comparison = Comparison(pair, Prompts(prompts, prompts[::-1]), params, DEPTH, fit_tokens=6)
    methods = ("chain", "specinfer", "sequoia", "dyspec-raw", "dyspec")
    cells = list(compare(comparison, methods, [NODES]))
    assert [(c.verifier, c.method) for c in cells] == [
        ("coupled", "chain"),
        ("rejection", "chain"),
        ("rejection", "specinfer"),
        ("coupled", "sequoia"),
        ("rejection", "sequoia"),
        ("coupled", "dyspec-raw"),
        ("rejection", "dyspec-raw"),
        ("coupled", "dyspec"),
        ("rejection", "dyspec"),
    ]
    assert all(1.0 <= c.tokens_per_step <= DEPTH + 1 for c in cells)
    vector = comparison.positional(False)
    assert vector[0] > 0.2 and (vector[:-1] >= vector[1:]).all() and vector.sum() < 1.0 + 1e-6


def test_rejection_walks_replay_a_text_with_other_draws_and_coins(pair: Pair, prompts) -> None:
    """Once more of the same text each time; the coupled walk, which has no coins, only once."""
    params = replace(PARAMS, max_tokens=8)

    def by_prompt(replays: int, is_rejection: bool) -> list[tuple[int, int]]:
        sets = Prompts(prompts, prompts[::-1])
        comparison = Comparison(pair, sets, params, DEPTH, fit_tokens=6, replays=replays)
        return comparison.cell("chain", NODES, is_rejection).by_prompt

    once, twice = by_prompt(1, True), by_prompt(2, True)
    again = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(once, twice)]
    assert all(params.max_tokens <= tokens <= params.max_tokens + DEPTH for tokens, _ in again)
    assert again != once
    assert by_prompt(1, False) == by_prompt(2, False)


def test_a_static_tree_is_the_dynamic_programmes_best(pair: Pair, prompts) -> None:
    vector = torch.tensor([0.5, 0.25, 0.15, 0.05, 0.02, 0.01, 0.0, 0.0])
    lab = TreeLab(pair, replace(growth("coupled"), positional_acceptance=vector), len(prompts), 100)
    lab.start(prompts, PARAMS)
    lab.grow(range(len(prompts)))
    values = lab.workspace.draft_tree.values[:, 1 : NODES + 1]
    assert (lab.workspace.draft_tree.num_nodes == NODES).all()
    assert values.sum(1).tolist() == pytest.approx([best_sum(vector.tolist(), NODES, DEPTH)] * 6)


def test_the_dynamic_programme_equals_brute_force() -> None:
    def brute(rates: list[float], nodes: int, depth: int) -> float:
        """Grows every tree node by node; a rank only after the one before it."""
        best, stack = 0.0, [(0.0, nodes, ((1.0, depth, 0),))]
        while stack:
            total, left, fronts = stack.pop()
            best = max(best, total)
            for i, (reach, room, rank) in enumerate(fronts if left else ()):
                if room and rank < len(rates):
                    gain = reach * rates[rank]
                    others = (*fronts[:i], (reach, room, rank + 1), *fronts[i + 1 :])
                    stack.append((total + gain, left - 1, (*others, (gain, room - 1, 0))))
        return best

    for rates, nodes, depth in (([0.6, 0.3], 4, 2), ([0.2, 0.5, 0.1], 5, 3), ([0.9], 3, 2)):
        assert best_sum(rates, nodes, depth) == pytest.approx(brute(rates, nodes, depth))


def test_rates_are_pooled_where_they_rise() -> None:
    assert non_increasing(np.array([0.5, 0.1, 0.3, 0.0])).tolist() == [0.5, 0.2, 0.2, 0.0]


TARGET, DRAFT = np.array([0.4, 0.1, 0.3, 0.2]), np.array([0.2, 0.5, 0.2, 0.1])


def law_of_two_draws(weight_of: Callable[[int, int], float]) -> np.ndarray:
    """Law of `walk_node` over pairs of draws; coins on a grid, the last one spread over it."""
    law = np.zeros(4)
    grid = (np.arange(120) + 0.5) / 120
    coins = [(u, v, (0.618 * i) % 1.0) for i, (u, v) in enumerate(product(grid, grid[::4]))]
    for first, second in product(range(4), repeat=2):
        weight = weight_of(first, second) / len(coins)
        for triple in coins if weight else ():
            law[walk_node(TARGET, DRAFT, [first, second], iter(triple).__next__)[0]] += weight
    return law


def test_multi_step_sampling_keeps_the_targets_law() -> None:
    independent = law_of_two_draws(lambda a, b: DRAFT[a] * DRAFT[b])
    assert independent == pytest.approx(TARGET, abs=0.01)


def test_draws_without_replacement_would_bias_multi_step_sampling() -> None:
    """The trap of published comparisons."""
    distinct = law_of_two_draws(lambda a, b: (a != b) * DRAFT[a] * DRAFT[b] / (1 - DRAFT[a]))
    assert abs(distinct - TARGET).max() > 0.02


def test_a_bigram_draft_sees_the_last_token_alone() -> None:
    module = LlamaModule(LlamaShape(16, 8, 16, 2, 1, 1, head_dim=8), seed=0)
    tokens = torch.tensor([1, 2, 3] * 50)
    train_on_bigrams(module, tokens)
    logits = module(torch.tensor([[9, 4, 1], [2, 7, 1]]))[:, -1]
    assert torch.equal(logits[0], logits[1])
    assert logits[0].argmax() == 2


def test_the_report_says_where_the_claim_fails() -> None:
    cell = {
        "pair": "p",
        "temperature": 0.6,
        "verifier": "coupled",
        "budget": 8,
        "standard_error": 0.1,
        "tokens_per_step": 2.5,
    }
    cells = [
        {**cell, "method": "dyspec", "by_prompt": [(20, 10), (20, 10)]},
        {**cell, "method": "sequoia", "by_prompt": [(30, 10), (20, 10)]},
        {**cell, "budget": 64, "method": "dyspec", "by_prompt": [(30, 10), (60, 20)]},
        {**cell, "budget": 64, "method": "sequoia", "by_prompt": [(60, 20), (30, 10)]},
    ]
    assert claim(cells)[0] == "At least as many in 1 of 2 settings."
    assert "budget 8: 0.800 of Sequoia's, standard error 0.160" in claim(cells)[1]
    text = to_markdown({"conditions": {"commit": "abc"}, "cells": cells})
    assert "| 0.6 | coupled | Sequoia | 2.50 (0.10) | 2.50 (0.10) |" in text
    assert "| 0.6 | coupled | DySpec / Sequoia | 0.800 (0.160) | 1.000 (0.000) |" in text


def test_errors_are_over_prompts_and_pairs_share_them() -> None:
    ours = [(30, 10), (20, 10), (45, 15)]
    assert ratio(ours) == pytest.approx(95 / 35)
    # jackknife: how the ratio moves when one prompt is left out
    left_out = [ratio(ours[:i] + ours[i + 1 :]) for i in range(3)]
    spread = sum((r - np.mean(left_out)) ** 2 for r in left_out)
    assert standard_error(ours) == pytest.approx((2 / 3 * spread) ** 0.5, rel=0.15)
    doubled = [(2 * tokens, steps) for tokens, steps in ours]
    assert paired_ratio(doubled, ours) == (pytest.approx(2.0), pytest.approx(0.0))
    swapped = [ours[1], ours[0], ours[2]]
    assert paired_ratio(ours, swapped) == (pytest.approx(1.0), pytest.approx(0.182, abs=0.001))
    assert standard_error(ours[:1]) == 0.0


def test_the_command_refuses_prompts_that_fill_no_batch(tmp_path: Path, capsys) -> None:
    from benchmarks.tree_methods.__main__ import main

    assert main(["--prompts", "5", "--out", str(tmp_path)]) == 2
    assert "multiple of 6" in capsys.readouterr().err
    for option in ("--replays", "--budgets", "--max-depth", "--fit-tokens", "--max-tokens"):
        assert main([option, "0", "--out", str(tmp_path)]) == 2
        assert option in capsys.readouterr().err
