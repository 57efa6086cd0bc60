"""Weights and caches of 16 bits: how far the engine's probabilities are from those in float32, and
that a float16 checkpoint is decoded as it is stored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sdengine.core.sampling_params import SamplingParams
from sdengine.kernels.programs.memory import HostMemory
from sdengine.model.checkpoint import open_checkpoint
from sdengine.model.reference import load_weights, reference_logits
from sdengine.runner.placement import Placement
from tests.engine.conftest import MakeEngine, run_outputs
from tests.model.checkpoints import make_checkpoint

PROMPT = [(11 * i) % 180 + 5 for i in range(70)]


def error_of(make_engine: MakeEngine, directory: Path, dtype: str, exact: torch.Tensor) -> float:
    """Largest error among the twenty likeliest tokens after the prompt."""
    params = SamplingParams(max_tokens=1, temperature=0.0, logprobs=20)
    output = run_outputs(make_engine(str(directory), dtype=dtype), [PROMPT], [params])[0]
    (seen,) = output.outputs[0].logprobs or ()
    assert len(seen) == 20
    return max(abs(entry.logprob - float(exact[token])) for token, entry in seen.items())


def reference_logprobs(directory: Path, dtype: torch.dtype) -> torch.Tensor:
    """Of all tokens after the prompt, in plain torch."""
    checkpoint = open_checkpoint(directory)
    weights = {name: tensor.to(dtype) for name, tensor in load_weights(checkpoint).items()}
    logits = reference_logits(weights, checkpoint.config, torch.tensor(PROMPT))[-1]
    return logits.float().log_softmax(-1)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_errors_are_at_most_twice_those_of_plain_torch(make_engine: MakeEngine, dtype: str) -> None:
    directory = make_checkpoint()
    exact = reference_logprobs(directory, torch.float32)
    likeliest = exact.topk(20).indices
    plain = (reference_logprobs(directory, getattr(torch, dtype)) - exact)[likeliest].abs().max()
    assert error_of(make_engine, directory, dtype, exact) <= 2 * plain


def test_a_float16_checkpoint_is_decoded_as_it_is(make_engine: MakeEngine) -> None:
    directory = make_checkpoint(dtype="float16")
    exact = reference_logprobs(directory, torch.float32)
    rounded = error_of(make_engine, directory, "bfloat16", exact)
    assert error_of(make_engine, directory, "float16", exact) < rounded / 4
    engine = make_engine(str(directory), dtype="auto")
    has_bf16 = Placement("cpu", HostMemory()).prefers_bfloat16
    assert engine.iteration.weights.dtype == (torch.bfloat16 if has_bf16 else torch.float16)
