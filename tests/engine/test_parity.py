"""Every family and RoPE type: the engine's greedy tokens are transformers', in float32.

The tokens are checked against transformers' logits over the engine's own text (one forward per
case), which is the stronger statement: at every position the engine took the oracle's argmax.
"""

from __future__ import annotations

import pytest
import torch

from sdengine.core.config import SpeculationConfig
from sdengine.core.sampling_params import SamplingParams
from tests.engine.conftest import MakeEngine, run_all
from tests.model.checkpoints import CASES, make_checkpoint

PROMPTS = [[5, 9, 140, 33, 7], [3], [(11 * i) % 180 + 5 for i in range(40)]]
NUM_TOKENS = 64


@pytest.mark.parametrize("family,rope", CASES)
def test_greedy_tokens_are_transformers(make_engine: MakeEngine, family: str, rope: str) -> None:
    import transformers

    directory = make_checkpoint(family, rope)
    oracle = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )
    length = len(PROMPTS[2]) + NUM_TOKENS
    is_length_dependent = rope in ("dynamic", "longrope")
    engine = make_engine(
        str(directory),
        draft=str(directory),
        speculation=SpeculationConfig(max_nodes=6, max_depth=3, adaptive=False),
        max_model_len=length if is_length_dependent else None,
    )
    params = SamplingParams(max_tokens=NUM_TOKENS, temperature=0, ignore_eos=True)
    prompts = PROMPTS[2:] if is_length_dependent else PROMPTS
    for prompt, tokens in zip(prompts, run_all(engine, prompts, [params] * len(prompts))):
        assert len(tokens) == NUM_TOKENS
        with torch.no_grad():
            logits = oracle(torch.tensor([prompt + tokens])).logits[0]
        expected = logits[len(prompt) - 1 : -1].argmax(dim=-1).tolist()
        assert tokens == expected
