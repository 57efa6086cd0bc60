"""What the GPU suite measures is what it says: trees in both layouts, checks that find mistakes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F

from benchmarks.gpu import attention, attention_tiles, decode, ops, tiles
from benchmarks.gpu.cases import WrongResult, check, device_args, expect_close
from benchmarks.gpu.records import Skip
from benchmarks.gpu.timing import Limits, Timing
from benchmarks.gpu.trees import AttentionCase, ancestors, make_inputs, packed
from benchmarks.gpu.tries import compile_side_by_side
from benchmarks.model_shape import write_checkpoint
from sdengine import SpeculationConfig
from sdengine.engine import Engine
from sdengine.errors import BackendUnavailable, CacheFull
from sdengine.kernels import tree_attention, tree_expand
from sdengine.kernels.registry import get_op
from sdengine.kernels.spec import Case
from sdengine.kernels.triton import linear_tiles
from sdengine.kernels.triton import tree_attention as triton_attention
from sdengine.kernels.triton.launch import Launch

SMALL = AttentionCase(2, 70, 90, heads=4, kv_heads=2, dim=16)


def test_both_layouts_of_a_tree_are_the_same_attention() -> None:
    torch.manual_seed(0)
    inputs = make_inputs(SMALL, "cpu")
    tree_attention.check(**inputs.args)
    tree_attention.reference(**inputs.args)
    wide = (t.float() for t in (inputs.query, inputs.keys, inputs.values))
    expected = F.scaled_dot_product_attention(*wide, inputs.visible[:, None], enable_gqa=True)
    expect_close("attention", inputs.args["out"], attention.as_rows(expected, inputs))
    wrong = inputs.visible.clone()
    wrong[1, 40, SMALL.context + 3] ^= True
    wide = (t.float() for t in (inputs.query, inputs.keys, inputs.values))
    other = F.scaled_dot_product_attention(*wide, wrong[:, None], enable_gqa=True)
    assert not torch.allclose(attention.as_rows(other, inputs), attention.as_rows(expected, inputs))


def test_what_others_cannot_do_is_skipped_and_what_we_cannot_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuses(_: Any) -> Any:
        raise NotImplementedError("no such mask")

    for name in ("FlexAttention", "sdengine"):
        monkeypatch.setitem(attention.CONTESTANTS, name, refuses)
    inputs = make_inputs(SMALL, "cpu")
    with pytest.raises(Skip, match=r"FlexAttention does not run here: .*no such mask"):
        attention.prepared("FlexAttention", inputs)
    with pytest.raises(NotImplementedError):
        attention.prepared("sdengine", inputs)


def test_trees_hold_the_node_its_parent_and_what_its_parent_sees() -> None:
    seen = ancestors(40, torch.Generator().manual_seed(3))
    assert seen.diagonal().all() and not seen.triu(1).any()
    assert 2 < int(seen.sum(1).max()) < 40
    bits = packed(seen, 1)[:, 0]
    assert all(bool(bits[i] >> j & 1) == bool(seen[i, j]) for i in range(40) for j in range(40))


def test_a_wide_tree_uses_the_sign_bit_of_a_word() -> None:
    seen = torch.zeros(70, 70, dtype=torch.bool)
    seen[69, [63, 64]] = True
    assert packed(seen, 2)[69].tolist() == [-(2**63), 1]


def test_traffic_counts_every_key_and_value_once() -> None:
    assert SMALL.cache_bytes == 2 * 160 * 2 * 2 * 16 * 2
    assert SMALL.bytes_moved == SMALL.cache_bytes + 142 * 4 * 16 * 8


def test_wrong_results_are_not_timed() -> None:
    right = torch.randn(1000)
    expect_close("x", right * 1.005, right)
    with pytest.raises(WrongResult, match="x: RMS error"):
        expect_close("x", right * 1.02, right)
    with pytest.raises(WrongResult, match="RMS error"):
        expect_close("x", torch.zeros(1000), right)
    with pytest.raises(WrongResult, match="1 of 3 integers differ"):
        expect_close("x", torch.tensor([1, 2, 4]), torch.tensor([1, 2, 3]))


def rms_case() -> dict[str, Any]:
    return {
        "x": torch.randn(3, 32),
        "weight": torch.randn(32),
        "out": torch.zeros(3, 32),
        "num_rows": torch.tensor([3], dtype=torch.int32),
        "eps": 1e-5,
    }


def test_a_kernel_is_checked_against_its_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("the suite itself does this on the device")
    check("rms_norm", "triton", rms_case(), "cpu")
    from sdengine.kernels.triton import rms_norm

    plan = rms_norm.launches
    wrong = lambda arch, **args: plan(arch, **{**args, "weight": args["weight"] * 1.1})  # noqa: E731
    monkeypatch.setattr(rms_norm, "launches", wrong)
    with pytest.raises(WrongResult, match="rms_norm out: RMS error"):
        check("rms_norm", "triton", rms_case(), "cpu")


def test_arguments_reach_the_device_with_their_scratch() -> None:
    case = next(iter(ops.cases_of("tree_expand")))
    moved = device_args("tree_expand", case.args, "meta")
    assert moved["tree"].tokens.is_meta and moved["rows"].tokens.is_meta
    walk = list(ops.large_cases("tree_verify"))
    assert walk[0].label == "coupled B=32 depth=8 drawn from V=128256"
    assert device_args("tree_verify", walk[0].args, "meta")["scratch"].is_meta


@pytest.mark.parametrize("op", ["tree_expand", "kv_compact"])
def test_cases_of_a_served_model_keep_the_contract(op: str, monkeypatch: Any) -> None:
    if op == "kv_compact":  # 2 GB that nobody reads here
        zeros = torch.zeros
        monkeypatch.setattr(torch, "zeros", lambda *s, **kw: zeros(*s, **{**kw, "device": "meta"}))
    cases: list[Case] = list(ops.large_cases(op))
    assert cases
    for case in cases:
        get_op(op).check(**case.args)


def test_times_stand_beside_their_floor() -> None:
    limits = Limits(read_gbps=4000.0, copy_gbps=4300.0, bf16_tflops=800.0, launch_us=1.0)
    assert limits.floor_us(43_000_000) == pytest.approx(10.0)
    assert limits.floor_us(1, 16_000_000_000) == pytest.approx(20.0)
    timing = Timing(20.0, 19.0, 22.0, (18.0, 17.0, 19.0), "graph")
    assert limits.beside(timing, 43_000_000) == {
        "floor us": 10.0,
        "GB/s": 2150.0,
        "% of floor": 50.0,
    }
    assert timing.values("own ") == {
        "own us": 20.0,
        "own p10": 19.0,
        "own p90": 22.0,
        "own hot us": 18.0,
    }
    assert "timed by" in Timing(1.0, 1.0, 1.0, None, "events (ValueError)").values()


def test_an_engine_that_does_not_run_here_is_a_failure_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    model = decode.Model(decode.SHAPES["8b"])
    monkeypatch.setattr(model, "folder", lambda: pytest.fail("a checkpoint would be written"))
    with pytest.raises(BackendUnavailable):
        model.plain()


def test_a_model_that_does_not_fit_is_skipped_with_its_sizes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def engine(model: str, **_: Any) -> None:
        if model != decode.BUNDLED:
            raise CacheFull("expected 80 GiB, got 90 GiB")

    model = decode.Model(decode.SHAPES["8b"])
    monkeypatch.setattr(model, "folder", lambda: tmp_path)
    monkeypatch.setattr(decode, "Engine", engine)
    with pytest.raises(Skip, match="does not fit here: expected 80 GiB"):
        model.plain()


def test_rows_that_share_a_root_are_compared_but_for_what_they_note_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wide, narrow = tree_expand.bench_case(1, 64, 8, 8), tree_expand.bench_case(2, 64, 1, 8)
    op = get_op("tree_expand")

    def kernel(**args: Any) -> None:  # another row of the root comes last
        op.reference(**args)
        args["tree"].proposal_rows[:, 0] = 0

    monkeypatch.setitem(cast(dict[str, Any], op.backends), "cuda", kernel)
    check("tree_expand", "cuda", wide.args, "cpu")
    with pytest.raises(WrongResult, match="tree_expand tree_proposal_rows: 1 of"):
        check("tree_expand", "cuda", narrow.args, "cpu")


TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
}


class ModelOnCpu(decode.Model):
    """A tiny model on the CPU: the same engine, the same steps."""

    def __init__(self, folder: Path) -> None:
        super().__init__(TINY)
        write_checkpoint(folder, TINY, 256)
        self._folder = folder

    def make(
        self,
        speculation: SpeculationConfig | None,
        draft: decode.Model | None = None,
        **settings: int,
    ) -> Engine:
        settings = {"max_num_seqs": 1, **settings}
        path = None if draft is None else str(draft.folder())
        model = str(self._folder)
        return Engine(model, draft=path, speculation=speculation, num_threads=1, **settings)


def test_steps_of_a_model_are_timed_beside_their_floor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"CONTEXT": 40, "STEPS": 5, "NODES": (1, 7), "PROMPT": 30}.items():
        monkeypatch.setattr(decode, name, value)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    model = ModelOnCpu(tmp_path)
    limits = Limits(100.0, 100.0, 1.0, 1.0)
    values = decode.plain_steps(model, limits)
    layer = 64 * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 96
    assert values["weights GB"] == round(2 * (2 * layer + 128 * 64) / 1e9, 3)
    assert values["step ms"] > 0 and 0 < values["% of floor"] < 100
    prompts = decode.prompts(model, limits)
    assert prompts["products ms"] == round(2e-9 * 30 * 2 * layer, 2)
    assert prompts["tokens/s"] > 0 and prompts["% of peak"] >= 0
    steps = decode.tree_steps(model)
    assert set(steps) == {"plain ms"} | {
        f"{nodes} nodes {unit}" for nodes in (1, 7) for unit in ("ms", "/ plain")
    }


def test_plain_steps_of_a_roomy_engine_stand_beside_the_same_floor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"CONTEXT": 40, "STEPS": 5}.items():
        monkeypatch.setattr(decode, name, value)
    made: list[dict[str, int]] = []
    make = ModelOnCpu.make

    def noted(model: ModelOnCpu, *args: Any, **settings: int) -> Engine:
        made.append(dict(settings))
        return make(model, *args, **{**settings, "max_model_len": 256})

    monkeypatch.setattr(ModelOnCpu, "make", noted)
    model, limits = ModelOnCpu(tmp_path), Limits(100.0, 100.0, 1.0, 1.0)
    floors = [
        steps(model, limits)["floor ms"] for steps in (decode.plain_steps, decode.roomy_steps)
    ]
    assert made == [{}, {"max_num_seqs": 8, "max_model_len": 131072}] and floors[0] == floors[1]


def test_steps_that_draft_are_timed_by_their_plans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "CONTEXT", 40)
    monkeypatch.setattr(decode, "PLANS", ((2, 2), (8, 64)))
    monkeypatch.setattr(decode, "PLAN_STEPS", 3)
    monkeypatch.setattr(decode, "PLAN_ROUNDS", 2)
    for name in ("target", "draft"):
        (tmp_path / name).mkdir()
    model, draft = ModelOnCpu(tmp_path / "target"), ModelOnCpu(tmp_path / "draft")
    values = decode.drafting_steps(model, draft)
    assert list(values)[::3] == ["2 layers, 2 nodes: step ms", "8 layers, 64 nodes: step ms"]
    assert len(values) == 6 and min(values.values()) > 0
    assert values["8 layers, 64 nodes: draft ms"] > values["2 layers, 2 nodes: draft ms"]


def test_skipped_layers_are_timed_beside_launched_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def engine_on_cpu(model: str, **settings: Any) -> Engine:
        nodes = settings["speculation"].max_nodes
        asked.append((settings.pop("device"), settings.pop("conditional_graphs"), nodes))
        return Engine(model, num_threads=1, **settings)

    monkeypatch.setattr(decode, "Engine", engine_on_cpu)
    monkeypatch.setattr(decode, "ROUNDS", 2)
    values = decode.branched_steps(6)
    assert asked == [("cuda", False, 6), ("cuda", True, 6)]
    assert set(values) == {"launched ms", "skipped ms", "skipped / launched"}
    assert min(values.values()) > 0


def test_gaps_of_a_profile() -> None:
    assert decode.busy_share([(0.0, 4.0), (1.0, 3.0), (6.0, 10.0)]) == pytest.approx(0.8)
    assert decode.busy_share([(5.0, 10.0), (0.0, 6.0)]) == 1.0


def test_a_checkpoint_goes_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 14e9 < decode.checkpoint_bytes(decode.SHAPES["8b"]) < 20e9
    with pytest.raises(Skip, match="no room for a checkpoint of 1000000000 GB"):
        decode.roomiest(10**18)
    assert decode.roomiest(1).is_dir()


@pytest.mark.parametrize(
    "job,args,said", [(int, ["x", "1"], "ValueError"), (os._exit, [1], "Broken")]
)
def test_what_cannot_be_compiled_ahead_costs_no_case(
    job: Callable[[Any], None], args: list[Any], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is compiled, and fails, where it is timed."""
    compile_side_by_side(job, args)
    assert said in capfd.readouterr().out


