"""The engine on the device: the tokens of the CPU, with speculation and without; nothing leaks."""

from __future__ import annotations

import pytest

from sdengine import LLM, SamplingParams, SpeculationConfig
from tests.gpu.on_device import needs_a_device

pytestmark = needs_a_device
NEAR_TIE = 1e-3  # of log probabilities
NUM_REQUESTS = 10_000
PROMPTS = ["class Stack:\n", "def main(argv=None):\n", "import os\n\n\ndef read_lines(path):\n"]


def tokens(llm: LLM, temperature: float) -> list[list[int]]:
    params = [SamplingParams(max_tokens=32, temperature=temperature, seed=i) for i in range(3)]
    return [list(out.outputs[0].token_ids) for out in llm.generate(PROMPTS, params)]


def on_device(**settings: object) -> LLM:
    return LLM("python-completion", device="cuda", **settings)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_speculation_changes_no_token(dtype: str, temperature: float) -> None:
    plain = tokens(on_device(speculation=None, dtype=dtype), temperature)
    config = SpeculationConfig(method="dyspec", adaptive=False, max_nodes=24)
    assert tokens(on_device(speculation=config, dtype=dtype), temperature) == plain


def test_tokens_are_those_of_the_cpu_but_for_near_ties() -> None:
    """Greedy, float32. Where two runs part, the two tokens were equally likely up to rounding."""
    params = SamplingParams(max_tokens=32, temperature=0, logprobs=2)
    mine = on_device(speculation=None, dtype="float32").generate(PROMPTS, params)
    theirs = LLM("python-completion", speculation=None, dtype="float32").generate(PROMPTS, params)
    for left, right in zip(mine, theirs):
        pairs = zip(left.outputs[0].token_ids, right.outputs[0].token_ids)
        parted = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        if parted is not None:
            alternatives = right.outputs[0].logprobs
            assert alternatives is not None
            best, second, *_ = sorted(-entry.logprob for entry in alternatives[parted].values())
            assert second - best < NEAR_TIE


def test_many_requests_leave_no_block_behind() -> None:
    llm = on_device(max_num_seqs=16, enable_prefix_caching=False)
    params = SamplingParams(max_tokens=6, temperature=0.8, seed=1)
    prompts = [f"def function_{i}(x):\n" for i in range(NUM_REQUESTS)]
    assert len(llm.generate(prompts, params)) == NUM_REQUESTS
    assert not llm.engine.has_unfinished_requests()
    assert llm.engine.num_free_blocks == llm.engine.num_blocks
