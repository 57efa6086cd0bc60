"""Numbers that are not finite, at run time: the request that meets them ends alone, with its
reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from sdengine.core.config import SpeculationConfig
from sdengine.core.sampling_params import SamplingParams
from sdengine.engine import NOT_FINITE, Engine
from sdengine.errors import SdengineError
from tests.engine.conftest import (
    MakeEngine,
    MakeLLM,
    related_draft,
    run_all,
    run_outputs,
)
from tests.model.checkpoints import VOCAB, make_checkpoint

PROMPTS = [[(7 * i) % 190 + 3 for i in range(20)], [5, 9, 5, 9, 5, 9, 5]]
GREEDY = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True)
TREES = SpeculationConfig(max_nodes=8, max_depth=4, adaptive=False)


def poison(engine: Engine, tokens: list[int]) -> None:
    """Makes the target's embedding of some tokens NaN; programs are described anew."""
    iteration = engine.iteration
    embed = iteration.weights.embed.clone()
    embed[tokens] = float("nan")
    iteration.weights = replace(iteration.weights, embed=embed)
    iteration._programs.clear()


def poisoned_engine(
    make_engine: MakeEngine, speculates: bool, tokens: list[int], draft: str | None = None
) -> Engine:
    settings: dict[str, Any] = {}
    if speculates:
        settings = {"draft": draft or related_draft(), "speculation": TREES}
    engine = make_engine(**settings)
    poison(engine, tokens)
    return engine


@pytest.mark.parametrize("speculates", [False, True])
def test_a_prompt_that_makes_nan_ends_alone(make_engine: MakeEngine, speculates: bool) -> None:
    expected = run_all(make_engine(), PROMPTS, [GREEDY] * 2)
    used = {*PROMPTS[0], *PROMPTS[1], *expected[0], *expected[1]}
    unused = next(t for t in range(VOCAB) if t not in used)
    engine = poisoned_engine(make_engine, speculates, [unused])
    prompts = [PROMPTS[0], [7, unused, 8], PROMPTS[1]]
    params = [GREEDY, replace(GREEDY, logprobs=2), GREEDY]
    first, bad, last = (o.outputs[0] for o in run_outputs(engine, prompts, params))
    assert [list(first.token_ids), list(last.token_ids)] == expected
    assert (bad.finish_reason, bad.stop_reason) == ("abort", NOT_FINITE)
    assert (list(bad.token_ids), bad.logprobs, bad.text) == ([], [], "")


def test_keys_and_values_that_a_nan_has_touched_are_not_shared(make_engine: MakeEngine) -> None:
    """Whatever it came of: where it does not come again, the same prompt goes well."""
    prompt = PROMPTS[0]
    expected = run_all(make_engine(), [prompt], [GREEDY])
    engine = make_engine()
    sound = engine.iteration.weights
    poison(engine, prompt[:1])
    (bad,) = run_outputs(engine, [prompt], [GREEDY])
    assert bad.outputs[0].stop_reason == NOT_FINITE
    engine.iteration.weights = sound
    engine.iteration._programs.clear()
    assert run_all(engine, [prompt], [GREEDY]) == expected


@pytest.mark.parametrize("speculates", [False, True])
def test_tokens_before_the_first_nan_are_kept(make_engine: MakeEngine, speculates: bool) -> None:
    """With a perfect draft of depth 4, the NaN comes at different places of a path."""
    free = run_all(make_engine(), PROMPTS[:1], [GREEDY])[0]
    new = [i for i in range(6, 24) if free[i] not in [*PROMPTS[0], *free[:i]]]
    for position in new[:3]:
        engine = poisoned_engine(make_engine, speculates, [free[position]], str(make_checkpoint()))
        got = run_outputs(engine, PROMPTS[:1], [replace(GREEDY, logprobs=0)])[0].outputs[0]
        assert list(got.token_ids) == free[: position + 1]
        assert (got.finish_reason, got.stop_reason) == ("abort", NOT_FINITE)
        assert got.logprobs is not None and len(got.logprobs) == position + 1
        (again,) = run_outputs(engine, PROMPTS[:1], [GREEDY], max_iterations=7)[0].outputs
        assert again == replace(got, logprobs=None, cumulative_logprob=None)


