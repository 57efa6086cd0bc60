"""Triton kernels compiled ahead of time, no GPU needed: what the compiler made of the tuned plans.

No spilled register, shared memory within the architecture's limit, the tensor-core instruction that
was meant, and one order of addition whatever the width of a row tile.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import triton

from sdengine.errors import BackendUnavailable
from sdengine.kernels.registry import OP_NAMES, get_op
from sdengine.kernels.triton import assembler, linear_tiles
from sdengine.kernels.triton.launch import plan_op
from tests.kernels.triton.compile_launches import CASES, Compiled
from tests.kernels.triton.sass import unset_registers

ROOT = Path(__file__).resolve().parents[3]
SHARED_LIMIT = {80: 166912, 90: 232448, 100: 232448, 120: 101376}
TENSOR_CORE = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA", 120: "HMMA"}
# What every run compiles: each op once.
USUAL = [
    ("attention-tree", 90),
    ("attention-row", 90),
    ("attention-decode", 90),
    ("attention-wide", 90),
    ("attention-large", 90),
    ("attention-f16", 90),
    ("linear-f16", 90),
    ("linear-gated", 90),
    ("linear-parts", 90),
    ("linear-in-parts", 90),
    ("penalize", 80),
    ("sample", 80),
    ("draft_topk-target", 80),
    ("token_logprobs", 80),
    ("rms_norm", 80),
    ("rope_kv_append", 80),
    ("silu_and_mul", 80),
    ("embed", 80),
    ("kv_compact", 80),
]
# Plans are tuned with the newest Triton, which spills nothing; 3.6 to 3.8 keep up to twelve words
# of attention for sm_90 in memory.
MOST_STACK = 0 if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 9) else 64  # bytes
SPILLING = [("attention-large", 80), ("attention-large", 100)]  # heads of 256, a few words
EVERYTHING = [(c, arch) for c in CASES for arch in SHARED_LIMIT if (c, arch) not in SPILLING]


@cache
def compiled(wanted: tuple[tuple[str, int], ...]) -> list[Compiled]:
    """All kernels of the wanted cases, compiled in one process in which nothing is interpreted."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.kernels.triton.compile_launches"]
    command += [f"{case}:{arch}" for case, arch in wanted]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [Compiled(**json.loads(line)) for line in done.stdout.splitlines()]


def assert_gates(kernel: Compiled) -> None:
    """What every tuned kernel must keep."""
    counts = kernel.instructions
    assert kernel.stack <= MOST_STACK, f"spills: {kernel}"
    assert kernel.stack or not {"LDL", "STL"} & counts.keys(), f"memory of its own: {kernel}"
    assert not kernel.unset, f"miscompiled, see assembler.py: {kernel}"
    assert kernel.shared <= SHARED_LIMIT[kernel.arch], f"too much shared memory: {kernel}"
    classes = {name for name in counts if name.endswith("MMA") and name != "FFMA"}
    multiplies = kernel.kernel in ("linear_kernel", "shared_splits_kernel", "finish_rows_kernel")
    is_f32 = kernel.case.endswith("f32")
    expected = {TENSOR_CORE[kernel.arch]} if multiplies and not is_f32 else set()
    assert classes == expected, f"expected {expected or 'no tensor core'}: {kernel}"
    if is_f32:
        assert counts["FFMA"] > 100, f"products are not in float32: {kernel}"
    rounds_each_step = kernel.kernel.split("_kernel")[0] in ("sample", "draft_topk", "penalize")
    assert not (rounds_each_step and kernel.fuses), f"bits would differ from the CPU's: {kernel}"


MISCOMPILED = """
        /*0b40*/                   UIADD3 UR10, UP0, UR10, 0x20, URZ ;
        /*0bc0*/                   UIADD3.X UR11, UR11, -0x3ffffff0, URZ, UP0, !UPT ;
        /*0c10*/                   R2UR UR7, R120.reuse ;
        /*0cf0*/                   USHF.R.U32.HI UR12, URZ, 0x4, UR7 ;
"""
RIGHT = """
        /*0300*/              @!P1 R2UR.OR P0, UR11, R13 ;
        /*0310*/                   ULDC.64 UR8, c[0x0][0x220] ;
        /*0330*/                   UIADD3.X UR9, UR11, UR8, URZ, UP0, !UPT ;
        /*0340*/                   HGMMA.64x16x16.F32.BF16 R24, gdesc[UR8], R24, gsb0 ;
"""


def test_registers_that_nothing_has_set_are_noticed() -> None:
    """The first lines are of ptxas 12.8; see assembler.py."""
    assert len(unset_registers(MISCOMPILED)) == 2
    assert unset_registers(RIGHT) == []


def test_an_assembler_is_chosen_by_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    knobs = SimpleNamespace(
        ptxas=SimpleNamespace(path="old", version="12.8"),
        ptxas_blackwell=SimpleNamespace(path="new", version="12.9"),
    )
    monkeypatch.setattr(assembler.triton, "knobs", SimpleNamespace(nvidia=knobs))
    choose = assembler.use_sound_assembler.__wrapped__
    choose()
    assert knobs.ptxas == "new"
    knobs.ptxas = SimpleNamespace(path="own", version="13.0")
    choose()
    assert knobs.ptxas.path == "own"
    knobs.ptxas = knobs.ptxas_blackwell = SimpleNamespace(path="old", version="12.8")
    with pytest.raises(BackendUnavailable, match=r"expected a ptxas of CUDA 12.9 .* got 12.8"):
        choose()


