"""Programs: launches in order, and blocks of them that depend on a count known only at replay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sdengine.kernels.cpu_library import load_cpu
from sdengine.kernels.programs.program import Program, make_pool, make_program


@pytest.fixture(params=["reference", "cpu-1", "cpu-2"])
def program(request: pytest.FixtureRequest) -> Program:
    backend, _, threads = request.param.partition("-")
    return make_program(backend, make_pool(int(threads)) if threads else None)


def count(value: int) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.int32)


def adder(program: Program, out: torch.Tensor) -> Callable[[int], None]:
    """Returns a function that adds a launch of out += x."""
    from sdengine.kernels.packed_weight import pack_weight

    weight = pack_weight(torch.eye(1))

    def add(x: int) -> None:
        args: dict[str, Any] = {"x": torch.tensor([[float(x)]]), "out": out, "weight": weight}
        program.launch("linear", num_rows=count(1), accumulate=True, **args)

    return add


def test_blocks_run_only_while_their_count_is_positive(program: Program) -> None:
    out = torch.zeros(1, 1)
    outer, inner = count(0), count(0)
    add = adder(program, out)
    add(1)
    with program.only_if(outer):
        add(10)
        with program.only_if(inner):
            add(100)
        add(1000)
    add(10000)
    for first, second, total in ((0, 0, 10001), (0, 1, 10001), (2, 0, 11011), (1, 3, 11111)):
        out.zero_()
        outer[0], inner[0] = first, second
        program.replay()
        assert int(out) == total
        timings = program.replay_timed()
        assert [name for name, _ in timings] == ["linear"] * 5
        ran = [True, first > 0, first > 0 and second > 0, first > 0, True]
        assert [ns > 0 for _, ns in timings] == ran
        assert int(out) == 2 * total


def test_a_block_sees_what_earlier_launches_wrote(program: Program) -> None:
    """The count is read when the replay gets there, not when it begins."""
    out = torch.zeros(1, 1)
    pending, cu = torch.zeros(8, dtype=torch.int32), torch.zeros(3, dtype=torch.int32)
    program.launch(
        "gather_pending",
        history=torch.arange(10, dtype=torch.int32).view(2, 5).contiguous(),
        computed_lens=torch.tensor([1, 1], dtype=torch.int32),
        pending_lens=torch.tensor([1, 2], dtype=torch.int32),
        num_seqs=count(2),
        pending_tokens=pending,
        cu_pending=cu,
    )
    with program.only_if(cu[2:]):
        adder(program, out)(5)
    program.replay()
    assert cu.tolist() == [0, 1, 3] and int(out) == 5


def test_counts_are_checked_at_the_door(program: Program) -> None:
    with (
        pytest.raises(ValueError, match=r"only_if: count: expected torch.int32"),
        program.only_if(torch.zeros(1)),
    ):
        pass


@pytest.mark.parametrize("place", ["first", "after", "first of an inner block"])
def test_a_count_is_not_written_while_workers_may_read_it(place: str) -> None:
    """A worker that comes late to the beginning of a block would find another count there."""
    program, cu = make_program("cpu", make_pool(2)), torch.zeros(3, dtype=torch.int32)

    def write_count() -> None:
        program.launch(
            "gather_pending",
            history=torch.zeros(2, 5, dtype=torch.int32),
            computed_lens=torch.zeros(2, dtype=torch.int32),
            pending_lens=torch.zeros(2, dtype=torch.int32),
            num_seqs=count(2),
            pending_tokens=torch.zeros(8, dtype=torch.int32),
            cu_pending=cu,
        )

    def refuse() -> None:
        with pytest.raises(ValueError, match="gather_pending: cu_pending: expected it not to hold"):
            write_count()

    add = adder(program, torch.zeros(1, 1))
    with program.only_if(cu[2:]):
        if place == "first":
            refuse()
        elif place == "first of an inner block":
            with program.only_if(count(1)):
                refuse()
                add(1)
        add(1)
        write_count()  # in the midst, as a draft layer writes the next one's rows
        add(1)
    if place == "after":
        refuse()
    add(1)
    write_count()
    program.replay()


def test_an_open_block_is_not_replayed() -> None:
    native = load_cpu().Program()
    flag = count(1)
    native.begin_if(flag.data_ptr())
    with pytest.raises(RuntimeError, match="begin_if without end_if"):
        native.replay(load_cpu().ThreadPool(1))
    native.end_if()
    native.replay(load_cpu().ThreadPool(1))
    with pytest.raises(RuntimeError, match="end_if without begin_if"):
        native.end_if()


def test_a_native_program_takes_tensors_of_the_cpu_only() -> None:
    """A pointer of another device is none of the CPU's: it would end the process."""
    args = {
        "tokens": torch.zeros(1, dtype=torch.int32),
        "weight": torch.empty(4, 8, device="meta"),
        "out": torch.empty(1, 8),
        "num_rows": count(1),
    }
    with pytest.raises(ValueError, match="embed: weight: expected a tensor on cpu, got meta"):
        make_program("cpu", make_pool(1)).launch("embed", **args)
