"""Penalties, logit bias and min_tokens: counted along each node's own path, so speculation keeps
the very tokens; and they do what they say, against a plain loop over the reference model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from sdengine.core.config import SpeculationConfig
from sdengine.core.sampling_params import SamplingParams
from sdengine.errors import RequestError
from sdengine.model.checkpoint import open_checkpoint
from sdengine.model.reference import load_weights, reference_logits
from tests.engine.conftest import MakeEngine, related_draft, run_all
from tests.engine.test_exactness import PROMPTS
from tests.model.checkpoints import make_checkpoint

EOS = 2
CASES: dict[str, dict[str, Any]] = {
    "repetition": {"repetition_penalty": 1.7},
    "presence": {"presence_penalty": 1.5},
    "frequency": {"frequency_penalty": 0.9, "temperature": 0.9},
    "bias": {"logit_bias": {5: 4.0, 17: -100.0, 30: 100.0}, "frequency_penalty": 2.0},
    "all": {
        "repetition_penalty": 1.2,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.3,
        "logit_bias": {EOS: 6.0},
        "min_tokens": 12,
        "temperature": 0.7,
    },
}


def params_of(name: str, seed: int, **more: Any) -> SamplingParams:
    return SamplingParams(
        **{"max_tokens": 30, "temperature": 0.0, "seed": seed, **CASES[name], **more}
    )


@pytest.mark.parametrize("method", ["dyspec", "ngram"])
@pytest.mark.parametrize("name", CASES)
def test_speculation_keeps_the_tokens(make_engine: MakeEngine, name: str, method: str) -> None:
    params = [params_of(name, i) for i in range(len(PROMPTS))]
    plain = make_engine()
    expected = [run_all(plain, [p], [s])[0] for p, s in zip(PROMPTS, params)]
    spec = SpeculationConfig(method=method, max_nodes=10, max_depth=4, adaptive=False)
    spec = replace(spec, min_ngram=1) if method == "ngram" else spec
    engine = make_engine(draft=related_draft() if method == "dyspec" else None, speculation=spec)
    assert run_all(engine, PROMPTS, params) == expected


@pytest.mark.parametrize("padding", [-24, 57])
@pytest.mark.parametrize("name", CASES)
def test_a_draft_of_another_vocabulary_keeps_the_tokens(
    make_engine: MakeEngine, name: str, padding: int
) -> None:
    """Two models of a family often differ in rows for tokens that are never used."""
    biased = dict(CASES[name].get("logit_bias", {})) | {190: 3.0}
    params = [params_of(name, i, logit_bias=biased) for i in range(len(PROMPTS))]
    draft = str(make_checkpoint(vocab_size=199 + padding, num_hidden_layers=2))
    expected = run_all(make_engine(), PROMPTS, params)
    spec = SpeculationConfig(max_nodes=10, max_depth=4, adaptive=False)
    assert run_all(make_engine(draft=draft, speculation=spec), PROMPTS, params) == expected


def plain_loop(prompt: list[int], params: SamplingParams) -> list[int]:
    """Greedy decoding with the field's definition of the penalties, one full forward per token."""
    checkpoint = open_checkpoint(make_checkpoint())
    weights = load_weights(checkpoint)
    tokens = list(prompt)
    for step in range(params.max_tokens):
        logits = reference_logits(weights, checkpoint.config, torch.tensor(tokens))[-1].clone()
        output = torch.bincount(
            torch.tensor(tokens[len(prompt) :], dtype=torch.long), minlength=199
        )
        seen = torch.bincount(torch.tensor(tokens), minlength=199) > 0
        scale = params.repetition_penalty
        logits = torch.where(seen, torch.where(logits > 0, logits / scale, logits * scale), logits)
        logits = logits - params.frequency_penalty * output
        logits = logits - params.presence_penalty * (output > 0)
        for token, bias in (params.logit_bias or {}).items():
            logits[token] += bias
        if step < params.min_tokens:
            logits[EOS] = float("-inf")
        tokens.append(int(logits.argmax()))
        if tokens[-1] == EOS:
            break
    return tokens[len(prompt) :]


@pytest.mark.parametrize("name", CASES)
def test_tokens_are_those_of_the_definition(make_engine: MakeEngine, name: str) -> None:
    params = params_of(name, 0, temperature=0.0)
    tokens = run_all(make_engine(), [PROMPTS[0]], [params])[0]
    assert tokens == plain_loop(PROMPTS[0], params)


def test_a_slot_is_neutral_for_its_next_sequence(make_engine: MakeEngine) -> None:
    engine = make_engine(max_num_seqs=1)
    plain = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)
    before = run_all(engine, [PROMPTS[0]], [plain])
    run_all(engine, [PROMPTS[0]], [params_of("all", 0)])
    assert run_all(engine, [PROMPTS[0]], [plain]) == before
    assert not engine._runner._penalties.is_needed, "its logits are not looked at any more"


def test_preemption_keeps_the_counts(make_engine: MakeEngine) -> None:
    params = [params_of("frequency", i, ignore_eos=True) for i in range(len(PROMPTS))]
    plain = make_engine()
    expected = [run_all(plain, [p], [s])[0] for p, s in zip(PROMPTS, params)]
    assert run_all(make_engine(num_kv_blocks=11), PROMPTS, params) == expected


def test_more_biases_than_the_tables_hold_are_refused(make_engine: MakeEngine) -> None:
    engine = make_engine(str(make_checkpoint(vocab_size=2000)))
    params = SamplingParams(logit_bias=dict.fromkeys(range(1025), 1.0))
    with pytest.raises(RequestError, match=r"at most 1024 .*1025"):
        engine.add_request("r", [5], params)
    params = SamplingParams(logit_bias={**dict.fromkeys(range(1023), 0.0), 1999: 100.0})
    assert set(run_all(engine, [[5]], [params])[0]) == {1999}, "so many are held"


def test_more_min_tokens_than_there_is_room_for_only_mask_the_end(make_engine: MakeEngine) -> None:
    """Positions are 32-bit numbers on the way to the kernels; a request's limits need not be."""
    engine = make_engine(max_model_len=40)
    params = {"seed": 1, "max_tokens": 2**62, "stop_token_ids": list(range(64)), "ignore_eos": True}
    engine.add_request("a", [5, 6, 7], SamplingParams(min_tokens=2**62, **params))
    engine.add_request("b", [5, 6, 7], SamplingParams(min_tokens=37, **params))
    ends = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            ends[output.request_id] = output.outputs[0]
    assert ends["a"].token_ids == ends["b"].token_ids and len(ends["a"].token_ids) == 37
    assert ends["a"].finish_reason == "length"
