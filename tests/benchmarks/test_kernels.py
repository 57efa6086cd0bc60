"""The harness of the ops: shapes, caches, baselines, the correctness gate, comparisons."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.kernels import __main__ as kernels
from benchmarks.kernels.baselines import baseline
from benchmarks.kernels.harness import Measurement, Timing, WrongResult, check_case
from benchmarks.kernels.report import compare
from benchmarks.kernels.shapes import NAMED, cases_of, read_shape
from sdengine.errors import CheckpointError
from sdengine.kernels.machine_limits import LimitProbe
from sdengine.kernels.programs.program import make_pool
from sdengine.kernels.registry import OP_NAMES, get_op
from sdengine.model.registry import resolve_model

TINY = NAMED["pair-draft"]


@pytest.fixture(autouse=True)
def small_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits from 32 MB: the tests ask for numbers, not for true ones."""
    monkeypatch.setattr(kernels, "LimitProbe", lambda pool: LimitProbe(pool, 256 << 20))
    monkeypatch.setattr(kernels, "describe_machine", lambda *a, **k: {"commit": "abc"})


def test_a_shape_is_a_name_or_a_config() -> None:
    target = resolve_model("python-completion").target
    assert read_shape("pair-target") == read_shape(str(target)) == NAMED["pair-target"]
    assert read_shape(str(target / "config.json")) == NAMED["pair-target"]
    with pytest.raises(CheckpointError, match=r"pair-draft.*'70t'"):
        read_shape("70t")


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


def measurement(median_us: float) -> Measurement:
    timing = Timing(median_us, 0.9 * median_us, 1.1 * median_us)
    return Measurement("op", "case", "warm", timing, None, "", 0, 0, 0, 0, 0)


def test_a_difference_counts_only_beyond_the_spread() -> None:
    old = [
        {
            "op": "op",
            "label": "case",
            "cache": "warm",
            "cpu": {"median_us": 10.0, "p10_us": 9.0, "p90_us": 11.0},
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
    monkeypatch.setattr(kernels, "make_pool", lambda threads: measured.append(threads))
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
