"""The conditions that every figure has beside it, on a CPU and on a GPU."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from benchmarks import generate, generate_plots, probe, results
from benchmarks.conditions import describe_machine
from benchmarks.generate_runs import open_engine
from benchmarks.gpu import machine, timing
from benchmarks.memory_meter import memory_meter
from sdengine import engine


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A machine whose second GPU can be asked for its name, limits and memory."""
    asked: list[str] = []
    lent = iter([100_000_000, 350_000_000])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU of {device}")
    monkeypatch.setattr(torch.cuda, "device", lambda device: asked.append(device) or nullcontext())
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", asked.append)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: next(lent))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: next(lent))
    monkeypatch.setattr(machine, "clocks", lambda: {"driver_version": "999.1"})
    limits = timing.Limits(4000.0, 4400.0, 700.0, 1.25)
    monkeypatch.setattr(timing, "measure_limits", lambda: limits)
    return asked


def test_a_gpu_is_described_by_itself_and_its_limits(gpu: list[str]) -> None:
    found = describe_machine("bench", None, with_limits=True, device="cuda:1")
    assert (found["device"], found["driver"]) == ("GPU of cuda:1", "999.1")
    assert found["machine limits"] == (
        "memory 4400 GB/s, bf16 700 TFLOP/s, a launch in a graph 1.25 us"
    )
    assert gpu == ["cuda:1"] and not {"instruction set", "threads"} & set(found)
    on_cpu = describe_machine("bench", 3, with_limits=False, device="auto")
    assert on_cpu["threads"] == 3 and not {"device", "driver", "machine limits"} & set(on_cpu)


def test_plots_and_pages_say_on_which_gpu(
    gpu: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    conditions = describe_machine("bench", None, with_limits=True, device="cuda")
    conditions |= {"model": "m", "dtype": "auto", "verifier": "coupled"}
    text = generate_plots.short_conditions(conditions)
    assert text.startswith("GPU of cuda, driver 999.1, commit ") and "4400 GB/s" in text
    assert results.machine_name("cuda:1") == "gpu-of-cuda-1-pair"
    ran: list[list[str]] = []
    monkeypatch.setattr(results, "choose_placement", lambda config, preferred: None)
    monkeypatch.setattr(results, "keep", lambda main, argv, path: ran.append(argv))
    monkeypatch.setattr(results, "render", lambda directory: None)
    assert results.main(["--device", "cuda:1", "--out", str(tmp_path / "page")]) == 0
    assert len(ran) == len(results.SLICES)
    assert all("--device cuda:1" in " ".join(argv) for argv in ran)


def test_memory_is_counted_where_the_weights_are(gpu: list[str]) -> None:
    meter = memory_meter("cuda")
    assert gpu == ["cuda"] and meter.peak_mb == 250.0
    assert memory_meter("cpu").peak_mb != 250.0


@pytest.mark.parametrize("benchmark", [generate, probe])
def test_the_engine_gets_the_device_that_was_asked_for(
    benchmark: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: list[dict[str, object]] = []
    monkeypatch.setattr(engine, "Engine", lambda model, **given: settings.append(given))
    parser = benchmark.build_parser()  # type: ignore[attr-defined]
    for words in ([], ["--device", "cuda:1"]):
        args: argparse.Namespace = parser.parse_args(words)
        open_engine(args, None, 1)
    assert [given["device"] for given in settings] == ["auto", "cuda:1"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("benchmark", [generate, probe, results])
def test_a_missing_gpu_is_one_line(benchmark: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--device", "cuda"]) == 2  # type: ignore[attr-defined]
    err = capsys.readouterr().err
    assert "torch finds no CUDA device" in err and len(err.splitlines()) == 1
