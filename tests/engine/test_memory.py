"""Nothing grows with the number of requests, and an engine that is dropped is gone."""

from __future__ import annotations

import gc
import os
import random
import time
from pathlib import Path

import pytest

from sdengine.core.config import SpeculationConfig
from sdengine.core.sampling_params import SamplingParams
from sdengine.engine import Engine
from sdengine.llm import LLM
from tests.engine.conftest import MakeEngine, MakeLLM, related_draft, text_checkpoint, tiny
from tests.model.checkpoints import make_checkpoint

TREES = SpeculationConfig(max_nodes=8, max_depth=4, adaptive=False)
MIB = 2**20
linux_only = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")


def resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def num_objects() -> int:
    """Objects that the garbage collector knows."""
    gc.collect()
    return len(gc.get_objects())


def soak(llm: LLM, rng: random.Random, num_requests: int) -> None:
    """Calls, streams and aborted streams, with prompts that share beginnings or do not."""
    for _ in range(num_requests // 3):
        prompt = [rng.randrange(3, 400) for _ in range(rng.randrange(1, 60))]
        params = SamplingParams(
            max_tokens=rng.randrange(1, 16),
            n=rng.choice((1, 1, 3)),
            stop=rng.choice((None, "e")),
            logprobs=rng.choice((None, 2)),
        )
        single = SamplingParams(max_tokens=8)
        outputs = llm.generate([prompt, [*prompt, 5]], params)
        assert all(output.finished for output in outputs)
        for delta in llm.stream(prompt[:20], single):
            if len(delta.token_ids) > rng.randrange(12):
                break


@linux_only
def test_three_hundred_requests_leave_nothing_behind(make_llm: MakeLLM) -> None:
    llm = make_llm(draft=text_checkpoint(2), speculation=TREES, num_kv_blocks=40)
    rng = random.Random(0)
    soak(llm, rng, 90)
    objects, resident = num_objects(), resident_bytes()
    soak(llm, rng, 300)
    assert num_objects() - objects < 400  # 40 cached blocks name their tokens
    assert resident_bytes() - resident < 2 * MIB
    pool = llm.engine._scheduler.pool
    assert pool.num_free == pool.num_blocks == 40
    assert len(pool._block_of) == len(pool._key_of) <= 40
    assert not llm._inboxes


@linux_only
def test_a_dropped_engine_frees_its_memory_and_threads(make_engine: MakeEngine) -> None:
    def live() -> None:
        engine = Engine(
            str(make_checkpoint()),
            draft=related_draft(),
            **tiny({"speculation": TREES, "num_threads": 2, "num_kv_blocks": 2000}),
        )
        engine.add_request("r", [5, 6, 7], SamplingParams(max_tokens=8, seed=0))
        while engine.has_unfinished_requests():
            engine.step()
        engine.iteration._cache.tensor.fill_(1.0)  # touches all of its 12 MiB

    for _ in range(2):
        live()
    num_threads, resident = len(os.listdir("/proc/self/task")), resident_bytes()
    for _ in range(8):
        live()
    assert resident_bytes() - resident < 12 * MIB
    deadline = time.monotonic() + 10  # a joined thread is listed until the system buries it
    while len(os.listdir("/proc/self/task")) != num_threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(os.listdir("/proc/self/task")) == num_threads
