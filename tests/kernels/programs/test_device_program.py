"""Staged programs: which kernel runs, what a replay copies, and when a graph is captured."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sdengine.errors import BackendUnavailable
from sdengine.kernels import backends
from sdengine.kernels.programs import device_program
from sdengine.kernels.programs.device_program import StagedProgram, usable_kernels
from sdengine.kernels.programs.launch_chain import chained, is_chained
from sdengine.kernels.programs.memory import StagedMemory
from sdengine.kernels.programs.program import make_program

pytest.importorskip("triton")
if torch.cuda.is_available():
    pytest.skip("a CPU stands for the GPU here", allow_module_level=True)

CPU = torch.device("cpu")


def gather(memory: StagedMemory, program: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Adds a launch that packs one pending token of two sequences; its inputs and its result."""
    pending, num_seqs = memory.inputs(2), memory.inputs(1, fill=2)
    packed = memory.results(4)
    program.launch(
        "gather_pending",
        history=torch.tensor([[5, 6], [7, 8]], dtype=torch.int32),
        computed_lens=torch.ones(2, dtype=torch.int32),
        pending_lens=pending,
        num_seqs=num_seqs,
        pending_tokens=packed,
        cu_pending=memory.zeros(3, dtype=torch.int32),
    )
    return pending, num_seqs, packed


def test_a_replay_takes_inputs_in_and_results_out() -> None:
    memory = StagedMemory(CPU)
    program = make_program("triton", memory=memory)
    pending, _, packed = gather(memory, program)
    memory.host(pending)[:] = 1
    program.replay()
    assert memory.host(packed).tolist() == [6, 8, 0, 0]
    memory.host(pending)[0] = 0
    assert [name for name, _ in program.replay_timed()] == ["gather_pending"]
    assert memory.host(packed)[0] == 8


def test_a_graph_is_captured_once_after_a_run_without_sequences(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first run loads the kernels and must find nothing to do, or it would do it twice."""
    memory = StagedMemory(CPU)
    program = make_program("triton", memory=memory)
    pending, num_seqs, packed = gather(memory, program)
    memory.host(pending)[:] = 1
    captured = []

    def capture(run: Any) -> Any:
        captured.append((num_seqs.tolist(), packed.tolist()))
        return run

    monkeypatch.setattr(device_program, "capture_graph", capture)
    monkeypatch.setattr(device_program, "is_captured", lambda device: True)
    for _ in range(2):
        program.replay()
        assert memory.host(packed).tolist() == [6, 8, 0, 0]
    assert captured == [([0], [0, 0, 0, 0])]


def test_captures_of_two_threads_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    """All on the stream that is for captures, while nothing is collected; other threads may use the
    device."""
    threads: list[Thread] = []
    log: list[str] = []

    @contextmanager
    def capturing(graph: Any, stream: object, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local" and not gc.isenabled()
        streams.append(stream)
        log.append("begin")
        if not threads:
            threads.append(Thread(target=device_program.capture_graph, args=(lambda: None,)))
            threads[0].start()
            threads[0].join(0.1)
        yield
        log.append("end")

    streams: list[object] = []
    stand_for_a_gpu(monkeypatch, capturing, lambda: log.append("synchronize"))
    device_program.capture_graph(lambda: None)
    threads[0].join(10.0)
    assert log == ["synchronize", "begin", "end"] * 2 and streams == [("of", 3)] * 2
    assert gc.isenabled()


@pytest.mark.parametrize("failing", ["begin", "end"])
def test_a_capture_that_fails_does_not_leave_its_stream_behind(
    monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """torch leaves it only when the capture has ended well; what the thread launched on it later
    would be recorded in another engine's capture instead of run."""

    @contextmanager
    def capturing(graph: Any, stream: object, capture_error_mode: str) -> Iterator[None]:
        torch.cuda.set_stream(stream)  # type: ignore[arg-type]
        if failing == "begin":
            raise RuntimeError("it cannot begin")
        try:
            yield
        finally:
            raise RuntimeError("it was invalidated")

    current = stand_for_a_gpu(monkeypatch, capturing)
    with pytest.raises(RuntimeError):
        device_program.capture_graph(lambda: None)
    assert current == ["usual"] and gc.isenabled()
    monkeypatch.setattr(torch.cuda, "graph", lambda *_, **__: nullcontext())
    device_program.capture_graph(lambda: None)  # nobody holds the lock


def stand_for_a_gpu(
    monkeypatch: pytest.MonkeyPatch, graph: Any, synchronize: Callable[[], None] = lambda: None
) -> list[Any]:
    """Device 3, which captures through `graph`; returns its current stream, in a list."""
    current: list[Any] = ["usual"]
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: current.__setitem__(0, stream))
    monkeypatch.setattr(device_program, "_capture_stream", lambda device: ("of", device))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
    monkeypatch.setattr(torch.cuda, "graph", graph)
    return current


def test_ops_without_a_kernel_of_the_backend_run_as_the_device_s_other_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran: list[str] = []
    monkeypatch.setattr(device_program, "run_on_host", lambda spec, **args: ran.append(spec.name))
    memory = StagedMemory(CPU)
    program = StagedProgram("triton", memory)
    gather(memory, program)
    tokens, out = memory.zeros(1, dtype=torch.int32), memory.zeros(1, 4)
    one = torch.ones(1, dtype=torch.int32)
    program.launch("embed", tokens=tokens, weight=torch.ones(3, 4), out=out, num_rows=one)
    program.replay()
    assert ran == ["gather_pending"] and out.tolist() == [[1.0] * 4]


def test_a_gpu_needs_both_backends_and_says_which_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reasons = {"triton": None, "cuda": "backend 'cuda': the compiled library is missing"}
    monkeypatch.setattr(backends, "why_unavailable", reasons.get)
    with pytest.raises(BackendUnavailable, match=r"missing; .*'triton' needs triton and cuda"):
        usable_kernels("triton", torch.device("cuda", 0))
    with pytest.raises(BackendUnavailable, match=r"missing; .*'cuda' needs cuda and triton"):
        usable_kernels("cuda", CPU)
    assert usable_kernels("triton", CPU) == ("triton", "cpu")
    reasons["cuda"] = None
    assert usable_kernels("cuda", torch.device("cuda", 0)) == ("cuda", "triton")


def test_launches_of_a_program_may_overlap_and_others_may_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a kernel reads before it waits is written in time in a program alone."""
    seen = []
    kernel = SimpleNamespace(check=lambda **_: None, backends={})
    monkeypatch.setattr(device_program, "get_op", lambda _: kernel)
    monkeypatch.setattr(
        device_program.DeviceProgram, "_kernel", lambda *_: lambda **_: seen.append(is_chained())
    )
    monkeypatch.setattr(backends, "why_unavailable", lambda _: None)
    program = device_program.DeviceProgram("triton")
    program.launch("any")
    program.replay()
    assert seen == [True] and not is_chained()
    with pytest.raises(ZeroDivisionError), chained():
        raise ZeroDivisionError
    assert not is_chained()
