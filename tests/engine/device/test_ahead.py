"""The next step is started before the last one is read, and nobody can tell by the tokens.

The kernels are the CPU's on a device that runs nothing before it is waited for (`lagging.py`).
Every output is compared with plain decoding on the CPU as it comes.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from sdengine.async_engine import AsyncEngine
from sdengine.core.config import SpeculationConfig
from sdengine.core.sampling_params import SamplingParams
from sdengine.engine import Engine
from sdengine.llm import LLM
from sdengine.runner.runner import Runner
from sdengine.scheduler.scheduler import Schedule
from tests.engine.conftest import MakeEngine, MakeLLM, run_all, run_outputs, text_checkpoint
from tests.engine.device.conftest import MakePair
from tests.engine.device.lagging import LaggingDevice, lagging_device
from tests.engine.device.test_staged import METHODS, PROMPTS, spec_of
from tests.engine.test_lifecycle import EXTRAS, LONG, NUM_TOKENS, SPECULATIONS, Traffic, make
from tests.engine.test_lifecycle import PROMPTS as SHARED_PROMPTS
from tests.engine.test_random_requests import Draw, check

REJECTING = [name for name in METHODS if "rejection" in name]
SAMPLERS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.8, "max_tokens": 9},
    {"temperature": 1.2, "top_k": 20, "frequency_penalty": 0.5, "logit_bias": {3: 1.0}},
    {"top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2, "min_tokens": 9},
]


@pytest.fixture
def device(on_host: None, monkeypatch: pytest.MonkeyPatch) -> LaggingDevice:
    """The device of every engine of the test on backend "triton"."""
    return lagging_device(monkeypatch)


def run(engine: Engine, **changes: Any) -> list[tuple[list[int], str | None]]:
    """Tokens and end of four requests, which come and go in two or three slots."""
    settings: dict[str, Any] = {"max_tokens": 20, "ignore_eos": True, **changes}
    params = [SamplingParams(**{**settings, "seed": i, **s}) for i, s in enumerate(SAMPLERS)]
    outputs = [output.outputs[0] for output in run_outputs(engine, PROMPTS, params)]
    return [(list(output.token_ids), output.finish_reason) for output in outputs]


# Tokens


def test_a_device_runs_ahead_where_a_cpu_has_iterations_in_a_row(
    make_tiny: MakePair, device: LaggingDevice
) -> None:
    settings = {"speculation": spec_of("dyspec"), "max_num_seqs": 3}
    params = [SamplingParams(max_tokens=20, ignore_eos=True, seed=i) for i in range(len(PROMPTS))]
    expected = run_all(make_tiny("cpu", **settings), PROMPTS, params)
    engine = make_tiny("triton", **settings)
    outputs = run_outputs(engine, PROMPTS, params, max_iterations=8)
    assert [list(output.outputs[0].token_ids) for output in outputs] == expected
    assert device.num_ahead() > 6 and len(engine.last_reports) == 1
    engine._runner._clock.iteration_s = 1e-3
    assert engine._runner.most_in_a_row(Schedule(), 8, 600.0) == 1


@pytest.mark.parametrize("method", [name for name in METHODS if name not in REJECTING])
def test_tokens_are_the_cpu_s(make_tiny: MakePair, device: LaggingDevice, method: str) -> None:
    settings = {"speculation": spec_of(method), "max_num_seqs": 3}
    expected = run(make_tiny("cpu", **settings))
    engine = make_tiny("triton", **settings)
    for _ in range(2):  # the second time with the prefixes cached
        assert run(engine) == expected
    assert device.num_ahead() > 6


@pytest.mark.parametrize("method", REJECTING)
def test_rejection_is_that_of_a_host_that_reads_first(
    make_tiny: MakePair, device: LaggingDevice, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Its text depends on the drafts, to the last bit of the draft model's: not the CPU's."""
    speculation = spec_of(method)
    assert speculation is not None
    speculation = replace(speculation, calibrate=False)  # from tables refreshed a step later
    settings = {"speculation": speculation, "max_num_seqs": 3}
    mine = run(make_tiny("triton", **settings))
    assert device.num_ahead() > 3
    monkeypatch.setattr(Runner, "can_follow", lambda *_: False)
    assert run(make_tiny("triton", **settings)) == mine


def test_adaptive_budgets_change_no_token(make_tiny: MakePair, device: LaggingDevice) -> None:
    expected = run(make_tiny("cpu"), max_tokens=40)
    engine = make_tiny("triton", speculation=SpeculationConfig(max_nodes=12, max_depth=3))
    assert run(engine, max_tokens=40) == expected
    assert device.num_ahead() > 10


