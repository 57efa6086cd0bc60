"""The device always has its next step before the host reads the last one, and nobody waits between.

The order of the host's calls is also tested without a device, on one that runs the CPU's kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sdengine import SamplingParams, SpeculationConfig
from sdengine.engine import Engine
from sdengine.kernels.programs.device_program import StagedProgram
from sdengine.kernels.programs.results_ring import ResultsRing
from sdengine.runner.runner import Runner
from tests.engine.device.conftest import use_host_kernels
from tests.gpu.on_device import IS_DRY_RUN, needs_a_device

PROMPTS = ["class Stack:\n", "def main(argv=None):\n", "import os\n\n\ndef read_lines(path):\n"]
SPECULATIONS = {
    "plain": None,
    "dyspec": SpeculationConfig(method="dyspec", adaptive=False, max_nodes=24),
    "ngram": SpeculationConfig(method="ngram", adaptive=False, max_nodes=12, min_ngram=1),
}
NUM_STEPS = 8


@pytest.fixture(params=SPECULATIONS)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """An engine of the bundled pair whose three requests decode, its graphs captured."""
    settings: dict[str, Any] = {"device": "cuda"}
    if IS_DRY_RUN:
        use_host_kernels(monkeypatch)
        settings = {"backend": "triton", "dtype": "float32"}
    engine = Engine("python-completion", speculation=SPECULATIONS[request.param], **settings)
    for i, prompt in enumerate(PROMPTS):
        engine.add_request(f"r{i}", prompt, sampling(i))
    for _ in range(4):
        engine.step()
    return engine


def sampling(seed: int) -> SamplingParams:
    return SamplingParams(max_tokens=500, temperature=0.8, seed=seed, ignore_eos=True)


def recorded(log: list[str], monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
    """Notes every call of a method."""
    method: Callable[..., Any] = getattr(owner, name)

    def noted(*args: Any) -> Any:
        log.append(name)
        return method(*args)

    monkeypatch.setattr(owner, name, noted)


def test_a_step_is_started_before_the_last_one_is_read(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    recorded(log, monkeypatch, StagedProgram, "start")
    recorded(log, monkeypatch, ResultsRing, "wait")
    for _ in range(NUM_STEPS):
        engine.step()
        assert engine.iteration.workspace.memory.num_under_way == 1
    assert log == ["start", "wait"] * NUM_STEPS


@needs_a_device
def test_nothing_synchronises_between_steps(engine: Engine) -> None:
    """torch raises for whatever of its own would wait for the whole stream."""
    for _ in range(2 * NUM_STEPS):
        engine.step()  # captures what is still to be captured
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(NUM_STEPS):
            assert len(engine.step()) == len(PROMPTS)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_a_device
def test_a_profile_shows_one_event_waited_for_in_a_step(engine: Engine) -> None:
    for _ in range(2 * NUM_STEPS):
        engine.step()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(NUM_STEPS):
            engine.step()
    calls = [event.name for event in profile.events()]
    assert calls.count("cudaGraphLaunch") == NUM_STEPS
    assert calls.count("cudaEventSynchronize") == NUM_STEPS
    # The profiler itself waits once, when it stops.
    assert calls.count("cudaDeviceSynchronize") <= 1 and "cudaStreamSynchronize" not in calls


@needs_a_device
def test_tokens_are_those_of_a_host_that_reads_every_step_first(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is written too early or read too early would show in some of these steps."""
    seen: list[dict[str, list[int]]] = []
    for can_run_ahead in (True, False):
        for i in range(len(PROMPTS)):
            engine.abort_request(f"r{i}")
        for i, prompt in enumerate(PROMPTS):
            engine.add_request(f"r{i}", prompt, sampling(i))
        if not can_run_ahead:
            monkeypatch.setattr(Runner, "can_follow", lambda *_: False)
        tokens: dict[str, list[int]] = {}
        while any(len(tokens.get(f"r{i}", ())) < 200 for i in range(len(PROMPTS))):
            for output in engine.step():
                tokens[output.request_id] = list(output.outputs[0].token_ids)
        seen.append({name: ids[:200] for name, ids in tokens.items()})
    assert seen[0] == seen[1]
