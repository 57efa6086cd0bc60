"""Kernels that begin early wait in every program of theirs, before they write anything."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sdengine.kernels.programs.launch_chain import chained
from sdengine.kernels.registry import OP_NAMES, get_op
from sdengine.kernels.triton import overlap
from sdengine.kernels.triton.launch import Launch, plan_op
from tests.kernels.triton.compile_launches import CASES

FOLDER = Path(overlap.__file__).parent
WAITS = ("begin_early", "begin_in_turn")
LETS_BEGIN = "let_next_begin"
WRITES = ("store", "atomic_add", "atomic_max", "atomic_xchg", "atomic_cas")
# What comes after these reads, before it waits, what the last kernel but one has written.
IN_TURN = {"embed_kernel", "shared_splits_kernel"}


def kernels_that_overlap(source: str) -> dict[str, ast.FunctionDef]:
    """Functions of a file that take OVERLAPS, but for those that wait for others."""
    return {
        node.name: node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef)
        and "OVERLAPS" in [argument.arg for argument in node.args.args]
        and node.name not in (*WAITS, LETS_BEGIN)
    }


ALL = {
    name: kernel
    for path in sorted(FOLDER.glob("*.py"))
    for name, kernel in kernels_that_overlap(path.read_text(encoding="utf-8")).items()
}


def called(node: ast.AST) -> list[str]:
    """Names of what is called inside, without their modules."""
    calls = [inner.func for inner in ast.walk(node) if isinstance(inner, ast.Call)]
    return [
        function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        for function in calls
    ]


def wait_of(kernel: ast.FunctionDef) -> str:
    """How a kernel waits: once, unconditionally, before it writes or returns."""
    waits = [name for name in called(kernel) if name in WAITS]
    assert len(waits) == 1, f"{kernel.name}: waits {len(waits)} times"
    for statement in kernel.body:
        names = called(statement)
        if isinstance(statement, ast.Expr) and waits[0] in names:
            return waits[0]
        assert waits[0] not in names, f"{kernel.name}: waits under a condition"
        returns = any(isinstance(inner, ast.Return) for inner in ast.walk(statement))
        assert not returns, f"{kernel.name}: returns before it waits"
        assert not set(names) & set(WRITES), f"{kernel.name}: writes before it waits"
    raise AssertionError(kernel.name)


@pytest.mark.parametrize("name", ALL)
def test_a_kernel_waits_before_it_writes_or_returns(name: str) -> None:
    assert wait_of(ALL[name]) == ("begin_in_turn" if name in IN_TURN else "begin_early")


def test_a_kernel_that_lets_the_next_begin_late_does_it_after_its_products() -> None:
    body = [called(statement) for statement in ALL["linear_kernel"].body]
    lets, adds_up = (
        next(at for at, names in enumerate(body) if name in names) for name in (LETS_BEGIN, "dot")
    )
    assert adds_up < lets


@pytest.mark.parametrize("arch,expected", [(80, False), (90, True)])
def test_only_products_with_a_gate_let_the_next_begin_late(arch: int, expected: bool) -> None:
    for case, is_gated in (("linear-gated", True), ("linear-tree", False)):
        op, make_args = CASES[case]
        with chained():
            (launch,) = plan_op(op, arch, make_args())
        assert launch.constants["LATE"] == is_gated
        assert launch.overlaps == expected


@pytest.mark.parametrize(
    "body,message",
    [
        ("tl.store(x, 1)\n    begin_early(OVERLAPS)", "writes before"),
        ("if x:\n        return\n    begin_early(OVERLAPS)", "returns before"),
        ("if x:\n        begin_early(OVERLAPS)", "under a condition"),
        ("tl.load(x)", "waits 0 times"),
    ],
)
def test_mistakes_are_noticed(body: str, message: str) -> None:
    source = f"def wrong_kernel(x, OVERLAPS: tl.constexpr):\n    {body}\n"
    with pytest.raises(AssertionError, match=message):
        wait_of(kernels_that_overlap(source)["wrong_kernel"])


def overlapping(case: str, arch: int) -> list[bool]:
    """For each launch of a case, whether it begins early; kernel and launch have to agree."""
    op, make_args = CASES[case]
    plan = plan_op(op, arch, make_args())
    for launch in plan:
        assert launch.constants.get("OVERLAPS", False) == passed_on(launch), launch.kernel
    return [launch.overlaps for launch in plan]


def passed_on(launch: Launch) -> bool:
    """Whether the kernel is launched early, as far as Triton is told."""
    told: dict[str, Any] = {}

    class Kernel:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda **options: told.update(options)

    replace(launch, kernel=Kernel()).run()
    return bool(told.get("launch_pdl", False))


@pytest.mark.parametrize("case", ["rms_norm", "linear-parts", "attention-row", "embed", "sample"])
def test_only_programs_on_new_devices_overlap(case: str) -> None:
    assert not any(overlapping(case, 90))
    with chained():
        assert not any(overlapping(case, 80))
        assert all(overlapping(case, 90)) == (case != "sample")


def test_every_kernel_of_a_pass_overlaps() -> None:
    """One that does not would be safe, and late."""
    late = {"penalize", "sample", "kv_compact", "token_logprobs"}
    for op in OP_NAMES:
        if "triton" not in get_op(op).backends or op in late:
            continue
        kernels = [launch.kernel.fn.__name__ for launch in plans_of(op)]
        assert set(kernels) <= set(ALL), f"{op}: {kernels}"


def plans_of(op: str) -> list[Launch]:
    """The launches of an op's cases."""
    cases = [make_args for case_op, make_args in CASES.values() if case_op == op]
    with chained():
        return [launch for make_args in cases for launch in plan_op(op, 90, make_args())]
