"""Statistics derived from the acceptance histogram."""

from __future__ import annotations

import dataclasses
import json

from hypothesis import given
from hypothesis import strategies as st

from sdengine.core.outputs import (
    CompletionOutput,
    Logprob,
    RequestMetrics,
    RequestOutput,
    SpeculationStats,
)
from sdengine.core.snapshot import Snapshot


def test_rates_of_a_small_example() -> None:
    """Four steps: 0, 2, 2 and 3 draft tokens accepted; the last one was cut and had no bonus."""
    stats = SpeculationStats.from_histogram([1, 0, 2, 1, 0], 20, 10, draft_time_s=0.5)
    assert stats.num_steps == 4
    assert stats.num_accepted_draft_tokens == 7
    assert stats.mean_acceptance_length == 2.5
    assert stats.draft_acceptance_rate == 0.35
    assert stats.acceptance_histogram == (1, 0, 2, 1)
    assert stats.acceptance_by_depth == (0.75, 0.75, 0.25)
    assert stats.draft_time_s == 0.5


def test_nothing_happened_yet() -> None:
    stats = SpeculationStats.from_histogram([], 0, 0)
    assert (stats.num_steps, stats.mean_acceptance_length, stats.draft_acceptance_rate) == (0, 0, 0)
    assert stats.acceptance_by_depth == ()


@given(st.lists(st.integers(0, 50), max_size=10))
def test_identities(histogram: list[int]) -> None:
    steps = sum(histogram)
    accepted = sum(i * count for i, count in enumerate(histogram))
    stats = SpeculationStats.from_histogram(histogram, 2 * accepted, accepted + steps)
    assert abs(sum(stats.acceptance_by_depth) * steps - accepted) < 1e-6
    if steps:
        assert abs(stats.mean_acceptance_length - 1 - sum(stats.acceptance_by_depth)) < 1e-9
        assert all(0 <= rate <= 1 for rate in stats.acceptance_by_depth)


def test_outputs_are_serialisable() -> None:
    stats = SpeculationStats.from_histogram([1], 1, 1)
    completion = CompletionOutput(0, "a", (1,), None, None, "stop", "x")
    assert completion.is_finished
    assert not CompletionOutput(0, "", ()).is_finished
    output = RequestOutput(
        "id", "p", (1,), [completion], True, RequestMetrics(0.0, speculation=stats)
    )
    parsed = json.loads(json.dumps(dataclasses.asdict(output)))
    assert parsed["metrics"]["speculation"]["num_steps"] == 1


def test_logprobs_are_plain_data_once_the_completion_has_finished() -> None:
    logprobs = [{7: Logprob(-0.5, 1, "a")}]
    finished = dataclasses.asdict(CompletionOutput(0, "a", [7], logprobs, -0.5, "stop"))
    entry = {"logprob": -0.5, "rank": 1, "decoded_token": "a"}
    assert json.loads(json.dumps(finished))["logprobs"] == [{"7": entry}]
    running = CompletionOutput(0, "a", Snapshot([7], 0, 1), Snapshot(logprobs, 0, 1), -0.5)
    assert dataclasses.asdict(running)["token_ids"] == [7]
    assert dataclasses.asdict(running)["logprobs"] == logprobs  # objects, as the module says
