"""A draft that was made for a shorter context than its target changes no text."""

from __future__ import annotations

import pytest

from sdengine.core.config import SpeculationConfig
from sdengine.core.sampling_params import SamplingParams
from tests.engine.conftest import MakeEngine, run_all
from tests.model.checkpoints import make_checkpoint

DRAFT_CONTEXT = 24
TREES = SpeculationConfig(max_nodes=6, max_depth=3, adaptive=False)
PROMPTS = [[5, 9, 140], list(range(3, 23))]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_text_goes_on_beyond_the_draft_s_context(
    temperature: float, make_engine: MakeEngine
) -> None:
    draft = str(make_checkpoint(num_hidden_layers=2, max_position_embeddings=DRAFT_CONTEXT))
    plain, drafted = make_engine(), make_engine(draft=draft, speculation=TREES)
    assert drafted.max_model_len == plain.max_model_len > 2 * DRAFT_CONTEXT
    samplers = [
        SamplingParams(temperature=temperature, seed=i, max_tokens=60, ignore_eos=True)
        for i in range(len(PROMPTS))
    ]
    texts = run_all(drafted, PROMPTS, samplers)
    assert texts == run_all(plain, PROMPTS, samplers)
    assert [len(text) for text in texts] == [60, 60]
