"""Replay copies: of several replays in a row, what each one left behind is read after the last."""

from __future__ import annotations

import pytest
import torch

from sdengine.kernels.move_plan import MovePlan
from sdengine.kernels.programs.memory import HostMemory
from sdengine.kernels.programs.program import Program, make_pool, make_program
from sdengine.kernels.programs.replay_copies import MAX_REPLAYS, LeftBehind, ReplayCopies
from sdengine.kernels.verdict import Verdict


def counting_program(
    memory: HostMemory, backend: str, num_threads: int, length: int = 16
) -> tuple[Program, dict]:
    """Every replay appends its token to the history of one sequence, and the number of the launch's
    moves is a result."""
    pool = make_pool(num_threads) if backend == "cpu" else None
    program = make_program(backend, pool, memory)
    ints = {"history": memory.zeros(1, length, dtype=torch.int32)}
    for name in ("history_lens", "computed_lens", "pending_lens"):
        ints[name] = memory.state(1, fill=1 if name != "computed_lens" else 0)
    ints["cu_pending"] = memory.results(2)
    ints["pending_tokens"] = memory.results(4)
    verdict = Verdict.allocate(1, 1)
    verdict.out_tokens[:] = 7
    one = memory.inputs(1, fill=1)
    program.launch(
        "gather_pending",
        history=ints["history"],
        computed_lens=ints["computed_lens"],
        pending_lens=ints["pending_lens"],
        num_seqs=one,
        pending_tokens=ints["pending_tokens"],
        cu_pending=ints["cu_pending"],
    )
    program.launch(
        "commit_plan",
        num_seqs=one,
        wants_logits=one,
        pending_lens=ints["pending_lens"],
        verdict=verdict,
        max_emit=memory.inputs(1, fill=9),
        num_emitted=memory.zeros(1, dtype=torch.int32),
        history=ints["history"],
        history_lens=ints["history_lens"],
        computed_lens=ints["computed_lens"],
        moves=MovePlan.allocate(1, 1),
        output_counts=None,
    )
    return program, ints


def of(left: LeftBehind, index: int, num_replays: int) -> list[int]:
    """What so many replays left in an element."""
    stride = left.stride
    rows = left.newest if num_replays == 1 else left.rows
    return rows[index : index + num_replays * stride : stride].tolist()


@pytest.mark.parametrize("backend,num_threads", [("cpu", 1), ("cpu", 3), ("reference", 1)])
def test_each_of_several_replays_is_read_as_it_was(backend: str, num_threads: int) -> None:
    memory = HostMemory()
    program, ints = counting_program(memory, backend, num_threads)
    lens, computed = (memory.left_behind(ints[n]) for n in ("history_lens", "computed_lens"))
    for num_replays, expected in ((3, [2, 3, 4]), (1, [5]), (4, [6, 7, 8, 9]), (2, [10, 11])):
        assert program.start(num_replays) == num_replays
        memory.land()
        assert of(lens, 0, num_replays) == expected
        assert of(computed, 0, num_replays) == [length - 1 for length in expected]
        assert memory.host(ints["history_lens"]).tolist() == expected[-1:], "memory is at the last"
    assert ints["history"][0, :12].tolist() == [0, *[7] * 10, 0]


@pytest.mark.parametrize("backend,num_threads", [("cpu", 1), ("cpu", 3), ("reference", 1)])
def test_a_row_ends_with_the_replay_that_leaves_its_count_at_zero(
    backend: str, num_threads: int
) -> None:
    memory = HostMemory()
    program, ints = counting_program(memory, backend, num_threads)
    num_pending = ints["cu_pending"][1:2]
    program.stop_at_zero(num_pending)
    lens = memory.left_behind(ints["history_lens"])
    assert program.start(3) == 3
    assert of(lens, 0, 3) == [2, 3, 4]
    ints["pending_lens"].zero_()
    assert program.start(6) == 1 and int(num_pending) == 0
    ints["pending_lens"].fill_(1)
    assert program.start(2) == 2
    last = int(memory.host(ints["history_lens"])[0])
    assert of(lens, 0, 2) == [last - 1, last], "no row of the first start is left"


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_row_has_no_more_replays_than_there_is_room_for(backend: str) -> None:
    memory = HostMemory()
    program, ints = counting_program(memory, backend, 1, length=2 * MAX_REPLAYS)
    lens = memory.left_behind(ints["history_lens"])
    assert program.start(MAX_REPLAYS + 1) == MAX_REPLAYS
    assert of(lens, 0, MAX_REPLAYS) == list(range(2, MAX_REPLAYS + 2))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float64])
def test_tensors_of_every_shape_are_read_by_row(dtype: torch.dtype) -> None:
    copies = ReplayCopies()
    tensors = [torch.zeros(shape, dtype=dtype) for shape in ((3,), (2, 5), (1,), (4, 2, 3))]
    left = [copies.keep(tensor) for tensor in tensors]
    for replay in range(3):
        for tensor in tensors:
            tensor.view(-1)[:] = torch.arange(tensor.numel()) + 100 * replay
        copies.copy(replay)
    for tensor, rows in zip(tensors, left):
        assert rows.stride == tensor.numel()
        for index in range(tensor.numel()):
            assert of(rows, index, 3) == [index, index + 100, index + 200]
            assert of(rows, index, 1) == [index + 200]


def test_totals_are_at_their_newest() -> None:
    memory = HostMemory()
    state, totals = memory.state(1), memory.totals(1)
    left = memory.left_behind(state)
    for replay in range(2):
        state += 1
        totals += 1
        memory.copies.copy(replay)
    assert (of(left, 0, 2), int(memory.host(totals)[0])) == ([1, 2], 2)