@pytest.mark.parametrize("method", ["plain", "dyspec", "ngram"])
def test_preemption_changes_no_token(
    make_tiny: MakePair, device: LaggingDevice, method: str
) -> None:
    settings = {"speculation": spec_of(method), "max_num_seqs": 3}
    expected = run(make_tiny("cpu", **settings))
    engine = make_tiny("triton", num_kv_blocks=10, **settings)
    preempted = []
    preempt = engine._scheduler._preempt

    def counted(sequence: Any, step: Any) -> None:
        assert engine._runner._memory.num_under_way == 0, "a step is under way that knows of it"
        preempted.append(sequence)
        preempt(sequence, step)

    engine._scheduler._preempt = counted
    assert run(engine) == expected
    assert preempted and device.num_ahead() > 0


@pytest.mark.parametrize("seed", [seed for seed in range(20) if seed != 17])
def test_random_requests(make_engine: MakeEngine, device: LaggingDevice, seed: int) -> None:
    """Of a random engine. Products are torch's here, which rounds by the number of rows: so
    logprobs are not compared, no clock says how many rows there are, and seed 17 is left out, where
    two tokens are equally likely, noise included, to five digits."""
    draw = Draw(seed)
    draw.speculation = replace(draw.speculation, adaptive=False)
    draw.shared.update(dtype="float32", backend="triton")
    check(make_engine, draw, has_exact_logprobs=False)


@pytest.mark.parametrize("name", SPECULATIONS)
def test_random_traffic(make_engine: MakeEngine, device: LaggingDevice, name: str) -> None:
    """Requests with n, logprobs and penalties join and are aborted between any two steps."""
    rng = random.Random(name)
    engine = make(make_engine, name, backend="triton", num_kv_blocks=18)
    traffic = Traffic(engine)
    for number in range(300):
        action = rng.random()
        if action < 0.15 and len(traffic.alive) < 6:
            extra = EXTRAS[rng.randrange(len(EXTRAS))]
            prompt, seed = rng.choice(SHARED_PROMPTS), rng.randrange(4)
            max_tokens = rng.choice((1, 7, NUM_TOKENS))
            traffic.add(
                f"r{number}", prompt, seed, n=rng.choice((1, 1, 3)), max_tokens=max_tokens, **extra
            )
        elif action < 0.19 and traffic.alive:
            traffic.abort(rng.choice(sorted(traffic.alive)))
        else:
            traffic.step()
    traffic.finish()
    assert traffic.aborted and sum(traffic.lengths.values()) > 200 and device.num_ahead() > 20


def test_logprobs_are_those_of_the_step_that_is_read(
    make_tiny: MakePair, device: LaggingDevice
) -> None:
    """The next one is under way by then, and has logits of its own."""
    params = [SamplingParams(max_tokens=8, temperature=0, ignore_eos=True, logprobs=2)] * 2
    outputs = [
        run_outputs(make_tiny(backend), PROMPTS[:2], params) for backend in ("cpu", "triton")
    ]
    cpu, mine = ([list(output.outputs[0].logprobs) for output in run] for run in outputs)
    rounded = [
        [[(t, round(e.logprob, 4)) for t, e in step.items()] for run in side for step in run]
        for side in (cpu, mine)
    ]
    assert rounded[0] == rounded[1] and len(rounded[0]) == 16
    assert device.num_ahead() > 4


def test_streams_of_an_async_engine(make_engine: MakeEngine, device: LaggingDevice) -> None:
    """Four are read to their end while a fifth is left in the middle."""
    params = [
        SamplingParams(max_tokens=NUM_TOKENS, temperature=0.8, seed=i, ignore_eos=True)
        for i in range(4)
    ]
    prompts = [list(prompt) for prompt in SHARED_PROMPTS[:4]]
    expected = run_all(make(make_engine, "plain"), prompts, params)

    async def read(engine: AsyncEngine, prompt: list[int], sampling: SamplingParams) -> list[int]:
        async with await engine.submit(prompt, sampling) as stream:
            outputs = [output async for output in stream]
        assert outputs[-1].finished
        return list(outputs[-1].outputs[0].token_ids)

    async def leave(engine: AsyncEngine) -> list[int]:
        endless = SamplingParams(max_tokens=80, temperature=0, ignore_eos=True)
        async with await engine.submit([17], endless) as stream:
            return list((await stream.__aiter__().__anext__()).outputs[0].token_ids)

    async def main() -> list[list[int]]:
        async with AsyncEngine(make(make_engine, "trees", backend="triton")) as engine:
            reads = [read(engine, prompt, s) for prompt, s in zip(prompts, params)]
            return await asyncio.gather(*reads, leave(engine))

    *tokens, left = asyncio.run(main())
    assert tokens == expected and 0 < len(left) < 80
    assert device.num_ahead() > 5


