"""A few seconds of the load test: many clients, many of them rude; every text is the right one."""

from __future__ import annotations

import pytest

from benchmarks.load_clients import Case, Mix, Tally, run_clients
from sdengine.core.sampling_params import SamplingParams
from sdengine.llm import LLM
from tests.engine.conftest import text_checkpoint, tiny
from tests.server.conftest import CHAT_TEMPLATE, MODEL, RunningServer, running, tiny_engine

NUM_CLIENTS = 24
MIX = Mix(cancelled=0.2, dropped=0.15, malformed=0.2)


def make_cases() -> list[Case]:
    llm = LLM(text_checkpoint(chat_template=CHAT_TEMPLATE), **tiny({}))
    prompts = ["def f(x):", "x = ", "import os\n", "class A(B):\n    pass\n" * 3]
    cases = []
    for seed in range(16):
        sampling = {"max_tokens": 20 + seed, "temperature": 0.3 * (seed % 4), "seed": seed}
        prompt, params = prompts[seed % 4], SamplingParams(**sampling, ignore_eos=True)
        body = {"model": MODEL, "prompt": prompt, "ignore_eos": True, **sampling}
        cases.append(Case(body, llm.generate(prompt, params)[0].outputs[0].text))
    return cases


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return make_cases()


def run(server: RunningServer, cases: list[Case], seconds: float) -> Tally:
    return run_clients(server.url, cases, NUM_CLIENTS, seconds=seconds, mix=MIX)


def test_no_text_is_wrong_and_no_block_is_lost(cases: list[Case]) -> None:
    # Few blocks, so that sequences are preempted, too.
    with running(tiny_engine(num_kv_blocks=24)) as server:
        tally = run(server, cases, 3.0)
        server.assert_idle()
    assert tally.failures == []
    assert set(tally.kinds) == {"finished", "cancelled", "dropped", "malformed"}


def test_a_wrong_text_would_be_seen(server: RunningServer, cases: list[Case]) -> None:
    wrong = [Case(case.body, case.text + "?") for case in cases[:2]]
    tally = run_clients(server.url, wrong, 2)
    assert len(tally.failures) == 2 and "expected" in tally.failures[0]
    server.assert_idle()
