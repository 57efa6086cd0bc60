"""Costs of large models are kept in a file: measured once, and again when anything is another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.generate_runs import measured_costs
from sdengine import kernels
from sdengine.core.config import SpeculationConfig
from sdengine.core.cost_model import CostModel
from sdengine.runner import cost_file
from sdengine.runner.iteration import Iteration
from tests.engine.conftest import MakeEngine, related_draft

SPECULATION = SpeculationConfig(max_nodes=8)


@pytest.fixture
def measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> list[CostModel]:
    """Every measurement that is made; all models count as large, and none is kept for the user."""
    monkeypatch.setenv("SDENGINE_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
    made: list[CostModel] = []
    measure = cost_file.measure_costs

    def counted(iteration: Iteration) -> CostModel:
        made.append(measure(iteration))
        return made[-1]

    monkeypatch.setattr(cost_file, "measure_costs", counted)
    monkeypatch.setattr(cost_file, "LARGE_MODEL_BYTES", 0)
    return made


@pytest.fixture
def iteration(make_engine: MakeEngine, measured: list[CostModel]) -> Iteration:
    """A pair's, of which nothing has been measured yet as far as `measured` knows."""
    made = make_engine(draft=related_draft(), speculation=SPECULATION).iteration
    measured.clear()
    return made


def test_a_second_start_reads_what_the_first_has_measured(
    iteration: Iteration, measured: list[CostModel], tmp_path: Path
) -> None:
    first = cost_file.known_costs(iteration, tmp_path)
    assert cost_file.known_costs(iteration, tmp_path) == first
    assert measured == [first]


def test_small_models_are_measured_at_every_start(
    iteration: Iteration,
    measured: list[CostModel],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(cost_file, "LARGE_MODEL_BYTES", 1 << 40)
    cost_file.known_costs(iteration, tmp_path)
    cost_file.known_costs(iteration, tmp_path)
    assert len(measured) == 2


def test_another_build_of_the_kernels_is_measured_anew(
    iteration: Iteration,
    measured: list[CostModel],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    package = tmp_path / "kernels"
    package.mkdir()
    library = package / "_cpu.so"
    library.write_bytes(b"a build")
    monkeypatch.setattr(kernels, "__file__", str(package / "__init__.py"))
    cost_file.known_costs(iteration, tmp_path)
    library.write_bytes(b"another build")
    cost_file.known_costs(iteration, tmp_path)
    cost_file.known_costs(iteration, tmp_path)
    assert len(measured) == 2


def test_other_instructions_have_other_costs(
    iteration: Iteration,
    measured: list[CostModel],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    cost_file.known_costs(iteration, tmp_path)
    monkeypatch.setattr(cost_file, "_instruction_set", lambda backend: "another")
    cost_file.known_costs(iteration, tmp_path)
    assert len(measured) == 2


def test_a_file_that_cannot_be_read_is_measured_anew(
    iteration: Iteration, measured: list[CostModel], tmp_path: Path
) -> None:
    (tmp_path / "costs.json").write_text("{")
    first = cost_file.known_costs(iteration, tmp_path)
    assert cost_file.known_costs(iteration, tmp_path) == first
    assert len(measured) == 1


WITHOUT_READING = {"rows": [1], "verify_s": [1.0], "draft_first_s": 0.1, "draft_layer_s": 0.1}


POSSIBLE = {**WITHOUT_READING, "draft_read_s": 0.1}
IMPOSSIBLE = [
    {**POSSIBLE, **damage}
    for damage in (
        {"verify_s": [0.0]},
        {"verify_s": [-1.0]},
        {"verify_s": [float("nan")]},
        {"verify_s": [None]},
        {"verify_s": ["x"]},
        {"verify_s": []},
        {"verify_s": None},
        {"rows": [2]},
        {"rows": [1, 1], "verify_s": [1.0, 1.0]},
        {"rows": [1, 2], "verify_s": [1.0, 0.5]},
        {"draft_layer_s": 1e308},
        {"draft_first_s": -0.1},
        {"draft_read_s": float("nan")},
    )
]


def test_an_entry_that_can_be_true_is_believed() -> None:
    assert cost_file._entry({"key": POSSIBLE}, "key") is not None


@pytest.mark.parametrize("entry", [{}, {"rows": [1]}, WITHOUT_READING, [], 5, *IMPOSSIBLE])
def test_an_entry_of_another_shape_is_measured_anew(
    iteration: Iteration, measured: list[CostModel], tmp_path: Path, entry: object
) -> None:
    key = cost_file._key(iteration)
    (tmp_path / "costs.json").write_text(json.dumps({key: entry, "other": 1}))
    first = cost_file.known_costs(iteration, tmp_path)
    assert cost_file.known_costs(iteration, tmp_path) == first
    assert measured == [first]


def test_benchmarks_keep_them_where_the_environment_says(
    make_engine: MakeEngine,
    measured: list[CostModel],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("SDENGINE_CACHE_DIR", str(tmp_path / "asked"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    engine = make_engine(draft=related_draft(), speculation=SPECULATION)
    assert [path.name for path in tmp_path.iterdir()] == ["asked"]
    measured.clear()
    measured_costs(engine)
    assert not measured and [path.name for path in tmp_path.iterdir()] == ["asked"]
