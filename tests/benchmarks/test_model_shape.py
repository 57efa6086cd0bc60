"""The curve T(M) of a shape: every row count is timed and set against its floor."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import model_shape
from benchmarks.shapes import Shape
from sdengine import SpeculationConfig
from sdengine.engine import Engine

TINY = Shape(64, 96, 2, 4, 2, 16, 128)


class Limits:
    """A machine of 1 GB/s and 1 GFLOP/s, at once."""

    def __init__(self, pool: object) -> None:
        pass

    def dram_gbps(self, repeats: int) -> list[float]:
        return [1.0] * repeats

    def gflops(self, dtype: object, repeats: int) -> list[float]:
        return [1.0] * repeats


def test_the_last_column_names_what_it_is_over() -> None:
    keys = ("median_ms", "median_over_floor", "best_ms", "best_over_floor", "dram_gbps")
    points = [{"rows": rows, "peak_gflops": 1.0, **dict.fromkeys(keys, 1.0)} for rows in (8, 16)]
    assert model_shape.table("tiny", points).splitlines()[1].endswith("T(M)/T(8)")


def test_rows_are_timed_beside_their_floor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_shape, "LimitProbe", Limits)
    model_shape.write_checkpoint(tmp_path, TINY.as_config(), 64)
    speculation = SpeculationConfig(method="ngram", max_nodes=7, adaptive=False)
    engine = Engine(str(tmp_path), max_num_seqs=1, speculation=speculation, num_threads=1)
    points = model_shape.measure(engine, [1, 8], rounds=3)
    assert [point["rows"] for point in points] == [1, 8]
    for point in points:
        floor_ms = 1e3 * engine.iteration.weights.nbytes * point["rows"] / 1e9
        assert point["best_over_floor"] == pytest.approx(point["best_ms"] / floor_ms)
        assert 0 < point["best_ms"] <= point["median_ms"]
