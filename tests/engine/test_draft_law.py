"""A draft draws from its own law as the target does from its own: penalties, biases and masks
change its logits, and what top-k, top-p and min-p would leave out is not drafted."""

from __future__ import annotations

from typing import Any

import pytest

from sdengine.core.config import SpeculationConfig
from sdengine.core.outputs import SpeculationStats
from sdengine.core.sampling_params import SamplingParams
from tests.engine.conftest import MakeEngine, related_draft, run_all, run_outputs
from tests.engine.test_exactness import PROMPTS
from tests.engine.test_penalties import CASES as PENALTIES
from tests.model.checkpoints import make_checkpoint

FILTERS: dict[str, dict[str, Any]] = {
    "top-k": {"temperature": 1.2, "top_k": 5},
    "top-p": {"temperature": 1.0, "top_p": 0.6},
    "min-p": {"temperature": 1.0, "min_p": 0.3},
    "all": {"temperature": 0.8, "top_k": 9, "top_p": 0.9, "min_p": 0.05, "presence_penalty": 0.5},
}
CASES = {f"penalties-{k}": {"temperature": 0.0, **v} for k, v in PENALTIES.items()}
CASES |= {f"filters-{k}": v for k, v in FILTERS.items()}


@pytest.mark.parametrize("method", ["chain", "dyspec"])
@pytest.mark.parametrize("name", CASES)
def test_a_draft_that_is_the_target_is_always_right(
    make_engine: MakeEngine, name: str, method: str
) -> None:
    """In every layer, along the node's own path."""
    spec = SpeculationConfig(method=method, max_nodes=8, max_depth=4, adaptive=False)
    engine = make_engine(draft=str(make_checkpoint()), speculation=spec)
    params = [
        SamplingParams(max_tokens=31, seed=i, ignore_eos=True, **CASES[name])
        for i in range(len(PROMPTS))
    ]
    for output in run_outputs(engine, PROMPTS, params):
        stats = output.metrics.speculation
        assert isinstance(stats, SpeculationStats)
        # One token comes of the prompt; six steps of four draft tokens and one more give the rest.
        assert (stats.num_steps, stats.num_accepted_draft_tokens) == (7, 24)


@pytest.mark.parametrize(
    ("method", "verifier", "has_own"),
    [("dyspec", "coupled", True), ("dyspec", "rejection", False), ("ngram", "coupled", False)],
)
def test_only_who_minds_filters_has_programs_for_them(
    make_engine: MakeEngine, method: str, verifier: str, has_own: bool
) -> None:
    spec = SpeculationConfig(method=method, verifier=verifier, adaptive=False)
    engine = make_engine(draft=None if method == "ngram" else related_draft(), speculation=spec)
    for filters in (FILTERS["top-k"], {"temperature": 0.0, "top_k": 5}, {}):
        run_all(engine, [PROMPTS[0]], [SamplingParams(max_tokens=12, seed=1, **filters)])
    with_filters = [variant.has_filters for variant in engine.iteration._programs if variant.drafts]
    assert (True in with_filters) == has_own and with_filters.count(False) == 1
