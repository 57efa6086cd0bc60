"""Engines of one checkpoint read one copy of its weights, for as long as one of them lives."""

from __future__ import annotations

import gc
import json
import os
import shutil
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

from sdengine.core.config import SpeculationConfig
from sdengine.core.sampling_params import SamplingParams
from sdengine.engine import Engine
from sdengine.errors import CheckpointError
from sdengine.factory import shared_weights
from sdengine.model.checkpoint import Checkpoint
from sdengine.runner.weights import ModelWeights
from tests.engine.conftest import related_draft, run_all, tiny
from tests.model.checkpoints import make_checkpoint

FILE = "model.safetensors"
TREES = SpeculationConfig(max_nodes=8, max_depth=4, adaptive=False)
GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
PROMPTS = [[5, 6, 7, 8]]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A checkpoint that no other test has open."""
    return shutil.copytree(make_checkpoint(), tmp_path / "model")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Directories whose weights were read; no weights of this test outlive it."""
    directories: list[Path] = []
    load = shared_weights.load_weights

    def recorded(checkpoint: Checkpoint, *args: Any) -> ModelWeights:
        directories.append(checkpoint.path)
        return load(checkpoint, *args)

    monkeypatch.setattr(shared_weights, "load_weights", recorded)
    gc.collect()
    before = set(shared_weights._loaded)
    yield directories
    gc.collect()
    assert set(shared_weights._loaded) <= before


def make(target: Path, draft: str | None = None, **settings: Any) -> Engine:
    speculation = TREES if draft is not None else None
    return Engine(str(target), draft=draft, **tiny({"speculation": speculation, **settings}))


def test_the_second_engine_of_a_model_reads_the_weights_of_the_first(
    model: Path, read: list[Path]
) -> None:
    draft = related_draft()
    plain, trees = make(model), make(model, draft, num_threads=2)
    assert plain.iteration.weights is trees.iteration.weights
    assert read == [model, Path(draft)]
    assert run_all(trees, PROMPTS, [GREEDY]) == run_all(plain, PROMPTS, [GREEDY])


def test_a_model_that_drafts_for_itself_is_read_once(model: Path, read: list[Path]) -> None:
    engine = make(model, str(model))
    assert engine.iteration.drafter._weights is engine.iteration.weights
    assert read == [model]


def test_weights_go_with_the_last_engine(model: Path, read: list[Path]) -> None:
    """A draft's with the last engine that has it, though it was packed after the target's."""
    trees, plain = make(model, related_draft()), make(model)
    drafter: Any = trees.iteration.drafter
    target, draft = trees.iteration.weights, drafter._weights
    held = [weakref.ref(x.layers[0].qkv.storage.untyped_storage()) for x in (target, draft)]
    places = [x.layers[0].qkv.storage.untyped_storage().data_ptr() for x in (target, draft)]
    assert places[0] != places[1]
    expected = run_all(plain, PROMPTS, [GREEDY])
    del drafter, target, draft
    trees.close()
    gc.collect()
    assert [ref() is not None for ref in held] == [True, False]
    assert run_all(plain, PROMPTS, [GREEDY]) == expected
    plain.close()
    gc.collect()
    assert held[0]() is None
    make(model)
    assert read.count(model) == 2


@pytest.mark.parametrize(
    "settings",
    [{"dtype": "bfloat16"}, {"max_model_len": 100}, {"draft": "other", "num_threads": 2}],
    ids=str,
)
def test_other_numbers_are_read_anew(
    model: Path, read: list[Path], settings: dict[str, Any]
) -> None:
    """Also for a target of another vocabulary, in which a draft predicts other tokens."""
    if settings.pop("draft", None) is None:
        first, second = make(model), make(model, **settings)
        assert first.iteration.weights is not second.iteration.weights
        assert read == [model, model]
        return
    smaller = make_checkpoint(vocab_size=180)
    first, second = make(model, str(model)), make(smaller, str(model), **settings)
    assert second.iteration.drafter._weights.lm_head.num_outputs == 180
    assert read == [model, smaller, model]
    assert run_all(first, PROMPTS, [GREEDY]) == run_all(make(model), PROMPTS, [GREEDY])


def change_one_number(model: Path, value: float) -> None:
    """Writes the file anew in place: its path, inode and size stay."""
    weights = safetensors.torch.load_file(model / FILE)
    weights = {name: tensor.clone() for name, tensor in weights.items()}
    weights["model.norm.weight"][0] = value
    with (model / FILE).open("r+b") as file:
        file.write(safetensors.torch.save(weights, {"format": "pt"}))


@pytest.mark.parametrize("keeps_time", [False, True])
def test_a_file_that_was_written_anew_is_read_anew(
    model: Path, read: list[Path], keeps_time: bool
) -> None:
    change_one_number(model, 3.0)
    first, stat = make(model), os.stat(model / FILE)
    change_one_number(model, 5.0)
    if keeps_time:  # as a copying program does
        os.utime(model / FILE, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    second = make(model)
    norms = [float(engine.iteration.weights.final_norm[0]) for engine in (first, second)]
    assert norms == [3.0, 5.0]
    now = os.stat(model / FILE)
    assert (now.st_ino, now.st_size) == (stat.st_ino, stat.st_size)


def test_another_file_at_the_same_path_is_read_anew(model: Path, read: list[Path]) -> None:
    first, stat = make(model), os.stat(model / FILE)
    change_one_number(shutil.copytree(model, model.parent / "next"), 5.0)
    os.utime(model.parent / "next" / FILE, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    os.replace(model.parent / "next" / FILE, model / FILE)
    assert float(make(model).iteration.weights.final_norm[0]) == 5.0
    assert first.iteration.weights.final_norm[0] != 5.0


def test_another_config_is_read_anew(model: Path, read: list[Path]) -> None:
    first = make(model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.25}))
    assert make(model).iteration.weights.config.rms_norm_eps == 0.25
    assert first.iteration.weights.config.rms_norm_eps != 0.25


def test_links_lead_to_the_same_weights(model: Path, read: list[Path]) -> None:
    (model.parent / "link").symlink_to(model)
    first, second = make(model), make(model.parent / "link")
    assert first.iteration.weights is second.iteration.weights


def test_what_could_not_be_read_is_tried_again(model: Path, read: list[Path]) -> None:
    change_one_number(model, float("nan"))
    for _ in range(2):
        with pytest.raises(CheckpointError, match="finite numbers"):
            make(model)
    change_one_number(model, 1.0)
    make(model)
    assert len(read) == 3


def test_of_two_that_read_at_once_one_copy_stays(
    model: Path, read: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    both, load = threading.Barrier(2, timeout=60), shared_weights.load_weights

    def meeting(*args: Any) -> ModelWeights:
        both.wait()
        return load(*args)

    monkeypatch.setattr(shared_weights, "load_weights", meeting)
    engines: list[Engine] = []
    threads = [threading.Thread(target=lambda: engines.append(make(model))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read) == len(engines) == 2
    assert engines[0].iteration.weights is engines[1].iteration.weights
