"""Device memory: what host and kernels exchange crosses by copies, in the right direction."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sdengine.kernels.programs.memory import HostMemory, Memory, StagedMemory
from sdengine.kernels.programs.places import CHUNK_BYTES
from sdengine.kernels.programs.results_ring import ResultsRing

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def staged() -> StagedMemory:
    return StagedMemory(DEVICE)


def replay(memory: StagedMemory) -> None:
    """A replay of nothing."""
    memory.push()
    memory.pull()
    memory.land()


def on_device(tensor: torch.Tensor) -> list[float]:
    return tensor.cpu().tolist()


@pytest.mark.parametrize("kind", ["inputs", "state"])
def test_what_the_host_writes_arrives_with_the_next_push(staged: StagedMemory, kind: str) -> None:
    tensor = getattr(staged, kind)(3, fill=7)
    assert on_device(tensor) == staged.host(tensor).tolist() == [7, 7, 7]
    staged.host(tensor)[1] = 9
    assert on_device(tensor) == [7, 7, 7]
    staged.push()
    assert on_device(tensor) == [7, 9, 7]
    assert staged.num_under_way == 0, "its results are not enqueued"


@pytest.mark.parametrize("kind", ["results", "state"])
def test_what_the_kernels_write_comes_back_with_a_pull(staged: StagedMemory, kind: str) -> None:
    tensor = getattr(staged, kind)(2, 2)
    staged.push()
    tensor[1, 0] = 5
    staged.pull()
    assert not staged.host(tensor).any() and staged.num_under_way == 1
    staged.land()
    assert staged.host(tensor).tolist() == [[0, 0], [5, 0]] and staged.num_under_way == 0


def test_two_replays_under_way_do_not_touch(staged: StagedMemory) -> None:
    """Each brings what it left behind, and the second goes on from the device's own state."""
    given, state, result = staged.inputs(1), staged.state(1), staged.results(1)
    for value in (3, 4):
        staged.host(given)[0] = value
        staged.host(state)[0] = 10  # what the host believes until it has read the first
        staged.push()
        state += given
        result.copy_(2 * given)
        staged.pull()
    assert staged.num_under_way == 2
    seen = []
    for _ in range(2):
        staged.land()
        seen.append((int(staged.host(state)[0]), int(staged.host(result)[0])))
    assert seen == [(13, 6), (17, 8)]
    staged.host(state)[0] = 1
    replay(staged)
    assert on_device(state) == [1]


def test_at_most_two_replays_are_under_way(staged: StagedMemory) -> None:
    for _ in range(2):
        staged.push()
        staged.pull()
    with pytest.raises(AssertionError, match="has to be read before the next starts"):
        staged.push()
    staged.drain()
    with pytest.raises(AssertionError, match="no replay was started"):
        staged.land()


def test_a_drain_forgets_a_replay_that_was_left_half_started(staged: StagedMemory) -> None:
    result = staged.results(1)
    staged.push()
    result.fill_(7)
    staged.pull()
    staged.push()
    with pytest.raises(AssertionError, match="half started"):
        staged.push()
    staged.drain()
    assert staged.num_under_way == 0 and staged.host(result).tolist() == [7]
    replay(staged)


def test_tables_are_copied_only_when_one_was_written(staged: StagedMemory) -> None:
    table = staged.tables(2)
    replay(staged)
    staged.host(table)[:] = 4
    replay(staged)
    assert on_device(table) == [0, 0]
    staged.mark_changed()
    replay(staged)
    assert on_device(table) == [4, 4]


def test_neighbours_of_every_dtype_and_size_do_not_touch(staged: StagedMemory) -> None:
    """Across a chunk that is full, and one that a large tensor has for itself."""
    shapes = [(1,), (3, 5), (CHUNK_BYTES // 8,), (CHUNK_BYTES,), (7,)]
    kinds = (torch.int32, torch.float32, torch.int64)
    tensors = [staged.inputs(*s, dtype=d, fill=-1) for s in shapes for d in kinds]
    for i, tensor in enumerate(tensors):
        assert tensor.is_contiguous() and tensor.data_ptr() % 16 == 0
        staged.host(tensor)[...] = i
    staged.push()
    for i, tensor in enumerate(tensors):
        assert bool((tensor == i).all()), i


def test_cleared_inputs_come_back_with_the_next_push(staged: StagedMemory) -> None:
    tensor, kept = staged.inputs(2, fill=3), staged.state(2, fill=3)
    staged.clear_inputs()
    assert on_device(tensor) == [0, 0] and on_device(kept) == [3, 3]
    staged.push()
    assert on_device(tensor) == [3, 3]


@pytest.mark.parametrize("memory", [HostMemory(), StagedMemory(DEVICE)])
def test_a_row_s_beginning_is_overwritten_and_a_row_cleared(memory: Memory) -> None:
    tensor = memory.zeros(2, 4, dtype=torch.int32)
    for row in (0, 1):
        memory.write_row(tensor, row, np.array([6, 7], dtype=np.int32))
    memory.clear_row(tensor, 0)
    assert on_device(tensor) == [[0, 0, 0, 0], [6, 7, 0, 0]]


def test_on_a_cpu_host_and_kernels_share_everything() -> None:
    memory = HostMemory()
    for kind in ("inputs", "tables", "state", "results"):
        tensor = getattr(memory, kind)(2, dtype=torch.float32, fill=0.5)
        memory.host(tensor)[0] = 2.0
        assert tensor.tolist() == [2.0, 0.5]


def test_what_is_the_kernels_alone_has_no_view(staged: StagedMemory) -> None:
    with pytest.raises(KeyError):
        staged.host(staged.zeros(3))


def test_a_half_started_replay_is_waited_for_on_its_own_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After an interrupt no device need be the current one; another's queue would be empty."""
    marks: list[tuple[str, torch.device | None]] = []

    class Event:
        def record(self, stream: torch.device | None = None) -> None:
            marks.append(("record", stream))

        def synchronize(self) -> None:
            marks.append(("wait", None))

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: device)
    second = torch.device("cuda", 1)
    ring = ResultsRing(second)
    ring.open()
    ring.abandon()
    assert marks == [("record", second), ("wait", None)]