# Ends


def ended_texts(llm: LLM, params: SamplingParams) -> list[tuple[Any, ...]]:
    outputs = llm.generate(["import os", "the quick brown fox", "def f(x):"], params)
    return [(o.outputs[0], o.outputs[0].stop_reason) for o in outputs]


@pytest.mark.parametrize("name", ["plain", "trees"])
def test_stop_strings_and_tokens(make_llm: MakeLLM, device: LaggingDevice, name: str) -> None:
    """The host finds a stop string only after another step was started; the device finds tokens."""
    draft = text_checkpoint(2) if name == "trees" else None
    settings = {"draft": draft, "speculation": SPECULATIONS[name]}
    cpu, mine = make_llm(**settings), make_llm(backend="triton", **settings)
    base = SamplingParams(max_tokens=30, temperature=0.8, seed=3, ignore_eos=True)
    free = [output for output, _ in ended_texts(cpu, base)]
    middle = [output.token_ids[12] for output in free]
    texts = tuple(output.text[10:12] for output in free)
    for change in (
        {"stop": texts},
        {"stop": texts, "include_stop_str_in_output": True, "min_tokens": 9},
        {"stop_token_ids": middle},
        {"stop_token_ids": middle, "min_tokens": 20},
    ):
        params = SamplingParams(
            **{"max_tokens": 30, "temperature": 0.8, "seed": 3, "ignore_eos": True, **change}
        )
        expected = ended_texts(cpu, params)
        assert ended_texts(mine, params) == expected
        masked = "stop_token_ids" in change and "min_tokens" in change
        assert masked or any(output.finish_reason == "stop" for output, _ in expected)
    assert device.num_ahead() > 20


def test_a_prompt_that_ends_in_a_stop_token_goes_on(
    make_tiny: MakePair, device: LaggingDevice
) -> None:
    params = [SamplingParams(max_tokens=6, temperature=0, stop_token_ids=[30], ignore_eos=True)]
    (expected,) = run_outputs(make_tiny("cpu"), [[31, 30, 30]], params)
    (mine,) = run_outputs(make_tiny("triton"), [[31, 30, 30]], params)
    assert mine.outputs == expected.outputs
    assert expected.metrics.num_generated_tokens > 1 and device.num_ahead() > 0


@pytest.mark.parametrize("max_tokens", [1, 2, 7])
def test_no_step_is_started_for_sequences_that_end_for_certain(
    make_tiny: MakePair, device: LaggingDevice, max_tokens: int
) -> None:
    engine = make_tiny("triton")
    params = SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)
    outputs = run_outputs(engine, PROMPTS[:2], [params] * 2)
    assert all(output.outputs[0].finish_reason == "length" for output in outputs)
    assert device.log.count("start") == max_tokens == device.num_ahead() + 1


@pytest.mark.parametrize("method", ["ngram-pool", "dyspec-pool"])
def test_a_limit_of_nodes_holds_where_sequences_end_unseen(
    make_tiny: MakePair, device: LaggingDevice, method: str
) -> None:
    """The rows of a sequence that the step under way ends are not left to more nodes."""
    speculation = spec_of(method)
    assert speculation is not None
    engine = make_tiny("triton", speculation=speculation, max_num_seqs=3)
    for i in range(9):
        params = SamplingParams(max_tokens=9 + 4 * i, temperature=0, ignore_eos=True)
        engine.add_request(f"r{i}", PROMPTS[i % 2], params)
    seen = []
    while engine.has_unfinished_requests():
        engine.step()
        seen.append(engine.last_report.num_nodes)
    assert max(seen) == speculation.max_batch_nodes and device.num_ahead() > 10


# Order


def steady_log(make_tiny: MakePair, device: LaggingDevice, method: str) -> list[str]:
    """What the host does from the second to the eighth step of two decoding sequences."""
    engine = make_tiny("triton", speculation=spec_of(method), max_num_seqs=2)
    for i in range(2):
        params = SamplingParams(max_tokens=40, temperature=0.8, seed=i, ignore_eos=True)
        engine.add_request(f"r{i}", PROMPTS[i], params)
    engine.step()
    device.log.clear()
    for _ in range(6):
        engine.step()
    log = list(device.log)
    for i in range(2):
        engine.abort_request(f"r{i}")
    return log


