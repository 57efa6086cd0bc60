"""Engines over tiny random checkpoints; every test ends with the KV blocks counted."""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sdengine.core.outputs import RequestOutput
from sdengine.core.request import completion_seed
from sdengine.core.sampling_params import SamplingParams
from sdengine.engine import Engine
from sdengine.llm import LLM
from tests.model.checkpoints import make_checkpoint, scratch_dir
from tests.model.tokenizer_files import make_tokenizer_dir

MakeEngine = Callable[..., Engine]
MakeLLM = Callable[..., LLM]
ANY_TIME_S = 600.0


def related_draft(seed: int = 0) -> str:
    """A draft that often agrees with target `seed`: the same model, its last layer left out."""
    return str(make_checkpoint(seed=seed, num_hidden_layers=2))


@functools.cache
def text_checkpoint(
    num_layers: int = 3, family: str = "llama", vocab_size: int = 430, **settings: str
) -> str:
    """A random model with a byte-level tokenizer of 423; with 2 layers a draft for one with 3.

    Args:
        num_layers: of the model.
        family: of tests.model.checkpoints.
        vocab_size: rows of its embedding.
        settings: further keys of tokenizer_config.json.
    """
    tokenizer = make_tokenizer_dir("byte_level", **settings)
    source = make_checkpoint(
        family, vocab_size=vocab_size, num_hidden_layers=num_layers, bos_token_id=0, eos_token_id=1
    )
    directory = Path(tempfile.mkdtemp(dir=scratch_dir()))
    for file in (*source.iterdir(), *tokenizer.iterdir()):
        shutil.copy(file, directory)
    return str(directory)


def tiny(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a small engine, overridden by `settings`."""
    return {
        "block_size": 8,
        "max_num_seqs": 3,
        "max_num_batched_tokens": 32,
        "num_threads": 1,
        "dtype": "float32",
        "speculation": None,
        **settings,
    }


def tiny_engine(target: str | None = None, draft: str | None = None, **settings: Any) -> Engine:
    """An engine of a tiny random target."""
    return Engine(target or str(make_checkpoint()), draft=draft, **tiny(settings))


def assert_nothing_left(engine: Engine) -> None:
    """Of an engine whose requests are done."""
    assert not engine.has_unfinished_requests(), "the test left requests behind"
    assert engine.num_free_blocks == engine.num_blocks, "KV blocks leaked"
    assert len(engine._book) == 0, "finished requests are still remembered"


@pytest.fixture
def engines() -> Iterator[list[Engine]]:
    """Engines of a test; afterwards asserts that none of them lost a block or kept a request."""
    made: list[Engine] = []
    yield made
    for engine in made:
        assert_nothing_left(engine)


@pytest.fixture
def make_engine(engines: list[Engine]) -> MakeEngine:
    """Builds engines."""

    def make(target: str | None = None, draft: str | None = None, **settings: Any) -> Engine:
        engine = tiny_engine(target, draft, **settings)
        engines.append(engine)
        return engine

    return make


@pytest.fixture
def make_llm(engines: list[Engine]) -> MakeLLM:
    """Builds LLMs over `text_checkpoint`."""

    def make(target: str | None = None, draft: str | None = None, **settings: Any) -> LLM:
        llm = LLM(target or text_checkpoint(), draft, **tiny(settings))
        engines.append(llm.engine)
        return llm

    return make


def signed_seed(seed: int, index: int) -> int:
    """The seed with which a request of one completion is what completion `index` of `seed` is."""
    key = completion_seed(seed, index)
    return key - (1 << 64) if key >= 1 << 63 else key


def seen_groups(engine: Engine) -> list[str | None]:
    """The groups of the requests that the engine gets from now on."""
    groups: list[str | None] = []
    add = engine.add_requests

    def noted(requests: Any, group: str | None = None) -> None:
        requests = list(requests)
        groups.extend([group] * len(requests))
        add(requests, group)

    engine.add_requests = noted  # type: ignore[method-assign]
    return groups


def run_all(
    engine: Engine, prompts: list[list[int]], params: list[SamplingParams]
) -> list[list[int]]:
    """Tokens of each prompt's first completion, in order."""
    return [list(out.outputs[0].token_ids) for out in run_outputs(engine, prompts, params)]


def run_outputs(
    engine: Engine,
    prompts: list[list[int]],
    params: list[SamplingParams],
    max_iterations: int = 1,
    group: str | None = None,
) -> list[RequestOutput]:
    """Final outputs of each prompt (n = 1), in order; so many iterations in a row at most, however
    long they take; waited for together, if they are a group."""
    for i, (prompt, sampling) in enumerate(zip(prompts, params)):
        engine.add_request(f"r{i}", prompt, sampling, group)
    finished: dict[str, RequestOutput] = {}
    while engine.has_unfinished_requests():
        for output in engine.step(max_iterations, ANY_TIME_S):
            if output.finished:
                finished[output.request_id] = output
    return [finished[f"r{i}"] for i in range(len(prompts))]