def test_the_case_in_parts_is_in_parts() -> None:
    op, make_args = CASES["linear-parts"]
    for arch in SHARED_LIMIT:
        (launch,) = plan_op(op, arch, make_args())
        assert (launch.arguments["parts"] is not None) == bool(linear_tiles.SPLITS[arch])


def test_every_op_has_a_case() -> None:
    ops = {name for name in OP_NAMES if "triton" in get_op(name).backends}
    assert {op for op, _ in CASES.values()} == ops
    assert {CASES[case][0] for case, _ in USUAL} == ops


@pytest.mark.parametrize("case,arch", USUAL)
def test_usual_kernels_pass_the_gates(case: str, arch: int) -> None:
    kernels = [k for k in compiled(tuple(USUAL)) if (k.case, k.arch) == (case, arch)]
    assert kernels
    for kernel in kernels:
        assert_gates(kernel)


@pytest.mark.slow
@pytest.mark.parametrize("case,arch", EVERYTHING)
def test_all_kernels_pass_the_gates(case: str, arch: int) -> None:
    for kernel in compiled(((case, arch),)):
        assert_gates(kernel)


def programs_of_a_multiprocessor(kernel: Compiled, num_warps: int = 4) -> int:
    """How many fit into the shared memory and the registers of compute capability 9.0."""
    by_memory = (228 << 10) // (kernel.shared + 1024)
    return min(by_memory, 65536 // (32 * num_warps * -(-kernel.registers // 8) * 8))


def test_wide_row_tiles_leave_room_for_another_program() -> None:
    """One alone would wait for each of its products, and each of its exponents."""
    first, second = (k for k in compiled(tuple(USUAL)) if k.case == "attention-wide")
    assert programs_of_a_multiprocessor(first) == 2, first
    assert programs_of_a_multiprocessor(second) >= 3, second


def test_the_first_tiles_of_plain_decoding_are_asked_for_early() -> None:
    """An engine's smallest program has eight rows, of four heads each with grouped queries."""
    (first,) = (
        k
        for k in compiled(tuple(USUAL))
        if k.case == "attention-decode" and k.kernel == "shared_splits_kernel"
    )
    assert first.instructions["UBLKPF"] == 4


def test_the_wide_case_goes_through_several_splits() -> None:
    expected = {("attention-tree", 90): False, ("attention-wide", 90): True}
    for (case, arch), goes_on in {**expected, ("attention-wide", 80): False}.items():
        op, make_args = CASES[case]
        assert plan_op(op, arch, make_args())[-2].constants["GOES_ON"] == goes_on


def assert_one_order_of_keys(kernels: list[Compiled]) -> None:
    """One layout along the keys in both attention kernels, for one row and for a tree of them."""
    cases = ("attention-tree", "attention-row", "attention-wide")
    attention = [kernel for kernel in kernels if kernel.case in cases]
    layouts = {tuple(kernel.key_layouts) for kernel in attention}
    assert len(attention) == 6 and len(layouts) == 1 and len(next(iter(layouts))) == 1, layouts


def test_attention_adds_up_keys_in_one_order_whatever_the_row_tile() -> None:
    assert_one_order_of_keys(compiled(tuple(USUAL)))


@pytest.mark.slow
@pytest.mark.parametrize("arch", SHARED_LIMIT)
def test_the_order_of_keys_on_every_architecture(arch: int) -> None:
    cases = ("attention-tree", "attention-row", "attention-wide")
    assert_one_order_of_keys(compiled(tuple((case, arch) for case in cases)))


def test_two_orders_of_keys_are_noticed() -> None:
    kernels = [k for k in compiled(tuple(USUAL)) if k.case.startswith("attention")]
    with pytest.raises(AssertionError):
        assert_one_order_of_keys([*kernels[1:], replace(kernels[0], key_layouts=["other"])])


@pytest.mark.parametrize(
    "kernel",
    [
        Compiled("linear-tree", 80, "linear_kernel", 0, MOST_STACK + 8, 255, {"HMMA": 4}, [], True),
        Compiled("linear-tree", 80, "linear_kernel", 0, 0, 255, {"HMMA": 4, "STL": 1}, [], True),
        Compiled("linear-tree", 120, "linear_kernel", 200000, 0, 255, {"HMMA": 4}, [], True),
        Compiled("linear-tree", 90, "linear_kernel", 0, 0, 255, {"HMMA": 4}, [], True),
        Compiled("linear-f32", 90, "linear_kernel", 0, 0, 255, {"HGMMA": 4, "FFMA": 500}, [], True),
        Compiled("sample", 90, "sample_kernel", 0, 0, 99, {}, [], True),
    ],
)
def test_the_gates_close(kernel: Compiled) -> None:
    with pytest.raises(AssertionError):
        assert_gates(kernel)
