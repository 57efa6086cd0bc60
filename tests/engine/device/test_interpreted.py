"""The whole engine through the device's kernels gives the CPU's tokens in float32, and its
probabilities in float16.

Prefill, plain decoding, every drafter and verifier, penalties: as they would run on a GPU, with
Triton's interpreter in its place and, in some, the CUDA sources on the CPU's threads.
"""

from __future__ import annotations

from typing import Any

import pytest

from sdengine.core.config import SpeculationConfig
from sdengine.core.sampling_params import SamplingParams
from tests.engine.conftest import run_outputs
from tests.engine.device.conftest import MakePair

PROMPTS = [[5, 9, 5], [17]]
METHODS: dict[str, dict[str, Any]] = {
    "dyspec": {"max_nodes": 4, "max_depth": 2},
    "chain": {"method": "chain", "max_nodes": 2, "max_depth": 2},
    "kary": {"method": "kary", "branching": (2, 1)},
    "ngram": {"method": "ngram", "max_nodes": 4, "max_depth": 3, "min_ngram": 1},
    "dyspec-rejection": {"max_nodes": 4, "max_depth": 2, "verifier": "rejection"},
    "sampled-rejection": {"method": "sampled", "branching": (2, 1), "verifier": "rejection"},
}


def spec_of(method: str) -> SpeculationConfig | None:
    return None if method == "plain" else SpeculationConfig(adaptive=False, **METHODS[method])


def params_of(index: int, **changes: Any) -> SamplingParams:
    """Greedy for the first prompt, filtered sampling for the second."""
    settings: dict[str, Any] = {"temperature": 0.0} if index == 0 else {"top_p": 0.9, "top_k": 30}
    settings |= {"max_tokens": 4, "ignore_eos": True, "seed": index, **changes}
    return SamplingParams(**settings)


def run(
    make_tiny: MakePair, backend: str, method: str, params: list[SamplingParams], **settings: Any
) -> list[tuple[list[int], int]]:
    """Tokens and drafted tokens of every prompt."""
    engine = make_tiny(backend, speculation=spec_of(method), **settings)
    outputs = run_outputs(engine, PROMPTS, params)
    stats = [output.metrics.speculation for output in outputs]
    drafted = [0 if s is None else s.num_draft_tokens for s in stats]
    return [(list(o.outputs[0].token_ids), d) for o, d in zip(outputs, drafted)]


PENALTIES = [
    {"repetition_penalty": 1.5, "frequency_penalty": 0.6, "logit_bias": {7: 2.0}},
    {"min_tokens": 2, "presence_penalty": 0.4},
]


def test_prefill_and_plain_decoding(make_tiny: MakePair, interpreted: None) -> None:
    params = [params_of(0, max_tokens=2), params_of(1, max_tokens=2)]
    expected = run(make_tiny, "cpu", "plain", params)
    assert run(make_tiny, "triton", "plain", params) == expected


def test_dynamic_trees_with_penalties(make_tiny: MakePair, interpreted: None) -> None:
    params = [params_of(i, max_tokens=3, **PENALTIES[i]) for i in range(2)]
    expected = run(make_tiny, "cpu", "dyspec", params)
    assert run(make_tiny, "triton", "dyspec", params) == expected
    assert min(drafted for _, drafted in expected) > 0, "nothing was speculated"
    plain = run(make_tiny, "cpu", "dyspec", [params_of(i, max_tokens=3) for i in range(2)])
    assert [tokens for tokens, _ in plain] != [tokens for tokens, _ in expected]


def test_float16_is_the_cpu_s_up_to_rounding(make_tiny: MakePair, interpreted: None) -> None:
    """A device rounds activations as well; here to eleven bits."""
    params = SamplingParams(max_tokens=1, temperature=0.0, logprobs=5)
    likeliest = []
    for backend in ("cpu", "triton"):
        outputs = run_outputs(make_tiny(backend, dtype="float16"), PROMPTS, [params] * 2)
        (seen,) = outputs[0].outputs[0].logprobs or ()
        likeliest.append({token: entry.logprob for token, entry in seen.items()})
    assert likeliest[1] == pytest.approx(likeliest[0], abs=0.01)


def test_rejection_with_the_cuda_sources_on_threads(make_tiny: MakePair, on_threads: None) -> None:
    params = [params_of(0, max_tokens=2), params_of(1, max_tokens=2)]
    expected = run(make_tiny, "cpu", "dyspec-rejection", params)
    assert run(make_tiny, "triton", "dyspec-rejection", params) == expected


@pytest.mark.slow
@pytest.mark.parametrize("kernels", ["interpreted", "on_threads"])
@pytest.mark.parametrize("method", ["plain", *METHODS])
def test_every_method_with_penalties(
    make_tiny: MakePair, request: pytest.FixtureRequest, method: str, kernels: str
) -> None:
    request.getfixturevalue(kernels)
    params = [params_of(0, max_tokens=8), params_of(1, max_tokens=8, **PENALTIES[0])]
    expected = run(make_tiny, "cpu", method, params)
    assert run(make_tiny, "triton", method, params) == expected