def test_attention_is_tried_with_other_tiles_and_the_table_left_as_it_is() -> None:
    """Nothing is launched here: the time of a plan is made up from its tile."""
    table = triton_attention.NARROW_CONFIGS

    def timer(launches: Sequence[Launch]) -> float:
        first = launches[0]
        if first.constants["ROWS"] == 16:
            raise RuntimeError("out of resource: shared memory")
        return len(launches) * first.constants["ROWS"] + first.num_stages + first.num_warps

    case = AttentionCase(1, 15, 70, heads=4, kv_heads=1, dim=64)
    found = attention_tiles.measure(case, 90, timer, "cpu")
    assert (found["best"], found["best us"]) == ("32 x 4 x 2", 70)
    assert (found["64 x 8 x 2"], found["left out"]) == (138, 1)
    assert (found["table us"], found["first kernel us"]) == (135, 71)
    assert triton_attention.NARROW_CONFIGS is table

    def broken(_: Sequence[Launch]) -> float:
        raise RuntimeError("an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal"):
        attention_tiles.measure(case, 90, broken, "cpu")
    assert triton_attention.NARROW_CONFIGS is table


def test_tiles_are_tried_beside_the_table_and_leave_it_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is launched here: the time of a plan is made up from its tile."""
    monkeypatch.setattr(tiles, "SHAPES", {"o": (256, 512), "gate_up": (256, 512)})
    monkeypatch.setattr(tiles, "CACHE_BYTES", 1 << 18)
    names = ("NARROW_CONFIGS", "GATED_CONFIGS", "SPLITS")
    tables = [getattr(linear_tiles, name) for name in names]

    def timer(launches: Sequence[Any]) -> float:
        if isinstance(launches[0], partial):
            return 7.0
        constants = launches[0].__self__.constants
        if constants["INPUTS"] == 256:
            raise RuntimeError("out of resource: shared memory")
        return constants["FEATURES"] / 64 + 1 / constants["INPUTS"] + launches[0].__self__.grid[2]

    found = tiles.measure("o", 1, 90, timer, "cpu")
    assert found["best"] in ("64 x 128 x 4 x 4 in 1", "64 x 128 x 4 x 5 in 1")
    assert (found["cuBLAS us"], found["left out"]) == (7.0, len(tiles.PARTS))
    assert found["best us"] <= found["table us"]
    assert "in 1" in tiles.measure("gate_up", 65, 90, timer, "cpu")["best"]
    assert tables == [getattr(linear_tiles, name) for name in names]

    def broken(_: Sequence[Any]) -> float:
        raise RuntimeError("an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal"):
        tiles.measure("o", 1, 90, broken, "cpu")


def test_many_rows_and_gates_are_not_tried_in_parts() -> None:
    def parts(rows: int, is_gated: bool, features: int) -> set[int | None]:
        return {choice.parts for choice in tiles.choices(rows, is_gated, features)}

    assert parts(1, False, 4096) == parts(129, False, 4096) == set(tiles.PARTS)
    assert parts(1, True, 4096) == parts(1, False, 128256) == parts(512, False, 4096) == {1}


def test_a_kernel_that_waits_for_another_adds_what_comes_after_it() -> None:
    spans = [("a", 0.0, 4.0), ("b", 1.0, 6.0), ("c", 2.0, 5.0), ("a", 8.0, 9.0)]
    assert decode.exposed_us(spans) == {"a": 7.0, "b": 2.0, "c": 0.0}
    assert list(decode.exposed_us(spans)) == ["a", "b", "c"]
    mangled = "sdengine::(anonymous namespace)::walk_logits_kernel(sdengine::TreeVerifyArgs)"
    assert decode.kernel_name(mangled) == "walk_logits"
    assert decode.kernel_name("Memcpy DtoH (Device -> Pinned)") == "Memcpy DtoH (Device -> Pinned)"
