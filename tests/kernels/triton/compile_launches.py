"""Compiles launch plans for an architecture without a device, in a process that interprets nothing.

`python -m tests.kernels.triton.compile_launches CASE:ARCH ...` prints one JSON line per kernel.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sdengine.kernels import token_logprobs, tree_attention
from sdengine.kernels.dense_weight import DenseWeight
from sdengine.kernels.programs.launch_chain import chained
from sdengine.kernels.registry import get_op
from sdengine.kernels.spec import Args
from sdengine.kernels.token_tree import DraftTree
from sdengine.kernels.triton.assembler import use_sound_assembler
from sdengine.kernels.triton.launch import Launch, plan_op
from tests.kernels.triton.sass import unset_registers

POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


def attention(rows: int, heads: int, dim: int, dtype: torch.dtype) -> Callable[[], Args]:
    def args() -> Args:
        case = tree_attention.bench_case(rows, 2048, heads, 8, dim, dtype)
        return {**case.args, "out": case.args["out"].to(dtype)}

    return args


def one_pass_attention(rows: int, heads: int, dim: int) -> Callable[[], Args]:
    """As an engine's: scratch for all rows, so that there are programs enough to go on."""

    def args() -> Args:
        made = attention(rows, heads, dim, BF16)()
        size = tree_attention.split_scratch_floats(rows, heads, dim, 2048)
        return {**made, "scratch": torch.empty(size)}

    return args


def ones_attention() -> Args:
    """One row of one sequence with one block, in passes of one row: the second begins at row 1."""
    args = tree_attention.bench_case(2, 2, 8, 8, 64, torch.bfloat16).args
    return {**args, "scratch": torch.empty(8 * 66)}


def first_of(op: str, vocab: int) -> Args:
    """The op's first microbenchmark case, one row, with another vocabulary."""
    return {**bench(op, 0)(), "logits": torch.empty(1, vocab)}


