"""linear in Triton: within twice plain torch's error, and bits that do not depend on the rows."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

from sdengine.kernels.dense_weight import DenseWeight
from sdengine.kernels.linear import reference
from sdengine.kernels.packed_weight import pack_weight
from sdengine.kernels.programs.program import run_op
from sdengine.kernels.triton import linear, linear_tiles
from sdengine.kernels.triton.launch import INTERPRETER
from tests.kernels.triton.guarded import as_dtype, run_guarded


def make_args(
    rows: int, inputs: int, outputs: int, gated: bool = False, live: int | None = None, **kw: Any
) -> dict[str, Any]:
    return {
        "x": torch.randn(rows, inputs),
        "weight": DenseWeight(torch.randn(outputs, inputs) / inputs**0.5, gated),
        "out": torch.randn(rows, outputs // 2 if gated else outputs),
        "num_rows": torch.tensor([rows if live is None else live], dtype=torch.int32),
        "activation": "silu_gate" if gated else None,
        **kw,
    }


def run(args: dict[str, Any]) -> torch.Tensor:
    return run_guarded("linear", args, scratch=("scratch",))["out"]


def assert_close(args: dict[str, Any]) -> None:
    """Against the reference in float64 (whose weight is the one thing that `as_dtype` skips)."""
    matrix = args["weight"].matrix.double()
    wide, plain = as_dtype(args, torch.float64), as_dtype(args, torch.float32)
    y = wide["x"] if args.get("rows") is None else wide["x"][args["rows"].long()]
    n = int(args["num_rows"])
    y = torch.nn.functional.linear(y[:n], matrix, wide.get("bias"))
    if args["activation"]:
        gate, up = y.chunk(2, -1)
        y = torch.nn.functional.silu(gate) * up
    wide["out"][:n] = y + wide["out"][:n] if args.get("accumulate") else y
    reference(**plain)
    got = run(args)
    ulp = wide["out"].abs().max() * 2.0**-23
    allowed = 2 * (plain["out"] - wide["out"]).abs().max() + 2 * ulp
    assert (got - wide["out"]).abs().max() <= allowed
    assert torch.equal(got[n:], args["out"][n:])


@pytest.mark.parametrize(
    "rows,inputs,outputs", [(1, 1, 1), (1, 64, 64), (3, 37, 65), (17, 96, 130), (33, 31, 7)]
)
@pytest.mark.parametrize("gated", [False, True])
def test_error_is_at_most_twice_plain_torch(
    rows: int, inputs: int, outputs: int, gated: bool
) -> None:
    assert_close(make_args(rows, inputs, outputs * 2 if gated else outputs, gated))


@pytest.mark.parametrize("gated", [False, True])
def test_bias_and_gathered_rows(gated: bool) -> None:
    args = make_args(5, 40, 70, gated, bias=torch.randn(70))
    assert_close({**args, "rows": torch.tensor([4, 0, 4, 2, 1], dtype=torch.int32)})


def test_accumulates_and_leaves_rows_past_num_rows() -> None:
    assert_close(make_args(19, 40, 70, live=17, accumulate=True))
    assert_close(make_args(3, 40, 70, live=0))


@pytest.mark.parametrize("gated", [False, True])
def test_a_row_has_the_same_bits_in_any_company(gated: bool) -> None:
    args = make_args(33, 100, 70, gated)
    together = run(args)
    for rows in ([0], [31], [5, 32, 1], list(range(32, -1, -1))):
        chosen = {**args, "x": args["x"][rows], "out": args["out"][rows]}
        chosen["num_rows"] = torch.tensor([len(rows)], dtype=torch.int32)
        assert torch.equal(run(chosen), together[rows])


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """K of every weight is cut into three parts, the last of which is the shortest."""
    monkeypatch.setattr(linear_tiles, "SPLITS", {80: (linear_tiles.Split(1 << 20, 1, 3),)})
    monkeypatch.setattr(linear_tiles, "PART_STEP", 32)


def counters() -> torch.Tensor:
    return torch.zeros(64, dtype=torch.int32)


def is_apart(args: dict[str, Any]) -> bool:
    """Whether parts have programs of their own."""
    (launch,) = linear.launches(INTERPRETER, **args)
    return launch.arguments["parts"] is not None


@pytest.mark.parametrize("inputs", [31, 161])
@pytest.mark.parametrize("live", [0, 17])
def test_parts_of_k_are_within_the_error_side_by_side_and_one_after_another(
    in_parts: None, inputs: int, live: int
) -> None:
    args = make_args(17, inputs, 70, live=live, bias=torch.randn(70), accumulate=True)
    args["rows"] = torch.randint(0, 17, (17,), dtype=torch.int32)
    apart = {**args, "scratch": torch.full((3 * 32 * 70,), float("nan")), "counters": counters()}
    assert (is_apart(args), is_apart(apart)) == (False, True)
    for each in (args, apart):
        assert_close(each)
    assert torch.equal(run(args), run(apart)), "the bits depend on the scratch"


def test_a_row_has_the_same_bits_in_any_company_in_parts(
    in_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to 16 rows have a program per part here, more have one for all."""
    monkeypatch.setattr(linear_tiles, "MAX_PART_ROWS", 16)
    args = make_args(33, 100, 70)
    args |= {"scratch": torch.empty(3 * 48 * 70), "counters": counters()}
    assert not is_apart(args)
    together = run(args)
    for rows in ([0], [31], [5, 32, 1], list(range(32, 16, -1))):
        chosen = {**args, "x": args["x"][rows], "out": args["out"][rows]}
        chosen["num_rows"] = torch.tensor([len(rows)], dtype=torch.int32)
        assert is_apart(chosen)
        assert torch.equal(run(chosen), together[rows])