def test_nan_in_rejected_tree_nodes_harms_nobody(make_engine: MakeEngine) -> None:
    """Every draft token that plain decoding does not choose is NaN in the target."""
    expected = run_all(make_engine(), PROMPTS, [GREEDY] * 2)
    used = {*PROMPTS[0], *PROMPTS[1], *expected[0], *expected[1]}
    engine = poisoned_engine(make_engine, True, [t for t in range(VOCAB) if t not in used])
    outputs = run_outputs(engine, PROMPTS, [GREEDY] * 2)
    assert [list(o.outputs[0].token_ids) for o in outputs] == expected
    stats = outputs[0].metrics.speculation
    assert stats is not None and stats.num_draft_tokens > stats.num_accepted_draft_tokens


def test_a_draft_that_only_makes_nan_changes_nothing(make_engine: MakeEngine) -> None:
    params = [SamplingParams(max_tokens=24, ignore_eos=True, seed=i) for i in range(2)]
    expected = run_all(make_engine(), PROMPTS, params)
    engine = make_engine(draft=related_draft(), speculation=TREES)
    drafter: Any = engine.iteration.drafter
    embed = torch.full_like(drafter._weights.embed, float("nan"))
    drafter._weights = replace(drafter._weights, embed=embed)
    assert run_all(engine, PROMPTS, params) == expected


@pytest.mark.parametrize("speculates", [False, True])
def test_what_lies_in_unused_cache_slots_is_never_read(
    make_engine: MakeEngine, speculates: bool
) -> None:
    expected = run_all(make_engine(), PROMPTS, [GREEDY] * 2)
    engine = poisoned_engine(make_engine, speculates, [])
    engine.iteration._cache.tensor.fill_(float("nan"))
    if speculates:
        drafter: Any = engine.iteration.drafter
        drafter.cache.tensor.fill_(float("nan"))
    assert run_all(engine, PROMPTS, [GREEDY] * 2) == expected


def test_text_before_a_nan_is_that_of_the_tokens(make_llm: MakeLLM) -> None:
    """The first of four bytes of a character is all that comes: it is shown as one that lacks the
    others, as at any other end."""
    engine = make_llm().engine
    assert engine.tokenizer is not None
    first = engine.tokenizer.encode("\U0001f600", add_special_tokens=False)[0]
    params = replace(GREEDY, logit_bias={first: 100.0}, max_tokens=3)
    (free,) = run_outputs(engine, [[5, 6]], [replace(params, max_tokens=1)])
    assert (list(free.outputs[0].token_ids), free.outputs[0].text) == ([first], "\ufffd")
    poison(engine, [first])
    (bad,) = run_outputs(engine, [[5, 6]], [params])
    assert bad.outputs[0].stop_reason == NOT_FINITE
    assert (list(bad.outputs[0].token_ids), bad.outputs[0].text) == ([first], "\ufffd")


def test_llm_raises_when_logits_are_not_finite(make_llm: MakeLLM) -> None:
    llm = make_llm()
    assert llm.engine.tokenizer is not None
    bad = llm.engine.tokenizer.encode("ü")[-1]
    poison(llm.engine, [bad])
    good = llm.generate("the fox", replace(GREEDY, max_tokens=3))[0].outputs
    words = "finite logits, got the target model's logits are not finite; check the checkpoint"
    with pytest.raises(SdengineError, match=words):
        llm.generate(["the fox", "ü", "the dog"], GREEDY)
    with pytest.raises(SdengineError, match=words):
        list(llm.stream("ü", GREEDY))
    assert not llm.engine.has_unfinished_requests()
    assert llm.generate("the fox", replace(GREEDY, max_tokens=3))[0].outputs == good
