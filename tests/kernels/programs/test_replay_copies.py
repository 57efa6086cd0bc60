"""Replay copies: replays in a row are read one after the other, as if each had been read."""

from __future__ import annotations

import pytest
import torch

from sdengine.kernels.move_plan import MovePlan
from sdengine.kernels.programs.memory import HostMemory
from sdengine.kernels.programs.places import CHUNK_BYTES
from sdengine.kernels.programs.program import Program, make_pool, make_program
from sdengine.kernels.programs.replay_copies import ReplayCopies
from sdengine.kernels.verdict import Verdict


def counting_program(memory: HostMemory, backend: str, num_threads: int) -> tuple[Program, dict]:
    """Every replay appends its token to the history of one sequence, and the number of the launch's
    moves is a result."""
    pool = make_pool(num_threads) if backend == "cpu" else None
    program = make_program(backend, pool, memory)
    ints = {"history": memory.zeros(1, 16, dtype=torch.int32)}
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


@pytest.mark.parametrize("backend,num_threads", [("cpu", 1), ("cpu", 3), ("reference", 1)])
def test_each_of_several_replays_is_read_as_it_was(backend: str, num_threads: int) -> None:
    memory = HostMemory()
    program, ints = counting_program(memory, backend, num_threads)
    lens, computed = memory.host(ints["history_lens"]), memory.host(ints["computed_lens"])
    for num_replays, expected in ((3, [2, 3, 4]), (1, [5]), (4, [6, 7, 8, 9]), (2, [10, 11])):
        program.start(num_replays)
        seen = []
        for _ in range(num_replays):
            memory.land()
            seen.append((int(lens[0]), int(computed[0])))
        assert seen == [(length, length - 1) for length in expected]
    assert ints["history"][0, :12].tolist() == [0, *[7] * 10, 0]


@pytest.mark.parametrize("backend,num_threads", [("cpu", 1), ("cpu", 3), ("reference", 1)])
def test_a_row_ends_with_the_replay_that_leaves_its_count_at_zero(
    backend: str, num_threads: int
) -> None:
    memory = HostMemory()
    program, ints = counting_program(memory, backend, num_threads)
    num_pending = ints["cu_pending"][1:2]
    program.stop_at_zero(num_pending)
    lens = memory.host(ints["history_lens"])
    assert program.start(3) == 3
    for expected in (2, 3, 4):
        memory.land()
        assert lens[0] == expected
    ints["pending_lens"].zero_()
    assert program.start(6) == 1 and int(num_pending) == 0
    ints["pending_lens"].fill_(1)
    assert program.start(2) == 2
    before = int(lens[0])
    for expected in (before - 1, before, before):
        memory.land()
        assert lens[0] == expected, "the last row's alone are brought back"


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_what_was_not_read_is_forgotten_with_the_next_start(backend: str) -> None:
    """As after an interrupt: a stale copy would undo what came later."""
    memory = HostMemory()
    program, ints = counting_program(memory, backend, 1)
    lens = memory.host(ints["history_lens"])
    program.start(4)
    memory.land()
    assert lens[0] == 2
    program.start()
    for _ in range(3):
        memory.land()
        assert lens[0] == 3, "it goes on from what was read"
    program.start(2)
    for expected in (4, 5, 5):
        memory.land()
        assert lens[0] == expected, "nothing is left for a third"


def test_tensors_of_every_size_are_copied_side_by_side() -> None:
    copies = ReplayCopies()
    shapes = [(3,), (CHUNK_BYTES // 4,), (2, 5), (CHUNK_BYTES,), (1,)]
    tensors = [copies.allocate(s, d) for s in shapes for d in (torch.int32, torch.float64)]
    assert all(not t.any() and t.is_contiguous() and t.data_ptr() % 64 == 0 for t in tensors)
    copies.begin(2)
    for replay in range(2):
        for number, tensor in enumerate(tensors):
            tensor.fill_(100 * replay + number)
        copies.keep(replay)
    copies.end(2)
    for replay in range(2):
        copies.restore()
        assert all(bool((t == 100 * replay + n).all()) for n, t in enumerate(tensors))


def test_totals_are_never_taken_back() -> None:
    memory = HostMemory()
    state, totals = memory.state(1), memory.totals(1)
    memory.copies.begin(2)
    for replay in range(2):
        state += 1
        totals += 1
        memory.copies.keep(replay)
    memory.copies.end(2)
    memory.land()
    assert (int(memory.host(state)[0]), int(memory.host(totals)[0])) == (1, 2)
