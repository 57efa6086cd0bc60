"""Speculation never changes a token: every drafter, policy, budget, dtype, batch and preemption.

The oracle is the same engine without speculation, one request and one iteration at a time; and that
one is checked against the torch reference model, which knows neither caches nor batches.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from sdengine.controllers.fixed import FixedController
from sdengine.core.config import SpeculationConfig
from sdengine.core.sampling_params import SamplingParams
from sdengine.model.checkpoint import open_checkpoint
from sdengine.model.reference import load_weights, reference_logits
from tests.engine.conftest import MakeEngine, related_draft, run_all, run_outputs
from tests.model.checkpoints import VOCAB, make_checkpoint

PROMPTS = [
    [5, 9, 5, 9, 5, 9, 5],
    [17],
    [(7 * i) % 190 + 3 for i in range(45)],
    [30, 31, 32, 33, 30, 31],
]
SAMPLERS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "T=0.8": {"temperature": 0.8},
    "T=1.3 top-k": {"temperature": 1.3, "top_k": 20},
    "T=1 top-p min-p": {"temperature": 1.0, "top_p": 0.9, "min_p": 0.02},
}
METHODS: dict[str, dict[str, Any]] = {
    "dyspec-8": {"method": "dyspec", "max_nodes": 8, "max_depth": 4, "adaptive": False},
    "dyspec-1": {"method": "dyspec", "max_nodes": 1, "max_depth": 1, "adaptive": False},
    "dyspec-70": {"method": "dyspec", "max_nodes": 70, "max_depth": 7, "adaptive": False},
    "dyspec-adaptive": {"method": "dyspec", "max_nodes": 24},
    "dyspec-uncalibrated": {"max_nodes": 12, "calibrate": False, "adaptive": False},
    "dyspec-pool": {"max_nodes": 16, "max_batch_nodes": 12, "adaptive": False},
    "chain": {"method": "chain", "max_nodes": 5, "max_depth": 5, "adaptive": False},
    "kary": {"method": "kary", "branching": (3, 2, 1), "adaptive": False},
    "sampled": {"method": "sampled", "branching": (2, 2, 2), "adaptive": False},
    "ngram": {"method": "ngram", "max_nodes": 12, "min_ngram": 1, "adaptive": False},
}


def sampling(name: str, seed: int, max_tokens: int = 40) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, ignore_eos=True, seed=seed, **SAMPLERS[name])


def plain_tokens(make_engine: MakeEngine, name: str, **settings: Any) -> list[list[int]]:
    engine = make_engine(**settings)
    return [run_all(engine, [p], [sampling(name, i)])[0] for i, p in enumerate(PROMPTS)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_tokens_are_those_of_plain_decoding(
    make_engine: MakeEngine, name: str, method: str, dtype: str
) -> None:
    expected = plain_tokens(make_engine, name, dtype=dtype)
    engine = make_engine(
        draft=None if method == "ngram" else related_draft(),
        dtype=dtype,
        speculation=SpeculationConfig(**METHODS[method]),
    )
    params = [sampling(name, i) for i in range(len(PROMPTS))]
    outputs = run_outputs(engine, PROMPTS, params, max_iterations=5)
    assert [list(o.outputs[0].token_ids) for o in outputs] == expected
    stats = [o.metrics.speculation for o in outputs]
    assert all(s is not None and s.num_steps > 0 for s in stats)
    if "adaptive" not in method and method != "ngram":
        assert sum(s.num_draft_tokens for s in stats if s) > 0, "nothing was speculated"


@pytest.mark.parametrize("draft_seed", [0, 1])
def test_a_perfect_draft_is_accepted_whole_and_a_foreign_one_harms_nothing(
    make_engine: MakeEngine, draft_seed: int
) -> None:
    spec = SpeculationConfig(method="chain", max_nodes=4, max_depth=4, adaptive=False)
    engine = make_engine(draft=str(make_checkpoint(seed=draft_seed)), speculation=spec)
    output = run_outputs(engine, [PROMPTS[0]], [sampling("greedy", 0, 50)])[0]
    assert list(output.outputs[0].token_ids) == plain_tokens(make_engine, "greedy")[0] + list(
        output.outputs[0].token_ids[40:]
    )
    stats = output.metrics.speculation
    assert stats is not None
    if draft_seed == 0:
        assert stats.mean_acceptance_length == 5.0
    else:
        assert stats.mean_acceptance_length < 2.0


@pytest.mark.parametrize("name", ["greedy", "T=0.8"])
def test_preemption_changes_nothing(make_engine: MakeEngine, name: str) -> None:
    expected = plain_tokens(make_engine, name)
    spec = SpeculationConfig(max_nodes=8, max_depth=3, adaptive=False)
    engine = make_engine(draft=related_draft(), speculation=spec, num_kv_blocks=13)
    params = [sampling(name, i) for i in range(len(PROMPTS))]
    preempted = 0
    for i, (prompt, one) in enumerate(zip(PROMPTS, params)):
        engine.add_request(f"r{i}", prompt, one)
    tokens: dict[str, list[int]] = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            tokens[output.request_id] = list(output.outputs[0].token_ids)
        preempted = max(preempted, *(s.num_preemptions for s in engine._scheduler.waiting), 0)
    assert [tokens[f"r{i}"] for i in range(len(PROMPTS))] == expected
    assert preempted > 0, "the cache was large enough after all"


@pytest.mark.parametrize("num_blocks", [14, 17, 20])
def test_sequences_that_fit_without_trees_run_side_by_side_with_them(
    make_engine: MakeEngine, num_blocks: int
) -> None:
    """Tree room goes to whoever needs blocks for tokens, and the tables follow."""
    prompts, params = PROMPTS[:2], [sampling("T=0.8", i) for i in range(2)]
    expected = plain_tokens(make_engine, "T=0.8")[:2]
    spec = SpeculationConfig(max_nodes=64, max_depth=4, adaptive=False)
    engine = make_engine(draft=related_draft(), speculation=spec, num_kv_blocks=num_blocks)
    for i, (prompt, one) in enumerate(zip(prompts, params)):
        engine.add_request(f"r{i}", prompt, one)
    sequences = list(engine._scheduler.waiting)
    tokens: dict[str, list[int]] = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            tokens[output.request_id] = list(output.outputs[0].token_ids)
    assert [tokens[f"r{i}"] for i in range(2)] == expected
    assert not any(sequence.num_preemptions for sequence in sequences)


def test_a_table_that_lost_blocks_and_got_others_is_written_anew(make_engine: MakeEngine) -> None:
    spec = SpeculationConfig(adaptive=False)
    engine = make_engine(draft=related_draft(), speculation=spec, block_size=64)
    engine.add_request("r", PROMPTS[0], sampling("greedy", 0))
    engine.step()
    (sequence,) = engine._scheduler.running
    schedule = engine._scheduler.schedule()
    sequence.block_table.reverse()  # as many as before, and others
    schedule.shrunk_slots.append(sequence.slot)
    engine._runner.prepare(schedule)
    table = engine.iteration.workspace.state.block_tables[sequence.slot]
    assert table[: len(sequence.block_table)].tolist() == sequence.block_table
    engine.abort_request("r")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("num_threads", [2, 3, 5])
def test_the_number_of_workers_changes_no_bit(
    make_engine: MakeEngine, num_threads: int, dtype: str
) -> None:
    """A pool takes fewer workers while others use the cores, between any two steps."""
    prompts = [*PROMPTS, [(11 * i) % 180 + 3 for i in range(230)]]
    samplers = [replace(sampling("T=0.8", i, 24), logprobs=2) for i in range(len(prompts))]
    seen = []
    for threads in (1, num_threads):
        engine = make_engine(
            draft=related_draft(),
            dtype=dtype,
            num_threads=threads,
            speculation=SpeculationConfig(max_nodes=8, max_depth=3, adaptive=False),
        )
        completions = [out.outputs[0] for out in run_outputs(engine, prompts, samplers)]
        seen.append([(list(c.token_ids), c.logprobs) for c in completions])
    assert seen[0] == seen[1]


def test_a_prompt_that_only_the_target_has_read_is_reused(make_engine: MakeEngine) -> None:
    prompt, spec = PROMPTS[2], SpeculationConfig(max_nodes=8, max_depth=3, adaptive=False)
    fresh = make_engine(draft=related_draft(), speculation=spec)
    expected = run_outputs(fresh, [prompt], [sampling("T=0.8", 2)])[0]
    engine = make_engine(draft=related_draft(), speculation=spec)
    fixed, engine.controller = engine.controller, FixedController(0, 0)
    assert run_all(engine, [prompt], [sampling("T=0.8", 2, 3)]) == [
        list(expected.outputs[0].token_ids[:3])
    ]
    engine.controller = fixed
    engine.add_request("again", prompt, sampling("T=0.8", 2))
    engine.step()
    report = engine.last_report
    assert report.num_rows - report.num_nodes == len(prompt) % 8, "the prompt was computed again"
    while engine.has_unfinished_requests():
        (output,) = engine.step()
    assert list(output.outputs[0].token_ids) == list(expected.outputs[0].token_ids)
    assert output.metrics.speculation is not None and expected.metrics.speculation is not None
    # The first step differs: nothing was drafted beside a prompt of 45 tokens.
    accepted = [o.metrics.speculation.num_accepted_draft_tokens for o in (output, expected)]
    assert accepted[0] > 0.8 * accepted[1] > 0


def test_joining_and_leaving_at_any_step(make_engine: MakeEngine) -> None:
    expected = plain_tokens(make_engine, "T=0.8")
    spec = SpeculationConfig(max_nodes=8, max_depth=3)
    engine = make_engine(draft=related_draft(), speculation=spec)
    rng = random.Random(0)
    waiting = [(i, PROMPTS[i % 4]) for i in range(12)]
    tokens: dict[str, list[int]] = {}
    while waiting or engine.has_unfinished_requests():
        while waiting and rng.random() < 0.4:
            i, prompt = waiting.pop(0)
            engine.add_request(f"r{i}", prompt, sampling("T=0.8", i % 4))
        for output in engine.step():
            tokens[output.request_id] = list(output.outputs[0].token_ids)
    for i in range(12):
        assert tokens[f"r{i}"] == expected[i % 4]


def test_greedy_tokens_are_the_reference_models(make_engine: MakeEngine) -> None:
    checkpoint = open_checkpoint(make_checkpoint())
    weights = load_weights(checkpoint)
    for prompt, tokens in zip(PROMPTS, plain_tokens(make_engine, "greedy")):
        logits = reference_logits(weights, checkpoint.config, torch.tensor(prompt + tokens))
        best = logits[len(prompt) - 1 : -1].argmax(dim=-1)
        assert best.tolist() == tokens


def test_the_reference_backend_runs_the_same_programs(make_engine: MakeEngine) -> None:
    spec = SpeculationConfig(max_nodes=6, max_depth=2, adaptive=False)
    outputs = []
    for backend in ("cpu", "reference"):
        engine = make_engine(draft=related_draft(), speculation=spec, backend=backend)
        outputs.append(run_all(engine, PROMPTS[:2], [sampling("T=0.8", i, 8) for i in range(2)]))
    assert outputs[0] == outputs[1]


def test_vocabulary_is_covered() -> None:
    assert max(max(p) for p in PROMPTS) < VOCAB
