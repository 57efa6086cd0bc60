"""Arguments of ops on the device, and the check that comes before any timing."""

from __future__ import annotations

import copy

import torch

from benchmarks.gpu.timing import Run, Stopwatch, Timing, nothing
from benchmarks.kernels.harness import UNCOMPARABLE_OPS, WrongResult
from sdengine.kernels.programs.device_program import run_on_host
from sdengine.kernels.registry import get_op
from sdengine.kernels.spec import Args
from sdengine.kernels.torch_library import flatten
from sdengine.kernels.tree_attention import device_scratch_floats
from sdengine.kernels.tree_verify import walk_scratch_size
from sdengine.kernels.triton.cases import moved
from sdengine.kernels.triton.linear_tiles import MAX_PART_ROWS, SPLITS
from sdengine.runner.forward import NUM_COUNTERS

# Ops whose reference in Python takes minutes on the cases of a served model; their kernels on the
# CPU are held to it elsewhere.
CHECKED_BY_CPU = ("tree_verify",)
RMS_TOLERANCE = 1e-2  # relative; bfloat16 operands make 2e-3 to 5e-3, a wrong index makes 1
# Ops that work on what an earlier launch left; each sample gets its first state back.
STATEFUL = ("tree_expand", "tree_select", "commit_plan", "kv_compact", "penalize", "rope_kv_append")
# Of `linear`: rows of the most parts that K is cut into.
MOST_PARTS = max(split.parts for splits in SPLITS.values() for split in splits)
SCRATCH_ROWS = MOST_PARTS * MAX_PART_ROWS


def device_args(op: str, args: Args, device: str | torch.device = "cuda") -> Args:
    """Arguments of an op on the device, with the scratch that only a device needs."""
    found = {name: moved(value, device) for name, value in args.items()}
    if op == "tree_verify" and args.get("target_tokens") is None:
        size = walk_scratch_size(args["tree"].batch_size)
        found["scratch"] = torch.zeros(size, dtype=torch.int64, device=device)
    if op == "linear":
        features = args["weight"].num_outputs
        found["scratch"] = torch.empty(SCRATCH_ROWS * features, device=device)
        found["counters"] = torch.zeros(NUM_COUNTERS, dtype=torch.int32, device=device)
    if op == "tree_attention":
        context = args["block_tables"].shape[1] * args["kv_cache"].shape[3]
        heads, dim = args["num_heads"], args["head_dim"]
        floats = device_scratch_floats(len(args["qkv"]), heads, dim, context)
        found["scratch"] = torch.empty(floats, device=device)
    return found


def is_repeatable(op: str) -> bool:
    """Whether launches of an op one after the other do the same work."""
    return op not in STATEFUL


def time_launch(op: str, args: Args, run: Run, watch: Stopwatch) -> Timing:
    """Times what `run` does to an op's arguments on the device, which get their state back."""
    written = list(tensors_of(op, args, get_op(op).outputs).values())
    first = [tensor.clone() for tensor in written]

    def restore() -> None:
        for tensor, value in zip(written, first):
            tensor.copy_(value)

    return watch.time(run, nothing if is_repeatable(op) else restore, is_repeatable(op))


def tensors_of(op: str, args: Args, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Tensors of some of an op's arguments, those inside of structs too."""
    chosen = {name: args[name] for name in names if args.get(name) is not None}
    flat = flatten(op, chosen)
    return {name: value for name, value in flat.items() if isinstance(value, torch.Tensor)}


def expect_close(label: str, ours: torch.Tensor, expected: torch.Tensor) -> None:
    """Integers equal, floats within RMS_TOLERANCE of the root mean square.

    Raises:
        WrongResult: they are not.
    """
    ours, expected = ours.cpu(), expected.cpu()
    if not expected.is_floating_point():
        wrong = int((ours != expected).sum())
        if wrong:
            raise WrongResult(f"{label}: {wrong} of {ours.numel()} integers differ")
        return
    ours, expected = ours.double().nan_to_num(0), expected.double().nan_to_num(0)
    error = float((ours - expected).square().mean().sqrt())
    allowed = RMS_TOLERANCE * float(expected.square().mean().sqrt())
    if not error <= allowed:
        raise WrongResult(f"{label}: RMS error {error:.3g}, allowed {allowed:.3g}")


def check(op: str, backend: str, args: Args, device: str | torch.device = "cuda") -> None:
    """Runs kernel and reference on copies of arguments of the CPU; a cache is filled first.

    Raises:
        WrongResult: they disagree.
    """
    spec = get_op(op)
    if op == "kv_compact":  # its cases are zeros, which hide every mistake
        args["kv_cache"].view(torch.int16).random_(0, 1000)
    expected = copy.deepcopy(args)
    mine = device_args(op, args, device)
    spec.backends[backend](**mine)
    if op in UNCOMPARABLE_OPS:
        return
    if op in CHECKED_BY_CPU:
        run_on_host(spec, **expected)
    else:
        spec.reference(**expected)
    wanted = tensors_of(op, dense(expected), spec.outputs)
    for name, tensor in tensors_of(op, mine, spec.outputs).items():
        if name not in unsettled_outputs(op, args):
            expect_close(f"{op} {name}", tensor, wanted[name])


def unsettled_outputs(op: str, args: Args) -> tuple[str, ...]:
    """Outputs that differ from run to run on a device. The rows of a wide layer without a frontier
    all belong to one root, where each notes itself: any of them may be the last."""
    if op != "tree_expand" or args["frontier_nodes"] is not None:
        return ()
    num_rows, batch_size = len(args["candidate_tokens"]), args["tree"].batch_size
    return ("tree_proposal_rows",) if num_rows > batch_size else ()


def dense(args: Args) -> Args:
    """Arguments whose weights an operator takes."""
    return {name: moved(value, "cpu") for name, value in args.items()}