def test_parts_are_added_in_order(in_parts: None) -> None:
    """Each is summed up for itself: 2^24 + 1 is 2^24, so the order shows."""
    args = make_args(1, 96, 1)
    args["x"].zero_()
    args["x"][0, [0, 32, 64]] = torch.tensor([2.0**24, 1.0, -(2.0**24)])
    args["weight"].matrix.fill_(1.0)
    for scratch in (None, torch.empty(3 * 16)):
        assert run({**args, "scratch": scratch, "counters": counters()}).tolist() == [[0.0]]
    args["x"][0, [32, 64]] = torch.tensor([-(2.0**24), 1.0])
    assert run(args).tolist() == [[1.0]]


def test_the_table_goes_by_shape_and_gates_are_not_cut(in_parts: None) -> None:
    room = {"scratch": torch.empty(3 * 16 * 70), "counters": counters()}
    assert is_apart({**make_args(3, 96, 70), **room})
    assert not is_apart({**make_args(3, 96, 140, gated=True), **room})
    short = {**room, "scratch": torch.empty(3 * 16 * 70 - 1)}
    assert not is_apart({**make_args(3, 96, 70), **short}), "there is no room for the parts"
    few = {**room, "counters": torch.zeros(1, dtype=torch.int32)}
    assert not is_apart({**make_args(3, 96, 70), **few}), "there are two tiles"


@pytest.mark.parametrize(
    "arch,features,inputs,parts",
    [
        (90, 4096, 4096, 4),
        (90, 3072, 2048, 4),
        (90, 4096, 2048, 1),
        (80, 3072, 2048, 1),
        (90, 4096, 14336, 4),
        (90, 6144, 4096, 2),
        (90, 128256, 4096, 1),
        (90, 2048, 2048, 4),
        (80, 4096, 14336, 2),
        (103, 4096, 14336, 1),
        (90, 256, 256, 1),
    ],
)
def test_shapes_of_models(arch: int, features: int, inputs: int, parts: int) -> None:
    assert linear_tiles.num_parts(arch, features, inputs) == parts


