"""Branches of a CUDA graph: launches that the device skips by itself where a count is 0."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sdengine.kernels.cuda_library import CudaLibrary

__all__ = ["GraphBranches"]


class GraphBranches:
    """Makes what is launched between `begin` and `end` a conditional node of the graph under
    capture. Outside of a capture it is launched in any case, on the stream that the capture will
    use, so that kernels and what libraries keep per stream are there by then.

    Branches may be nested; each has a stream of its own, because its launches are captured into a
    graph of their own. (Of torch's streams, 32 dealt in turns, one would come to be the stream that
    captures the graph around it.) They must not allocate: torch keeps the memory of a capture for
    its graph, but does not know that a branch belongs to one.

    Args:
        library: the CUDA library.
    """

    def __init__(self, library: CudaLibrary) -> None:
        self._library = library
        self._outer: list[torch.cuda.Stream] = []  # streams of the branches that are open
        self._bodies: list[torch.cuda.Stream] = []  # by depth

    @contextmanager
    def session(self) -> Iterator[None]:
        """Around launches with branches: whatever happens to them, the current stream is the same
        afterwards, no branch is open and no stream of one under capture."""
        stream = torch.cuda.current_stream()
        try:
            yield
        except BaseException:
            self._outer.clear()
            torch.cuda.set_stream(stream)
            # All of them: an interrupt may have come just before or after one counted as open.
            for body in reversed(self._bodies):
                self._library.abandon_branch(body.cuda_stream)
            raise

    def begin(self, count: torch.Tensor) -> None:
        """Opens a branch: what follows depends on `count` > 0.

        Args:
            count: [1] int32 on the device.

        Raises:
            BackendUnavailable: the driver refuses.
        """
        outer = torch.cuda.current_stream()
        if len(self._outer) == len(self._bodies):
            self._bodies.append(self._make_stream())
        body = self._bodies[len(self._outer)]
        if torch.cuda.is_current_stream_capturing():
            self._library.begin_branch(count.data_ptr(), outer.cuda_stream, body.cuda_stream)
        else:
            body.wait_stream(outer)
        self._outer.append(outer)
        torch.cuda.set_stream(body)

    def _make_stream(self) -> torch.cuda.Stream:
        """One of the current device, which is freed with this object."""
        address = self._library.make_stream()
        weakref.finalize(self, self._library.free_stream, address).atexit = False
        return torch.cuda.ExternalStream(address)

    def end(self) -> None:
        """Closes the branch that was opened last.

        Raises:
            BackendUnavailable: something that a branch cannot hold was launched in it.
        """
        body, outer = torch.cuda.current_stream(), self._outer.pop()
        is_capturing = torch.cuda.is_current_stream_capturing()
        torch.cuda.set_stream(outer)
        if is_capturing:
            self._library.end_branch(body.cuda_stream)
        else:
            outer.wait_stream(body)
