"""rejection through the whole engine: greedy text is plain greedy text, sampled text has the
target's law, whatever drafts; a broken draw (negative control) is noticed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from sdengine.core.config import SpeculationConfig
from sdengine.core.sampling_params import GREEDY_TEMPERATURE, SamplingParams
from sdengine.errors import ConfigError
from sdengine.kernels.programs.limits import NO_LIMITS
from sdengine.model.checkpoint import open_checkpoint
from sdengine.model.reference import load_weights, reference_logits
from sdengine.runner.variant import Variant
from tests.engine.conftest import MakeEngine, related_draft, run_all, run_outputs
from tests.engine.test_exactness import PROMPTS, plain_tokens, sampling
from tests.model.checkpoints import make_checkpoint

METHODS: dict[str, dict[str, Any]] = {
    "dyspec": {"method": "dyspec", "max_nodes": 10, "max_depth": 3, "adaptive": False},
    "dyspec-adaptive": {"method": "dyspec", "max_nodes": 10, "max_depth": 3},
    "chain": {"method": "chain", "max_nodes": 3, "max_depth": 3, "adaptive": False},
    "sampled": {"method": "sampled", "branching": (3, 2), "adaptive": False},
    "ngram": {"method": "ngram", "max_nodes": 6, "min_ngram": 1, "adaptive": False},
}
PROMPT = [7, 8, 9, 7, 8]
TEMPERATURE, TOP_K = 1.0, 4
NUM_SAMPLES = 1200


def engine_with(make_engine: MakeEngine, method: str, **settings: Any) -> Any:
    draft = None if method == "ngram" else related_draft()
    spec = SpeculationConfig(verifier="rejection", **METHODS[method])
    return make_engine(draft=draft, speculation=spec, **settings)


@pytest.mark.parametrize("method", METHODS)
def test_greedy_text_is_plain_greedy_text(make_engine: MakeEngine, method: str) -> None:
    engine = engine_with(make_engine, method)
    params = [sampling("greedy", i) for i in range(len(PROMPTS))]
    assert run_all(engine, PROMPTS, params) == plain_tokens(make_engine, "greedy")


@pytest.mark.parametrize("method", ["dyspec", "sampled"])
def test_a_perfect_draft_is_accepted_at_every_depth(make_engine: MakeEngine, method: str) -> None:
    """What it draws from is the target's own law, but for what lies outside of its candidates."""
    spec = SpeculationConfig(verifier="rejection", **METHODS[method])
    engine = make_engine(draft=str(make_checkpoint()), speculation=spec)
    sampled = [
        SamplingParams(max_tokens=40, temperature=0.2, seed=i, ignore_eos=True) for i in range(3)
    ]
    outputs = run_outputs(engine, PROMPTS[:3], sampled)
    assert [output.outputs[0].finish_reason for output in outputs] == ["length"] * 3
    by_depth = [output.metrics.speculation.acceptance_by_depth for output in outputs]
    assert all(min(rates) > 0.3 for rates in by_depth) and len(by_depth[0]) == len(by_depth[2])


class Launches:
    """Takes down what a drafter describes."""

    limits = NO_LIMITS

    def __init__(self) -> None:
        self.of_op: dict[str, list[dict[str, Any]]] = {}

    def launch(self, op: str, **args: Any) -> None:
        self.of_op.setdefault(op, []).append(args)

    @contextmanager
    def only_if(self, count: torch.Tensor) -> Iterator[None]:
        yield


def test_no_other_node_draws_with_the_root_s_noise(make_engine: MakeEngine) -> None:
    """Its id is 0 in every step; what the layers of the step before have left says something
    else, and one of this step's nodes may have that id, too."""
    engine = engine_with(make_engine, "dyspec")
    run_all(engine, PROMPTS[:1], [SamplingParams(max_tokens=20, seed=0, ignore_eos=True)])
    launches = Launches()
    engine.iteration.drafter.propose(launches, Variant(True))
    root, *others = (args["node_slots"] for args in launches.of_op["draft_topk"])
    written = [args["node_slots"] for args in launches.of_op["tree_expand"][:-1]]
    assert len(others) == len(written) == 2
    assert {ids.data_ptr() for ids in others} == {ids.data_ptr() for ids in written}
    assert root.data_ptr() not in {ids.data_ptr() for ids in written}
    assert written[0].any() and not root.any()


def law_of_two_tokens(presence: float = 0.0) -> dict[tuple[int, int], float]:
    """Exact probabilities of the first two tokens after PROMPT under the reference model."""
    checkpoint = open_checkpoint(make_checkpoint())
    weights = load_weights(checkpoint)

    def step(tokens: list[int]) -> dict[int, float]:
        logits = reference_logits(weights, checkpoint.config, torch.tensor(tokens))[-1].clone()
        logits[tokens[len(PROMPT) :]] -= presence
        best = logits.topk(TOP_K)
        probs = torch.softmax(best.values.double() / TEMPERATURE, dim=0)
        return dict(zip(best.indices.tolist(), probs.tolist()))

    return {(a, b): p * q for a, p in step(PROMPT).items() for b, q in step([*PROMPT, a]).items()}


