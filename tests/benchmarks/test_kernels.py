"""The harness of the ops: shapes, caches, baselines, the correctness gate, comparisons."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from benchmarks.gpu.cases import device_args
from benchmarks.gpu.timing import Limits
from benchmarks.gpu.timing import Timing as GraphTiming
from benchmarks.kernels import __main__ as kernels
from benchmarks.kernels import places
from benchmarks.kernels.baselines import baseline
from benchmarks.kernels.harness import Measurement, Timing, WrongResult, check_case, tensors_in
from benchmarks.kernels.places import OnDevice
from benchmarks.kernels.report import compare
from benchmarks.kernels.shapes import cases_of
from benchmarks.shapes import SHAPES, resolve_shape
from sdengine.errors import ConfigError, SdengineError
from sdengine.kernels import tree_attention
from sdengine.kernels.machine_limits import LimitProbe
from sdengine.kernels.packed_weight import pack_weight
from sdengine.kernels.programs.program import make_pool
from sdengine.kernels.registry import OP_NAMES, get_op
from sdengine.kernels.spec import Case
from sdengine.model.registry import resolve_model

TINY = SHAPES["pair-draft"]


@pytest.fixture(autouse=True)
def small_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits from 32 MB: the tests ask for numbers, not for true ones."""
    monkeypatch.setattr(places, "LimitProbe", lambda pool: LimitProbe(pool, 256 << 20))
    monkeypatch.setattr(kernels, "describe_machine", lambda *a, **k: {"commit": "abc"})


def test_a_shape_is_a_name_or_a_config() -> None:
    target = resolve_model("python-completion").target
    assert resolve_shape("pair-target") == resolve_shape(str(target)) == SHAPES["pair-target"]
    assert resolve_shape(str(target / "config.json")) == SHAPES["pair-target"]
    with pytest.raises(ConfigError, match=r"pair-draft.*'70t'"):
        resolve_shape("70t")


@pytest.mark.parametrize("op", [name for name in OP_NAMES if cases_of(name, TINY)])
def test_a_models_cases_pass_the_gate_and_have_a_baseline(op: str) -> None:
    case = next(cases_of(op, TINY)())
    check_case(get_op(op), case, make_pool(1))
    assert case.bytes_moved > 0
    run = baseline("torch", get_op(op), case.args)
    assert run is not None
    run()


@pytest.mark.parametrize("op", ["embed", "linear", "rms_norm", "silu_and_mul", "tree_attention"])
def test_a_baseline_computes_what_the_kernel_does(op: str) -> None:
    case = list(cases_of(op, TINY)())[1]
    get_op(op).reference(**case.args)
    found = baseline("torch", get_op(op), case.args)().float()
    if op == "tree_attention":
        found = found[0].transpose(0, 1).flatten(1)
    scale = case.args["out"].abs().mean()  # outputs of attention are small: no fixed tolerance
    assert (found - case.args["out"]).abs().max() < 0.1 * scale


def test_the_rotation_baseline_writes_the_same_cache() -> None:
    first, second = (list(cases_of("rope_kv_append", TINY)())[1].args for _ in range(2))
    second |= {name: first[name].clone() for name in ("qkv", "cos_sin", "positions", "slots")}
    rotated = baseline("torch", get_op("rope_kv_append"), second)()
    get_op("rope_kv_append").reference(**first)
    heads = first["num_heads"] * first["head_dim"]
    assert torch.allclose(rotated.flatten(1), first["qkv"][:, :heads], atol=1e-5)
    assert torch.allclose(second["kv_cache"].float(), first["kv_cache"].float(), atol=0.02)