@pytest.mark.parametrize("arch", linear_tiles.NARROW_CONFIGS)
@pytest.mark.parametrize("x_bytes", [2, 4])
def test_tiles_fit_into_shared_memory(arch: int, x_bytes: int) -> None:
    """Whatever the rows are; an operand that is not as wide as its product takes twice as much."""
    limit = linear_tiles.SHARED_BYTES[arch]
    cases = product((1, 17, 32, 33, 64, 65, 96, 129, 160, 192, 512), (1, 2), (2048, 14336, 128256))
    for capacity, weights, features in cases:
        configs = linear_tiles.configs_of(arch, False, is_gated=weights == 2)
        rows, tail = linear_tiles.tiling(capacity, configs[-1].max_rows)
        for parts in (1, 4):
            config = linear_tiles.config_of(configs, rows + tail, features, parts)
            stages = linear_tiles.num_stages(config, rows + tail, x_bytes, weights, arch)
            operands = 2 * weights * config.features + x_bytes * (rows + tail)
            assert stages >= 2 and stages * config.inputs * operands <= limit
        assert rows + tail >= min(capacity, configs[-1].max_rows)


@pytest.mark.parametrize(
    "capacity,rows,tail",
    [
        (1, 16, 0),
        (64, 64, 0),
        (80, 64, 16),
        (96, 64, 32),
        (112, 128, 0),
        (144, 128, 16),
        (192, 128, 0),
        (512, 128, 0),
    ],
)
def test_the_root_of_a_tree_does_not_double_its_product(
    capacity: int, rows: int, tail: int
) -> None:
    assert linear_tiles.tiling(capacity, 128) == (rows, tail)


def test_a_tail_has_the_bits_of_other_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_tiles, "F32_CONFIGS", (linear_tiles.Config(128, 0, 64, 32, 4, 2),))
    args = make_args(80, 40, 70, bias=torch.randn(70), accumulate=True, live=70)
    (launch,) = linear.launches(INTERPRETER, **args)
    assert launch.constants["TAIL"] == 16
    assert_close(args)
    together = run(args)
    few = {**args, "x": args["x"][64:70], "out": args["out"][64:70]}
    few["num_rows"] = torch.tensor([6], dtype=torch.int32)
    assert torch.equal(run(few), together[64:70])
    gated = make_args(80, 40, 140, gated=True, live=75)
    assert_close(gated)


def test_a_row_of_nan_stays_alone() -> None:
    args = make_args(9, 40, 70)
    args["x"][4] = float("nan")
    assert run(args).isnan().any(-1).nonzero().tolist() == [[4]]


def test_each_backend_refuses_the_other_ones_layout() -> None:
    args = make_args(1, 8, 8)
    with pytest.raises(ValueError, match="expected a PackedWeight for backend 'cpu', got Dense"):
        run_op("linear", "cpu", **args)
    args["weight"] = pack_weight(args["weight"].matrix)
    with pytest.raises(ValueError, match="expected a DenseWeight for backend 'triton', got Packed"):
        run_op("linear", "triton", **args)


def test_rows_that_are_not_normalised_yet_are_refused() -> None:
    args = {**make_args(1, 8, 8), "norm": torch.ones(8), "eps": 1e-5}
    with pytest.raises(ValueError, match=r"norm: expected None for backend 'triton'.*rms_norm"):
        run(args)


def test_a_gate_without_its_activation_is_refused() -> None:
    args = {**make_args(1, 8, 8, gated=True), "activation": None}
    with pytest.raises(ValueError, match="got None for a dense weight with is_gate_up=True"):
        run(args)


def test_the_interpreter_refuses_bfloat16() -> None:
    args = make_args(1, 8, 8)
    args["weight"] = DenseWeight(args["weight"].matrix.bfloat16())
    with pytest.raises(ValueError, match=r"expected float32 or float16 operands, got torch\.bf"):
        linear.launches(INTERPRETER, **args)