def linear(
    rows: int,
    gated: bool,
    dtype: torch.dtype,
    features: int = 4096,
    inputs: int = 2048,
    scratch: int | None = None,
    x_dtype: torch.dtype | None = None,
) -> Callable[[], Args]:
    """A product as an engine's: x is as wide as the weight, unless `x_dtype` says otherwise."""

    def args() -> Args:
        matrix = torch.empty(features, inputs, dtype=dtype)
        return {
            "x": torch.empty(rows, inputs, dtype=x_dtype or dtype),
            "weight": DenseWeight(matrix, gated),
            "out": torch.empty(rows, features // 2, dtype=dtype)
            if gated
            else torch.empty(rows, features),
            "num_rows": torch.empty(1, dtype=torch.int32),
            "activation": "silu_gate" if gated else None,
            "scratch": None if scratch is None else torch.empty(scratch),
            "counters": torch.zeros(1024, dtype=torch.int32),
        }

    return args


def bench(op: str, index: int) -> Callable[[], Args]:
    """Arguments of one of an op's own microbenchmark cases."""

    def args() -> Args:
        cases = get_op(op).bench_cases
        assert cases is not None
        return [case.args for _, case in zip(range(index + 1), cases())][-1]

    return args


def penalties() -> Args:
    """The op's large case, its rows nodes of a tree."""
    args = bench("penalize", 1)()
    row_node = torch.zeros(len(args["row_seq"]), dtype=torch.int32)
    tree = DraftTree.allocate(1, 64)
    nodes = {"row_node": row_node, "node_tokens": tree.tokens, "node_parents": tree.parents}
    return {**args, **nodes}


BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
CASES: dict[str, tuple[str, Callable[[], Args]]] = {
    "attention-tree": ("tree_attention", attention(64, 32, 128, BF16)),
    "attention-row": ("tree_attention", attention(1, 32, 128, BF16)),
    "attention-decode": ("tree_attention", attention(8, 32, 128, BF16)),
    "attention-narrow": ("tree_attention", attention(64, 64, 64, BF16)),
    "attention-wide": ("tree_attention", one_pass_attention(64, 32, 128)),
    "attention-large": ("tree_attention", one_pass_attention(64, 32, 256)),
    "attention-f16": ("tree_attention", attention(64, 32, 128, F16)),
    "attention-f32": ("tree_attention", attention(64, 32, 128, F32)),
    # Sizes of 1 become constants of a kernel, whose methods a tensor has and they have not.
    "attention-one": ("tree_attention", ones_attention),
    "linear-one": ("linear", linear(1, False, BF16, 1, 1, x_dtype=F32)),
    "sample-one": ("sample", lambda: first_of("sample", vocab=1)),
    "draft_topk-one": ("draft_topk", lambda: first_of("draft_topk", vocab=1)),
    "linear-tree": ("linear", linear(64, False, BF16)),
    "linear-row": ("linear", linear(1, False, BF16)),
    "linear-gated": ("linear", linear(64, True, BF16)),
    "linear-parts": ("linear", linear(64, False, BF16, 2048, 2048, scratch=1 << 20)),
    # Rows of trees, by what the table of tiles distinguishes.
    "linear-65-cut": ("linear", linear(65, False, BF16, 4096, 4096, scratch=1 << 22)),
    "linear-65-small": ("linear", linear(65, False, BF16, 2048, 2048, scratch=1 << 22)),
    "linear-65-head": ("linear", linear(65, False, BF16, 128256, 2048)),
    "linear-65-gated": ("linear", linear(65, True, BF16, 28672, 4096)),
    "linear-129-cut": ("linear", linear(129, False, BF16, 6144, 4096, scratch=1 << 22)),
    "linear-129-small": ("linear", linear(129, False, BF16, 2048, 2048, scratch=1 << 22)),
    "linear-129-gated": ("linear", linear(129, True, BF16, 28672, 4096)),
    "linear-160-small": ("linear", linear(160, False, BF16, 2048, 2048)),
    "linear-in-parts": ("linear", linear(256, False, BF16, 2048, 2048)),
    "linear-f16": ("linear", linear(64, True, F16)),
    "linear-f32": ("linear", linear(64, False, F32)),
    "rms_norm": ("rms_norm", bench("rms_norm", 1)),
    "rope_kv_append": ("rope_kv_append", bench("rope_kv_append", 2)),
    "silu_and_mul": ("silu_and_mul", bench("silu_and_mul", 1)),
    "embed": ("embed", bench("embed", 1)),
    "penalize": ("penalize", penalties),
    "sample": ("sample", bench("sample", 5)),
    "draft_topk-target": ("draft_topk", bench("draft_topk", 1)),
    "draft_topk-fresh": ("draft_topk", bench("draft_topk", 2)),
    "token_logprobs": ("token_logprobs", bench("token_logprobs", 2)),
    "token_logprobs-one": ("token_logprobs", lambda: token_logprobs.bench_case(1, 1, 0).args),
    "kv_compact": ("kv_compact", bench("kv_compact", 1)),
}


@dataclass(frozen=True, slots=True)
class Compiled:
    """What the compiler made of one launch.

    Args:
        case, arch, kernel: Which.
        shared: Bytes of shared memory.
        stack: Bytes of stack of a thread; spilled registers live there.
        instructions: SASS instructions of interest -> count.
        key_layouts: Layouts of the float32 tiles that are reduced along axis 0, as lanes of that
            axis alone: the order in which attention adds up its keys.
        unset: Instructions that read a uniform register which nothing has set.
        fuses: Whether the PTX holds a fused multiply-add (divisions are expanded later).
    """

    case: str
    arch: int
    kernel: str
    shared: int
    stack: int
    registers: int
    instructions: dict[str, int]
    key_layouts: list[str]
    fuses: bool
    unset: list[str] = field(default_factory=list)


def signature_of(launch: Launch) -> tuple[dict[str, str], dict[str, Any], dict[Any, Any]]:
    """Types, constants and divisibility of a launch's arguments, as the run-time would see them."""
    signature, constants, attributes = {}, dict(launch.constants), {}
    for index, name in enumerate(launch.kernel.arg_names):
        value = launch.arguments.get(name)
        if name in constants or value is None or (isinstance(value, int) and value == 1):
            signature[name] = "constexpr"
            constants.setdefault(name, value)
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            is_tensor = isinstance(value, torch.Tensor)
            signature[name] = POINTERS[value.dtype] if is_tensor else "i32"
            if is_tensor or value % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def compile_launch(case: str, launch: Launch, arch: int) -> Compiled:
    signature, constants, attributes = signature_of(launch)
    source = ASTSource(launch.kernel, signature, constexprs=constants, attrs=attributes)
    options = {
        "num_warps": launch.num_warps,
        "num_stages": launch.num_stages,
        "enable_fp_fusion": launch.fp_fusion,
        "launch_pdl": launch.overlaps,
        "maxnreg": launch.max_registers,
    }
    kernel = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    usage, sass = (cuobjdump(kernel.asm["cubin"], flag) for flag in ("-res-usage", "-sass"))
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    names = re.findall(r"\b(HMMA|HGMMA|UTCHMMA|LDL|STL|FFMA|FMUL|FADD|UBLKPF)\b", sass)
    return Compiled(
        case,
        arch,
        launch.kernel.fn.__name__,
        kernel.metadata.shared,
        int(found[2]),
        int(found[1]),
        {name: names.count(name) for name in sorted(set(names))},
        sorted(set(key_layouts(kernel.asm["ttgir"]))),
        "fma." in kernel.asm["ptx"],
        unset_registers(sass),
    )


def cuobjdump(cubin: bytes, flag: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, flag, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def key_layouts(ttgir: str) -> list[str]:
    """Axis 0 of the layout of every [64, rows] tile that is reduced along it."""
    ends = r"\n *\}\) : \(tensor<64x\d+xf32, (#\w+)>\)"
    reduced = re.findall(r'"tt\.reduce"\(%\S+\) <\{axis = 0[^"]*?' + ends, ttgir)
    return [axis_0(re.findall(rf"^{name} = (.*)$", ttgir, re.M)[0]) for name in reduced]


def axis_0(layout: str) -> str:
    """The part of a layout that says who holds which index of axis 0."""
    if "linear" in layout:
        parts = []
        for kind in ("register", "lane", "warp"):
            firsts = re.findall(r"\[(\d+), \d+\]", layout_part(layout, kind))
            parts.append(f"{kind} {[int(first) for first in firsts if first != '0']}")
        return ", ".join(parts)
    if "nvidia_mma" in layout:
        warps = re.search(r"warpsPerCTA = \[(\d+), ", layout)
        version = re.search(r"versionMajor = (\d+)", layout)
        assert warps and version
        return f"mma v{version[1]}, {warps[1]} warps"
    sizes = re.findall(r"\[(\d+), \d+\]", layout)[:3]
    return f"blocked, {' x '.join(sizes)}"


def layout_part(layout: str, kind: str) -> str:
    """`[[1, 0], [2, 0]]` of `lane = [[1, 0], [2, 0]], warp = ...`."""
    found = re.search(rf"{kind} = (\[(?:\[\d+, \d+\](?:, )?)*\])", layout)
    assert found, layout
    return found[1]


def main() -> None:
    use_sound_assembler()
    for wanted in sys.argv[1:]:
        case, arch = wanted.split(":")
        op, make_args = CASES[case]
        with chained():
            launches = plan_op(op, int(arch), make_args())
        # Passes repeat the same two kernels; of several, the last has a first row other than 0.
        for launch in launches[-2:]:
            print(json.dumps(asdict(compile_launch(case, launch, int(arch)))), flush=True)


if __name__ == "__main__":
    main()
