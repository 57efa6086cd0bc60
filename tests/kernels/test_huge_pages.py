"""Tensors side by side on 2 MB pages."""

from __future__ import annotations

import gc
from itertools import pairwise

import torch

from sdengine.kernels.huge_pages import ALIGNMENT, CHUNK_BYTES, HUGE_PAGE_BYTES, HugePageArena


def span(tensor: torch.Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size()


def test_small_tensors_lie_side_by_side_from_a_large_page_on() -> None:
    arena = HugePageArena()
    first = arena.zeros((3, 5), torch.float32)
    second = arena.zeros((ALIGNMENT + 1,), torch.uint8)
    third = arena.zeros((7,), torch.bfloat16)
    assert first.shape == (3, 5) and first.dtype == torch.float32 and first.is_contiguous()
    assert first.data_ptr() % HUGE_PAGE_BYTES == 0
    assert second.data_ptr() - first.data_ptr() == ALIGNMENT
    assert third.data_ptr() - second.data_ptr() == 2 * ALIGNMENT


def test_nothing_overlaps_across_chunks() -> None:
    arena = HugePageArena()
    sizes = [HUGE_PAGE_BYTES - 1, 1, 0, HUGE_PAGE_BYTES, 300_000] * 8
    assert sum(sizes) > 2 * CHUNK_BYTES
    tensors = [arena.zeros((size,), torch.uint8) for size in sizes]
    for i, tensor in enumerate(tensors):
        tensor.fill_(i)
    assert all(bool((tensor == i).all()) for i, tensor in enumerate(tensors))
    spans = sorted(span(tensor) for tensor in tensors if len(tensor))
    assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))


def test_a_large_tensor_starts_on_a_large_page() -> None:
    arena = HugePageArena()
    arena.zeros((5,), torch.uint8)
    large = arena.zeros((1024, 2048), torch.bfloat16)
    assert large.data_ptr() % HUGE_PAGE_BYTES == 0


def test_memory_outlives_the_arena() -> None:
    arena = HugePageArena()
    tensor = arena.zeros((1000,), torch.int32)
    tensor[:] = torch.arange(1000, dtype=torch.int32)
    del arena
    gc.collect()
    torch.empty(CHUNK_BYTES, dtype=torch.uint8).fill_(255)
    assert torch.equal(tensor, torch.arange(1000, dtype=torch.int32))
