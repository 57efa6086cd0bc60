"""Every op in a CUDA graph: captured without a host synchronisation, replayed on new contents."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from benchmarks.kernels.harness import UNCOMPARABLE_OPS
from sdengine.kernels.cuda_library import load_cuda
from sdengine.kernels.programs.device_program import capture_graph
from sdengine.kernels.programs.graph_branches import GraphBranches
from sdengine.kernels.programs.program import make_program, run_op
from sdengine.kernels.registry import OP_NAMES, get_op
from sdengine.kernels.torch_library import OPERATORS, device_backend, flatten
from sdengine.kernels.tree_verify import walk_scratch_size
from tests.gpu.on_device import launch, needs_a_device, require_cuda_library, to_device
from tests.kernels.test_torch_library import small_args

pytestmark = needs_a_device
LAUNCHES = [(op, backend) for op in OP_NAMES for backend in get_op(op).backends]
COMPARABLE = [launch for launch in LAUNCHES if launch[0] not in UNCOMPARABLE_OPS]


def device_args(op: str) -> dict[str, Any]:
    """The op's first microbenchmark case on the device."""
    args = to_device(small_args(op))
    if op == "tree_verify":
        size = walk_scratch_size(args["tree"].batch_size)
        args["scratch"] = torch.zeros(size, dtype=torch.int64, device="cuda")
    return args


def captured(op: str, backend: str, args: dict[str, Any]) -> torch.cuda.CUDAGraph:
    """A graph of one launch, whose kernels were compiled and loaded before."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        launch(op, backend, args)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch(op, backend, args)
    return graph


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Equal to the bit, NaN included."""
    return torch.equal(left.contiguous().view(torch.uint8), right.contiguous().view(torch.uint8))


@pytest.mark.parametrize("op,backend", COMPARABLE)
def test_a_replay_does_what_a_launch_does(op: str, backend: str) -> None:
    if backend == "cuda":
        require_cuda_library()
    torch.manual_seed(0)
    graph_args = device_args(op)
    first = {name: value.clone() for name, value in tensors(op, graph_args).items()}
    graph = captured(op, backend, graph_args)
    torch.manual_seed(0)
    plain_args = device_args(op)
    for name, value in tensors(op, graph_args).items():
        value.copy_(first[name])
        tensors(op, plain_args)[name].copy_(first[name])
    graph.replay()
    launch(op, backend, plain_args)
    torch.cuda.synchronize()
    for name, value in tensors(op, plain_args).items():
        assert name == "scratch" or same(tensors(op, graph_args)[name], value), name