@pytest.mark.parametrize("method", ["plain", "dyspec", "ngram"])
def test_a_step_is_started_before_the_last_one_is_read(
    make_tiny: MakePair, device: LaggingDevice, method: str
) -> None:
    assert steady_log(make_tiny, device, method) == ["start", "wait"] * 6
    assert device.num_ahead() == 0, "the log begins with a step under way"


def test_the_order_is_seen(
    make_tiny: MakePair, device: LaggingDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that reads every step first does the same in turns; the log would tell it apart."""
    engine = make_tiny("triton")
    params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
    run_outputs(engine, PROMPTS[:1], [params])
    assert device.log[:5] == ["start", "start", "wait", "start", "wait"]
    device.log.clear()
    monkeypatch.setattr(Runner, "can_follow", lambda *_: False)
    run_outputs(engine, PROMPTS[:1], [params])
    assert device.log == ["start", "wait"] * 12 and device.num_ahead() == 0


def test_blocks_are_held_while_a_step_knows_of_them(
    make_tiny: MakePair, device: LaggingDevice
) -> None:
    engine = make_tiny("triton", max_num_seqs=3)
    scheduler = engine._scheduler
    params = SamplingParams(max_tokens=30, temperature=0, ignore_eos=True)
    for i in range(2):
        engine.add_request(f"r{i}", PROMPTS[i], params)
    engine.step()
    before, (first, _) = scheduler.pool.num_free, scheduler.running
    slot, num_blocks = first.slot, len(first.block_table)
    engine.abort_request("r0")
    assert scheduler.pool.num_free == before and slot not in scheduler._free_slots
    assert engine.num_free_blocks == before + num_blocks
    engine.step()
    assert scheduler.pool.num_free >= before + num_blocks - 1 and slot in scheduler._free_slots
    engine.abort_request("r1")
    assert engine.num_free_blocks == engine.num_blocks > scheduler.pool.num_free
    assert engine.step() == []
    assert scheduler.pool.num_free == engine.num_blocks


def test_a_new_request_follows_steps_that_nobody_needs(
    make_engine: MakeEngine, device: LaggingDevice
) -> None:
    traffic = Traffic(make(make_engine, "trees", backend="triton"))
    for i in range(4):
        traffic.add(f"gone{i}", LONG, seed=i)
        for _ in range(2 + i):
            traffic.step()
        traffic.abort(f"gone{i}")
        assert not traffic.engine.has_unfinished_requests()
        traffic.add(f"next{i}", SHARED_PROMPTS[1], seed=i)
        traffic.finish()
    assert device.num_ahead() > 8


def test_closing_waits_for_the_step_that_is_under_way(
    make_engine: MakeEngine, device: LaggingDevice
) -> None:
    traffic = Traffic(make(make_engine, "trees", backend="triton"))
    traffic.add("r", LONG, seed=1)
    for _ in range(3):
        traffic.step()
    before = device.log.count("wait")
    traffic.engine.close()
    assert device.log.count("start") == device.log.count("wait") > before
    assert traffic.engine.num_free_blocks == traffic.engine.num_blocks


# Interruptions


def interrupted_at(when: int, method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, after whose call number `when` somebody presses a key."""
    calls = 0

    def interrupted(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        result = method(*args)
        if calls == when:
            raise KeyboardInterrupt
        return result

    return interrupted


@pytest.mark.parametrize("method", ["start", "land"])
def test_an_interrupted_step_leaves_the_engine_usable(
    make_engine: MakeEngine, device: LaggingDevice, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    traffic = Traffic(make(make_engine, "trees", backend="triton"))
    runner = traffic.engine._runner
    for when in range(1, 7):
        traffic.add("r", SHARED_PROMPTS[3], seed=when)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(runner, method, interrupted_at(when, getattr(runner, method)))
            traffic.finish()
        traffic.abort("r")
        assert traffic.engine.num_free_blocks == traffic.engine.num_blocks
        traffic.add("after", LONG, seed=when)
        traffic.finish()


def test_an_interrupted_start_leaves_the_engine_usable(
    make_tiny: MakePair, device: LaggingDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of enqueueing, between the copies in and the copies out."""
    engine = make_tiny("triton")
    expected = run(engine)
    memory = engine._runner._memory

    def interrupted() -> None:
        raise KeyboardInterrupt

    engine.add_request("r", PROMPTS[0], SamplingParams(max_tokens=20, temperature=0))
    engine.step()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(memory, "pull", interrupted)
        engine.step()
    engine.abort_request("r")
    assert run(engine) == expected