def p_value(
    engine: Any, law: dict[tuple[int, int], float], length: int = 2, presence: float = 0.0
) -> float:
    """Chi-square test of the first two tokens of NUM_SAMPLES samples of that length against
    `law`."""
    params = SamplingParams(
        max_tokens=length,
        temperature=TEMPERATURE,
        top_k=TOP_K,
        ignore_eos=True,
        presence_penalty=presence,
    )
    seeds = [replace(params, seed=seed) for seed in range(NUM_SAMPLES)]
    samples = run_all(engine, [PROMPT] * NUM_SAMPLES, seeds)
    assert all(len(sample) == length for sample in samples)
    counts = Counter((sample[0], sample[1]) for sample in samples)
    assert set(counts) <= set(law), "a token outside the target's top-k"
    pairs = sorted(law, key=lambda pair: -law[pair])
    expected = [law[pair] * NUM_SAMPLES for pair in pairs]
    observed = [counts[pair] for pair in pairs]
    while expected[-1] < 5 and len(expected) > 2:
        expected[-2] += expected.pop()
        observed[-2] += observed.pop()
    return float(chisquare(observed, expected).pvalue)


@pytest.mark.parametrize("length", [2, 4])
@pytest.mark.parametrize("method", ["dyspec", "chain", "sampled", "ngram"])
def test_sampled_text_has_the_targets_law(
    make_engine: MakeEngine, method: str, length: int
) -> None:
    """Trees end above the last token: of two tokens they have one layer, of four all three."""
    engine = engine_with(make_engine, method, max_num_seqs=8, max_num_batched_tokens=64)
    assert p_value(engine, law_of_two_tokens(), length) > 1e-4


@pytest.mark.parametrize("method", ["dyspec", "sampled"])
def test_penalties_of_target_and_draft_keep_the_law(make_engine: MakeEngine, method: str) -> None:
    """The second token is the first one again, which it hardly ever is without."""
    settings = {"max_num_seqs": 8, "max_num_batched_tokens": 64}
    engine = engine_with(make_engine, method, **settings)
    assert p_value(engine, law_of_two_tokens(-2.0), 4, presence=-2.0) > 1e-4
    with pytest.raises(AssertionError, match="outside the target's top-k"):
        p_value(engine, law_of_two_tokens(), 4, presence=-2.0)


@pytest.mark.parametrize("draft_temperature", [GREEDY_TEMPERATURE, 0.5, 1e39])
def test_any_temperature_at_which_drafts_are_drawn_keeps_the_law(
    make_engine: MakeEngine, draft_temperature: float
) -> None:
    spec = SpeculationConfig(
        verifier="rejection", draft_temperature=draft_temperature, **METHODS["dyspec"]
    )
    settings = {"max_num_seqs": 8, "max_num_batched_tokens": 64}
    engine = make_engine(draft=related_draft(), speculation=spec, **settings)
    assert p_value(engine, law_of_two_tokens()) > 1e-4


def test_the_law_test_notices_drafts_that_are_chosen(make_engine: MakeEngine) -> None:
    """What a draft temperature below the greedy bound would do; the configuration refuses it."""
    spec = SpeculationConfig(verifier="rejection", draft_temperature=1.0, **METHODS["dyspec"])
    settings = {"max_num_seqs": 8, "max_num_batched_tokens": 64}
    engine = make_engine(draft=related_draft(), speculation=spec, **settings)
    engine.iteration.drafter._temperature.fill_(0.99 * GREEDY_TEMPERATURE)
    assert p_value(engine, law_of_two_tokens()) < 1e-4


@pytest.mark.parametrize("temperature", [1e-5, 9.99999975e-6, 9.9e-6, 0.0])
def test_drafts_are_drawn_exactly_where_the_target_is(
    make_engine: MakeEngine, temperature: float
) -> None:
    """One number decides for both, so that no child is chosen and then tested as if drawn."""
    engine = engine_with(make_engine, "dyspec")
    state = engine.iteration.workspace.state
    assert engine.iteration.drafter._temperature is state.temperature
    params = SamplingParams(max_tokens=4, temperature=temperature, seed=0, ignore_eos=True)
    run_all(engine, [PROMPT], [params])
    assert float(state.temperature[0]) == np.float32(temperature)


def test_the_law_test_notices_another_temperature(make_engine: MakeEngine) -> None:
    engine = engine_with(make_engine, "dyspec", max_num_seqs=8, max_num_batched_tokens=64)
    law = law_of_two_tokens()
    flat = {pair: p**0.6 for pair, p in law.items()}
    total = sum(flat.values())
    assert p_value(engine, {pair: p / total for pair, p in flat.items()}) < 1e-4


def test_chosen_trees_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"kary tree is chosen.*sampled"):
        SpeculationConfig(method="kary", verifier="rejection")
