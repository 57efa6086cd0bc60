"""Device memory: what host and kernels exchange crosses by copies, in the right direction."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sdengine.kernels.device_memory import CHUNK_BYTES, HostMemory, Memory, StagedMemory

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def staged() -> StagedMemory:
    return StagedMemory(DEVICE)


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


@pytest.mark.parametrize("kind", ["results", "state"])
def test_what_the_kernels_write_comes_back_with_a_pull(staged: StagedMemory, kind: str) -> None:
    tensor = getattr(staged, kind)(2, 2)
    tensor[1, 0] = 5
    assert not staged.host(tensor).any()
    staged.pull()
    staged.wait()
    assert staged.host(tensor).tolist() == [[0, 0], [5, 0]]


def test_tables_are_copied_only_when_one_was_written(staged: StagedMemory) -> None:
    table = staged.tables(2)
    staged.push()
    staged.host(table)[:] = 4
    staged.push()
    assert on_device(table) == [0, 0]
    staged.mark_changed()
    staged.push()
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
def test_a_row_s_beginning_is_overwritten(memory: Memory) -> None:
    tensor = memory.zeros(2, 4, dtype=torch.int32)
    memory.write_row(tensor, 1, np.array([6, 7], dtype=np.int32))
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