def test_a_wrong_kernel_is_not_timed(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    op = get_op("rms_norm")
    wrong = replace(op, reference=lambda **args: args["out"].fill_(3.0))
    with pytest.raises(WrongResult, match="RMS error"):
        check_case(wrong, next(op.bench_cases()), make_pool(1))
    monkeypatch.setattr(kernels, "get_op", lambda name: wrong)
    argv = ["rms_norm", "--num-threads", "1", "--seconds", "0.01", "--case", "N=1 E=256", "--json"]
    assert kernels.main(argv) == 1
    assert json.loads(capsys.readouterr().out)["measurements"] == []


def test_figures_are_written_and_measured_again_by_their_own_command(
    tmp_path: Path, capsys
) -> None:
    argv = ["rms_norm", "ngram_match", "--shape", "pair-draft", "--case", "N=1 E=128"]
    argv += ["--cache", "both", "--threads", "1", "--seconds", "0.01"]
    assert kernels.main([*argv, "--out", str(tmp_path)]) == 0
    document = json.loads((tmp_path / "kernels.json").read_text())
    rows = list(csv.DictReader((tmp_path / "kernels.csv").open()))
    assert [(m["op"], m["cache"]) for m in document["measurements"]] == [
        ("rms_norm", "warm"),
        ("rms_norm", "cold"),
    ]
    assert [row["label"] for row in rows] == ["N=1 E=128"] * 2
    first = document["measurements"][0]
    assert first["baseline_name"] == "torch" and first["percent_of_limit"] > 0
    assert "--case 'N=1 E=128' --cache warm --num-threads 1" in first["command"]
    capsys.readouterr()
    again = first["command"].split(" kernels ")[1]
    assert kernels.main([*__import__("shlex").split(again), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["measurements"]) == 1
    assert kernels.main([*argv, "--compare", str(tmp_path / "kernels.json")]) == 0
    assert capsys.readouterr().out.count("of old") == 2


class CountingWatch:
    """Runs once what it is to time, and says that it took 20 us cold and 10 us warm."""

    def __init__(self) -> None:
        self.runs = 0

    def time(self, run: Any, restore: Any, is_repeatable: bool) -> GraphTiming:
        run()
        restore()
        self.runs += 1
        hot = (10.0, 9.0, 11.0) if is_repeatable else None
        return GraphTiming(20.0, 19.0, 22.0, hot, "graph")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> CountingWatch:
    """--device cuda is Triton's interpreter, on tensors of the CPU."""
    if torch.cuda.is_available():
        pytest.skip("without a GPU the interpreter stands for one")
    watch = CountingWatch()
    limits = Limits(read_gbps=4000.0, copy_gbps=4300.0, bf16_tflops=800.0, launch_us=1.0)
    monkeypatch.setattr(kernels, "choose_placement", lambda config, preferred: None)
    monkeypatch.setattr(
        OnDevice, "open", lambda device, baseline: OnDevice("cpu", baseline, watch, limits)
    )
    return watch


def test_on_a_device_every_backend_of_an_op_is_checked_and_timed(
    device: CountingWatch, capsys
) -> None:
    argv = ["rms_norm", "rope_kv_append", "--shape", "pair-draft", "--device", "cuda", "--json"]
    argv += ["--cache", "both", "--case", "N=1 "]
    assert kernels.main(argv) == 0
    found = json.loads(capsys.readouterr().out)["measurements"]
    assert [(m["op"], m["backend"], m["cache"]) for m in found] == [
        ("rms_norm", "triton", "warm"),
        ("rms_norm", "triton", "cold"),
        ("rope_kv_append", "triton", "cold"),  # rotates in place: no two launches are alike
    ]
    warm, cold, rope = found
    assert (warm["kernel"]["median_us"], cold["kernel"]["median_us"]) == (10.0, 20.0)
    assert warm["kernel"]["p90_us"] == 11.0 and warm["percent_of_limit"] < 0.01
    assert cold["read_gbps"] == 4300.0 and cold["percent_of_limit"] > 0
    assert rope["baseline"]["median_us"] == 20.0 and device.runs == 6
    assert "--device cuda" in warm["command"]


def float32_cases() -> list[tuple[str, Case]]:
    """What the interpreter can multiply."""
    x, weight = torch.randn(2, 64), pack_weight(torch.randn(48, 64))
    args = {"x": x, "weight": weight, "out": torch.empty(2, 48), "activation": None}
    args["num_rows"] = torch.tensor([2], dtype=torch.int32)
    attention = tree_attention.bench_case(2, 70, 4, 2, 64, torch.float32)
    return [("linear", Case("N=2", args, 48 * 64 * 4)), ("tree_attention", attention)]


def test_kernels_that_cannot_run_are_left_out_with_their_reason(
    device: CountingWatch, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    reason = "backend 'cuda': the compiled library is missing"
    monkeypatch.setattr(places, "why_unavailable", lambda name: reason if name == "cuda" else None)
    argv = ["timestamp", "rms_norm", "--device", "cuda", "--cache", "cold", "--case", "N=1 "]
    assert kernels.main([*argv, "--shape", "pair-draft"]) == 0
    out = capsys.readouterr().out
    assert f"left out: {reason}" in out and "triton" in out and "timestamp\n" not in out


@pytest.mark.parametrize("op,case", float32_cases(), ids=["linear", "tree_attention"])
def test_a_device_gets_the_scratch_that_a_cpu_has_no_use_for(
    op: str, case: Case, device: CountingWatch
) -> None:
    place = OnDevice.open("cuda", "torch")
    place.check(get_op(op), "triton", case)
    measured = place.measure(get_op(op), "triton", case, "cold")
    assert measured is not None and measured.baseline is not None and measured.gbps > 0
    assert device_args(op, case.args, "cpu")["scratch"].numel() >= case.args["out"].numel()


def test_a_wrong_kernel_is_not_timed_on_a_device_either(device, monkeypatch, capsys) -> None:
    op = get_op("rms_norm")
    wrong = replace(op, reference=lambda **args: args["out"].fill_(3.0))
    monkeypatch.setattr(kernels, "get_op", lambda name: wrong)
    monkeypatch.setattr("benchmarks.gpu.cases.get_op", lambda name: wrong)
    argv = ["rms_norm", "--shape", "pair-draft", "--device", "cuda", "--case", "N=1 "]
    assert kernels.main(argv) == 1
    assert "WRONG" in capsys.readouterr().out and device.runs == 0


@pytest.mark.parametrize("op", [name for name in OP_NAMES if cases_of(name, TINY)])
def test_baselines_stay_on_the_device_of_their_arguments(op: str) -> None:
    """A tensor of the CPU among those of a device would be refused there."""
    case = next(cases_of(op, TINY)())
    args = device_args(op, case.args, "meta")
    made = []

    class Watcher(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, given: Any = (), kwargs: Any = None):
            result = func(*given, **(kwargs or {}))
            made.extend(t for t in tensors_in([result]) if not t.is_meta)
            return result

    with Watcher():
        try:
            run = baseline("torch", get_op(op), args)
            assert run is not None
            run()
        except (NotImplementedError, RuntimeError) as error:
            assert "meta" in str(error)  # a value was asked for; up to there all were there
    assert not made


def measurement(median_us: float) -> Measurement:
    timing = Timing(median_us, 0.9 * median_us, 1.1 * median_us)
    return Measurement("op", "cpu", "case", "warm", timing, None, "", 0, 0, 0, 0, 0)


def test_a_difference_counts_only_beyond_the_spread() -> None:
    old = [
        {
            "op": "op",
            "backend": "cpu",
            "label": "case",
            "cache": "warm",
            "kernel": {"median_us": 10.0, "p10_us": 9.0, "p90_us": 11.0},
        }
    ]
    assert compare(old, [measurement(5.0)])[0].endswith("0.50 of old  faster")
    assert compare(old, [measurement(20.0)])[0].endswith("2.00 of old  slower")
    assert compare(old, [measurement(11.0)])[0].endswith("1.10 of old")
    assert compare([], [measurement(11.0)])[0].endswith("new")


@pytest.mark.parametrize(
    "argv",
    [
        ["magic"],
        ["--threads", "0"],
        ["--num-threads", "99999"],
        ["--case", "nosuch", "begin_step", "timestamp"],
        ["--seconds", "0"],
        ["--seconds", "nan"],
        ["--seconds", "-1"],
        ["--compare", "no/such.json"],
        ["--out", "README.md/figures"],
    ],
)
def test_wrong_arguments_exit_2_on_one_line(
    argv: list[str], monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    measured = []
    monkeypatch.setattr(places, "make_pool", lambda threads: measured.append(threads))
    monkeypatch.setattr(torch, "set_num_threads", measured.append)
    assert kernels.main(argv) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("sdengine: expected ") and err.count("\n") == 1
    assert not measured


def test_a_case_that_no_op_has_is_refused_with_the_names_that_there_are(capfd) -> None:
    assert kernels.main(["rms_norm", "timestamp", "--num-threads", "1", "--case", "nosuch"]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1
    assert "got 'nosuch'; the names are N=1 E=" in err


def test_threads_have_the_name_that_they_have_elsewhere_and_an_older_one() -> None:
    for name in ("--num-threads", "--threads"):
        assert kernels.build_parser().parse_args([name, "3"]).threads == 3


@pytest.mark.parametrize("options,expected", [([], 3), (["--num-threads", "2"], 2)])
def test_threads_are_those_of_an_engine(
    options: list[str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(args: object) -> None:
        raise SdengineError("before anything is measured")

    seen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    monkeypatch.setattr(kernels, "open_place", stop)
    monkeypatch.setenv("SDENGINE_NUM_THREADS", "3")
    assert kernels.main(["rms_norm", *options]) == 2
    assert seen == [expected]