def tensors(op: str, args: dict[str, Any]) -> dict[str, torch.Tensor]:
    """All tensors among the arguments, those of structs too."""
    flat = flatten(op, args)
    return {name: value for name, value in flat.items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize("op,backend", LAUNCHES)
def test_a_launch_does_not_wait_for_the_device(op: str, backend: str) -> None:
    """torch notices its own synchronising calls; that ours make none shows in the capture above."""
    if backend == "cuda":
        require_cuda_library()
    args = device_args(op)
    launch(op, backend, args)
    torch.cuda.set_sync_debug_mode("error")
    try:
        launch(op, backend, args)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_replay_reads_sizes_that_changed_since_the_capture() -> None:
    args = to_device(small_args("silu_and_mul"))
    rows = args["x"].shape[0]
    graph = captured("silu_and_mul", "triton", args)
    for live in (0, rows):
        args["num_rows"].fill_(live)
        args["out"].fill_(-7.0)
        graph.replay()
        assert int((args["out"] != -7.0).any(1).sum()) == live


@pytest.mark.parametrize("outer,inner", [(1, 1), (1, 0), (0, 1), (0, 0)])
def test_a_graph_skips_branches_whose_count_is_0(outer: int, inner: int) -> None:
    """Launches of timestamps, which write whatever the counts are; one graph for all counts."""
    require_cuda_library()
    counts = torch.zeros(2, dtype=torch.int32, device="cuda")
    times = torch.zeros(4, dtype=torch.int64, device="cuda")
    program = make_program("cuda", branches=GraphBranches(load_cuda()))
    program.launch("timestamp", out_ns=times[0:1])
    with program.only_if(counts[0:1]):
        program.launch("timestamp", out_ns=times[1:2])
        with program.only_if(counts[1:2]):
            program.launch("timestamp", out_ns=times[2:3])
    program.launch("timestamp", out_ns=times[3:4])
    program.replay()
    replay = capture_graph(program.replay)
    for wanted in ((0, 0), (outer, inner)):
        counts.copy_(torch.tensor(wanted, dtype=torch.int32))
        times.zero_()
        replay()
        ran = (times > 0).tolist()
        assert ran == [True, wanted[0] == 1, wanted == (1, 1), True]


def test_a_capture_survives_what_other_threads_do() -> None:
    """They allocate, launch and wait: a service's own work, or another engine's. Not the default
    generator of torch, which refuses whoever asks it meanwhile."""
    args = to_device(small_args("silu_and_mul"))
    args["num_rows"].fill_(len(args["out"]))
    launch("silu_and_mul", "triton", args)
    expected = args["out"].clone()
    is_over, rounds, failures = threading.Event(), [0], []

    def work() -> None:
        try:
            while not is_over.is_set():
                torch.ones(1000 + 4096 * (rounds[0] % 64), device="cuda").sum().item()
                rounds[0] += 1
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        replays = [capture_graph(lambda: launch("silu_and_mul", "triton", args)) for _ in range(20)]
    finally:
        is_over.set()
        thread.join()
    assert not failures and rounds[0] > 0
    args["out"].zero_()
    replays[-1]()
    assert torch.equal(args["out"], expected)


@pytest.mark.parametrize("op", [op for op in OPERATORS if op not in UNCOMPARABLE_OPS])
def test_operators_launch_the_device_kernels(op: str) -> None:
    if device_backend(get_op(op)) == "cuda":
        require_cuda_library()
    torch.manual_seed(0)
    args = device_args(op)
    before = {name: value.clone() for name, value in tensors(op, args).items()}
    OPERATORS[op](**flatten(op, args))
    through = {name: value.clone() for name, value in tensors(op, args).items()}
    for name, value in tensors(op, args).items():
        value.copy_(before[name])
    backend = device_backend(get_op(op))
    assert backend is not None
    launch(op, backend, args)
    for name, value in tensors(op, args).items():
        assert name == "scratch" or same(through[name], value), name


def test_an_operator_compiles_into_one_graph() -> None:
    args = flatten("silu_and_mul", to_device(small_args("silu_and_mul")))

    def doubled(x: torch.Tensor, out: torch.Tensor, num_rows: torch.Tensor) -> torch.Tensor:
        torch.ops.sdengine.silu_and_mul(x=x, out=out, num_rows=num_rows)
        return 2 * out

    compiled = torch.compile(doubled, backend="aot_eager", fullgraph=True)
    got = compiled(**{name: value.clone() for name, value in args.items()})
    assert torch.equal(got, doubled(**args)) and bool(got.any())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
@pytest.mark.parametrize("op", ["silu_and_mul", "gather_pending"])
def test_kernels_run_where_their_tensors_are(op: str) -> None:
    """Whatever device is current."""
    args = small_args(op)
    expected = small_args(op)
    moved = {k: v.to("cuda:1") if isinstance(v, torch.Tensor) else v for k, v in args.items()}
    backend = device_backend(get_op(op))
    assert backend is not None
    if backend == "cuda":
        require_cuda_library()
    for name, value in moved.items():
        if isinstance(value, torch.Tensor):
            expected[name] = value.cpu()
    with torch.cuda.device(0):
        run_op(op, backend, **moved)
    run_op(op, "reference", **expected)
    for name in get_op(op).outputs:
        assert torch.allclose(moved[name].cpu(), expected[name])
