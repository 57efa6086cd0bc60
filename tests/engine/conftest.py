"""Engines over tiny random checkpoints; every test ends with the KV blocks counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sdengine.core.outputs import RequestOutput
from sdengine.core.sampling_params import SamplingParams
from sdengine.engine import Engine
from tests.model.checkpoints import make_checkpoint

MakeEngine = Callable[..., Engine]


def related_draft(seed: int = 0) -> str:
    """A draft that often agrees with target `seed`: the same model, its last layer left out."""
    return str(make_checkpoint(seed=seed, num_hidden_layers=2))


@pytest.fixture
def make_engine() -> Iterator[MakeEngine]:
    """Builds engines; afterwards asserts that none of them lost a block."""
    engines: list[Engine] = []

    def make(target: str | None = None, draft: str | None = None, **settings: Any) -> Engine:
        values: dict[str, Any] = {
            "block_size": 8,
            "max_num_seqs": 3,
            "max_num_batched_tokens": 32,
            "num_threads": 1,
            "dtype": "float32",
            "speculation": None,
        }
        engine = Engine(target or str(make_checkpoint()), draft=draft, **{**values, **settings})
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        assert not engine.has_unfinished_requests(), "the test left requests behind"
        assert engine.num_free_blocks == engine.num_blocks, "KV blocks leaked"


def run_all(
    engine: Engine, prompts: list[list[int]], params: list[SamplingParams]
) -> list[list[int]]:
    """Tokens of each prompt's first completion, in order."""
    return [list(out.outputs[0].token_ids) for out in run_outputs(engine, prompts, params)]


def run_outputs(
    engine: Engine, prompts: list[list[int]], params: list[SamplingParams]
) -> list[RequestOutput]:
    """Final outputs of each prompt (n = 1), in order."""
    for i, (prompt, sampling) in enumerate(zip(prompts, params)):
        engine.add_request(f"r{i}", prompt, sampling)
    finished: dict[str, RequestOutput] = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                finished[output.request_id] = output
    return [finished[f"r{i}"] for i in range(len(prompts))]
