"""The enlarged bundled pair writes the small pair's text and accepts as many draft tokens."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.upscale import Shape, enlarge
from benchmarks.upscale.agreement import compare_logits, first_difference, margin_at
from sdengine.cli.prompts import PROMPTS
from sdengine.core.config import SpeculationConfig
from sdengine.core.outputs import RequestOutput
from sdengine.core.sampling_params import SamplingParams
from sdengine.llm import LLM
from sdengine.model.registry import ModelPaths, resolve_model

TARGET = Shape(320, 1424, 11, 6, 3, 128, 2111)  # small: 256, 1408, 10, 4, 2, 64, 2048
DRAFT = Shape(144, 712, 3, 3, 3, 64, 2111)  # small: 128, 704, 2, 2, 1, 64, 2048
TEXTS = [prompt.text for prompt in PROMPTS[:4]]
TOKENS = 48


@pytest.fixture(scope="module")
def small() -> ModelPaths:
    return resolve_model("python-completion")


@pytest.fixture(scope="module")
def large(small: ModelPaths, tmp_path_factory: pytest.TempPathFactory) -> ModelPaths:
    """The bundled pair in shapes of a little more."""
    folder = tmp_path_factory.mktemp("large")
    assert small.draft is not None
    enlarge(small.target, folder / "target", TARGET, dtype="float32")
    enlarge(small.draft, folder / "draft", DRAFT, dtype="float32")
    return ModelPaths(folder / "target", folder / "draft")


@pytest.fixture(scope="module")
def outputs(
    small: ModelPaths, large: ModelPaths
) -> Callable[[bool, str, float], list[RequestOutput]]:
    """Runs of one pair in one dtype at one temperature; each pair and dtype is loaded once."""
    loaded: dict[tuple[bool, str], LLM] = {}

    def run(is_large: bool, dtype: str, temperature: float) -> list[RequestOutput]:
        key = (is_large, dtype)
        if key not in loaded:
            paths = large if is_large else small
            loaded[key] = LLM(
                str(paths.target),
                str(paths.draft),
                dtype=dtype,
                num_threads=1,
                max_num_seqs=1,
                speculation=SpeculationConfig(max_nodes=8, max_depth=4, adaptive=False),
            )
        params = SamplingParams(max_tokens=TOKENS, temperature=temperature, seed=5, ignore_eos=True)
        return [loaded[key].generate(text, params)[0] for text in TEXTS]

    return run


def counts(output: RequestOutput) -> tuple[object, ...]:
    stats = output.metrics.speculation
    assert stats is not None and stats.num_accepted_draft_tokens > 0
    return (stats.num_steps, stats.num_draft_tokens, tuple(stats.acceptance_histogram))


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_text_and_acceptance_are_the_small_pairs(outputs, temperature: float) -> None:
    expected = outputs(False, "float32", temperature)
    found = outputs(True, "float32", temperature)
    assert [o.outputs[0].text for o in found] == [o.outputs[0].text for o in expected]
    assert [counts(o) for o in found] == [counts(o) for o in expected]


def test_bfloat16_differs_at_ties_alone_and_accepts_as_much(outputs, small: ModelPaths) -> None:
    expected = outputs(False, "bfloat16", 0.0)
    found = outputs(True, "bfloat16", 0.0)
    for one, other in zip(expected, found, strict=True):
        prompt = list(one.prompt_token_ids)
        mine, theirs = list(one.outputs[0].token_ids), list(other.outputs[0].token_ids)
        at = first_difference(mine, theirs)
        if at is not None:  # the two candidates are closer than bfloat16 tells apart
            margin = margin_at(small.target, [*prompt, *mine[:at]], mine[at], theirs[at])
            assert margin < 0.1
    lengths = [
        sum(o.metrics.speculation.mean_acceptance_length for o in runs) / len(runs)
        for runs in (expected, found)
    ]
    assert lengths[1] == pytest.approx(lengths[0], rel=0.1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_agree_within_the_rounding_of_plain_torch(
    small: ModelPaths, large: ModelPaths, dtype: str
) -> None:
    agreement = compare_logits(small.target, large.target, [TEXTS[0][:120]], dtype)
    assert 0 < agreement.large_error <= 2 * agreement.small_error
    assert agreement.surplus_distance > 50
