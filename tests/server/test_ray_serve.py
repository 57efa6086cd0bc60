"""Two replicas of the Ray Serve example on loopback: every text is the offline one whichever of
them answers, a client that leaves is noticed, and a stop waits for what was accepted."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType, SimpleNamespace
from typing import Any

import httpx
import pytest

from sdengine.core.sampling_params import SamplingParams
from sdengine.llm import LLM

pytest.importorskip("ray", reason="ray is not installed: pip install '.[ray]'")
from ray import serve

from examples import ray_serve

NAME = "sdengine"
NUM_REPLICAS = 2
PROMPT = "class Queue:\n"
SEEDS = range(6)
SAMPLING = {"max_tokens": 24, "temperature": 0.8, "top_p": 0.95, "top_k": 50}
LONG = {"max_tokens": 900, "n": 8, "ignore_eos": True, "temperature": 0.8}
START_S, STOP_S, ANSWER_S = 240, 120, 60


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Ends what hangs, with a TimeoutError."""

    def give_up(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"expected an end within {seconds} s")

    previous = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def deploy() -> None:
    with at_most(START_S):
        settings = ray_serve.ReplicaSettings(num_replicas=NUM_REPLICAS, num_threads=1)
        serve.run(ray_serve.build(settings), name=NAME)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Ray and Serve, without an application."""
    with at_most(START_S):
        local = ray_serve.local_ray(num_cpus=NUM_REPLICAS)
        address = local.__enter__()
    try:
        yield address
    finally:
        with at_most(STOP_S):
            local.__exit__(None, None, None)


@pytest.fixture(scope="module")
def replicas(url: str) -> Iterator[str]:
    """The address of two replicas."""
    deploy()
    return url


@pytest.fixture(scope="module")
def texts() -> dict[int, str]:
    """What each seed says offline."""
    llm = LLM("python-completion", num_threads=1)
    return {
        seed: llm.generate(PROMPT, SamplingParams(**SAMPLING, seed=seed))[0].outputs[0].text
        for seed in SEEDS
    }


def body(**more: Any) -> dict[str, Any]:
    return {"model": "python-completion", "prompt": PROMPT, **more}


def ask(url: str, seed: int, stream: bool) -> tuple[str, str, int]:
    """The replica that answered, the text, and in how many events it came."""
    request = body(**SAMPLING, seed=seed, stream=stream)
    with httpx.stream("POST", f"{url}/v1/completions", json=request, timeout=ANSWER_S) as response:
        assert response.status_code == 200, response.read()
        replica = response.headers["x-replica"]
        if not stream:
            return replica, json.loads(response.read())["choices"][0]["text"], 1
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert events.pop() == "[DONE]"
    pieces = [json.loads(event)["choices"][0]["text"] for event in events]
    return replica, "".join(pieces), len(pieces)


def gauges(url: str, name: str) -> dict[str, float]:
    """One metric of every replica."""
    found: dict[str, float] = {}
    deadline = time.monotonic() + ANSWER_S
    while len(found) < NUM_REPLICAS and time.monotonic() < deadline:
        response = httpx.get(f"{url}/metrics", timeout=ANSWER_S)
        match = re.search(rf"^{name} (\S+)$", response.text, re.M)
        assert match, response.text
        found[response.headers["x-replica"]] = float(match[1])
    assert len(found) == NUM_REPLICAS
    return found


def test_both_replicas_give_the_offline_text(replicas: str, texts: dict[int, str]) -> None:
    seen: dict[bool, set[str]] = {False: set(), True: set()}
    deadline = time.monotonic() + ANSWER_S
    cases = [(seed, stream) for seed in SEEDS for stream in (False, True)]
    with ThreadPoolExecutor(len(cases)) as pool:
        while any(len(names) < NUM_REPLICAS for names in seen.values()):
            assert time.monotonic() < deadline, f"only these answered: {seen}"
            for (seed, stream), (replica, text, num_events) in zip(
                cases, pool.map(lambda case: ask(replicas, *case), cases)
            ):
                assert text == texts[seed]
                assert num_events > 1 or not stream
                seen[stream].add(replica)


def test_errors_pass_through(replicas: str) -> None:
    response = httpx.post(f"{replicas}/v1/completions", json=body(best_of=3), timeout=ANSWER_S)
    assert response.status_code == 400 and "best_of" in response.json()["error"]["message"]
    foreign = httpx.get(f"{replicas}/v1/models", headers={"host": "example.org"}, timeout=ANSWER_S)
    assert foreign.status_code == 421


def test_a_client_that_leaves_cancels_its_request(replicas: str) -> None:
    before = sum(gauges(replicas, "sdengine_sequence_steps_total").values())
    request = body(**LONG, seed=1, stream=True)
    with httpx.stream(
        "POST", f"{replicas}/v1/completions", json=request, timeout=ANSWER_S
    ) as response:
        next(response.iter_lines())
    deadline = time.monotonic() + ANSWER_S
    while any(gauges(replicas, "sdengine_requests_unfinished").values()):
        assert time.monotonic() < deadline
    num_steps = sum(gauges(replicas, "sdengine_sequence_steps_total").values()) - before
    assert 0 < num_steps < LONG["max_tokens"] * LONG["n"] / 4


def test_a_stop_waits_for_what_was_accepted(replicas: str) -> None:
    request = body(**LONG, seed=2, stream=True)
    num_finished, last = 0, ""
    with httpx.stream(
        "POST", f"{replicas}/v1/completions", json=request, timeout=ANSWER_S
    ) as response:
        lines = response.iter_lines()
        next(lines)
        with ThreadPoolExecutor(1) as pool:
            stop = pool.submit(serve.delete, NAME)
            for line in lines:
                num_finished += '"finish_reason":"length"' in line.replace(" ", "")
                last = line or last
            stop.result(STOP_S)
    assert last == "data: [DONE]" and num_finished == LONG["n"]


@pytest.mark.parametrize("failure", [None, ValueError("a kernel broke")])
def test_a_replica_is_well_until_its_engine_fails(failure: Exception | None) -> None:
    engine = SimpleNamespace(status=lambda: SimpleNamespace(failure=failure))
    replica = SimpleNamespace(app=SimpleNamespace(state=SimpleNamespace(engine=engine)))
    check = ray_serve.Replica.check_health(replica)  # type: ignore[arg-type]
    if failure is None:
        asyncio.run(check)
    else:
        with pytest.raises(RuntimeError, match="the engine failed"):
            asyncio.run(check)


def test_the_command_line_sets_replicas_and_their_cores() -> None:
    deployment = ray_serve.build({"num_replicas": "3", "num_threads": "4"})._bound_deployment
    assert deployment.num_replicas == 3
    assert deployment.ray_actor_options["num_cpus"] == 4
    with pytest.raises(ValueError, match="num_thread\n"):
        ray_serve.build({"num_thread": "4"})
