"""Slice attention: tree_attention beside its floor, torch's SDPA and FlexAttention with the same
mask, FlashInfer's custom-mask kernel and flash-attn where they are installed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.gpu.cases import expect_close
from benchmarks.gpu.records import Recorder, Skip, slice_main
from benchmarks.gpu.timing import Limits, Stopwatch, measure_limits
from benchmarks.gpu.trees import BLOCK_SIZE, AttentionCase, AttentionInputs, make_inputs
from sdengine.kernels.registry import get_op

CASES = (
    AttentionCase(1, 63, 8192),  # 34 MB of cache
    AttentionCase(1, 0, 8192),
    AttentionCase(1, 63, 32768),
    AttentionCase(1, 127, 8192),
    AttentionCase(8, 15, 8192),
    AttentionCase(32, 7, 2048),
    AttentionCase(1, 63, 1024),
    AttentionCase(1, 15, 2048, kv_heads=8, dim=64),
)
Contestant = Callable[[AttentionInputs], Callable[[], torch.Tensor]]


def ours(inputs: AttentionInputs) -> Callable[[], torch.Tensor]:
    """The Triton kernel."""
    launch = get_op("tree_attention").backends["triton"]

    def run() -> torch.Tensor:
        launch(**inputs.args)
        return inputs.args["out"]

    return run


def sdpa(inputs: AttentionInputs) -> Callable[[], torch.Tensor]:
    """torch's scaled_dot_product_attention with a boolean mask."""
    mask = inputs.visible[:, None]
    return lambda: F.scaled_dot_product_attention(
        inputs.query, inputs.keys, inputs.values, mask, enable_gqa=True
    )


def flex(inputs: AttentionInputs) -> Callable[[], torch.Tensor]:
    """FlexAttention, compiled, with a block mask."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    visible = inputs.visible

    def is_seen(b: Any, _h: Any, row: Any, key: Any) -> Any:
        return visible[b, row, key]

    batch, rows, keys = visible.shape
    mask = create_block_mask(is_seen, batch, None, rows, keys, device=visible.device)
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda: compiled(
        inputs.query, inputs.keys, inputs.values, block_mask=mask, enable_gqa=True
    )


def flashinfer(inputs: AttentionInputs) -> Callable[[], torch.Tensor]:
    """FlashInfer's paged prefill with a custom mask, planned beforehand."""
    try:
        import flashinfer as library
    except ImportError as error:
        raise Skip(f"flashinfer is not installed ({error})") from None
    args = inputs.args
    batch, rows, keys = inputs.visible.shape
    blocks = -(-keys // BLOCK_SIZE)
    device = inputs.query.device
    count = partial(torch.arange, batch + 1, dtype=torch.int32, device=device)
    workspace = torch.empty(256 << 20, dtype=torch.uint8, device=device)
    wrapper = library.BatchPrefillWithPagedKVCacheWrapper(workspace, "HND")
    wrapper.plan(
        count() * rows,
        count() * blocks,
        args["block_tables"].reshape(-1),
        torch.full((batch,), (keys - 1) % BLOCK_SIZE + 1, dtype=torch.int32, device=device),
        args["num_heads"],
        args["num_kv_heads"],
        args["head_dim"],
        BLOCK_SIZE,
        custom_mask=inputs.visible.reshape(-1),
        q_data_type=torch.bfloat16,
    )
    query = inputs.query.transpose(1, 2).reshape(batch * rows, args["num_heads"], args["head_dim"])
    run = wrapper.run
    return lambda: run(query, args["kv_cache"]).view(batch, rows, *query.shape[1:]).transpose(1, 2)


def flash_attn(inputs: AttentionInputs) -> Callable[[], torch.Tensor]:
    """flash-attn, causal: the same bytes, but no tree; a bound, not the same function."""
    try:
        from flash_attn import flash_attn_func
    except ImportError as error:
        raise Skip(f"flash-attn is not installed ({error})") from None
    query, keys, values = (
        t.transpose(1, 2).contiguous() for t in (inputs.query, inputs.keys, inputs.values)
    )
    return lambda: flash_attn_func(query, keys, values, causal=True).transpose(1, 2)


# Contestants by column; those of COMPARED compute the same function and are checked.
CONTESTANTS: dict[str, Contestant] = {
    "sdengine": ours,
    "SDPA": sdpa,
    "FlexAttention": flex,
    "FlashInfer": flashinfer,
    "flash-attn causal": flash_attn,
}
COMPARED = ("SDPA", "FlexAttention", "FlashInfer")


def as_rows(result: torch.Tensor, inputs: AttentionInputs) -> torch.Tensor:
    """A result in the layout of `out`."""
    return result if result.dim() == 2 else result.transpose(1, 2).reshape(inputs.args["out"].shape)


def prepared(name: str, inputs: AttentionInputs) -> Callable[[], torch.Tensor]:
    """A contestant that has run once; what others' kernels do not do is no failure of ours."""
    try:
        run = CONTESTANTS[name](inputs)
        run()
        torch.cuda.synchronize()
    except Skip:
        raise
    except Exception as error:
        if name == "sdengine":
            raise
        raise Skip(f"{name} does not run here: {type(error).__name__}: {error}") from None
    return run


def measure(case: AttentionCase, name: str, watch: Stopwatch, limits: Limits) -> dict[str, Any]:
    """Checks one contestant against SDPA in float32, then times it.

    Raises:
        Skip: somebody else's kernel is not there or does not run this case.
    """
    inputs = make_inputs(case)
    run = prepared(name, inputs)
    if name in ("sdengine", *COMPARED):
        mask = inputs.visible[:, None]
        wide = (t.float() for t in (inputs.query, inputs.keys, inputs.values))
        expected = F.scaled_dot_product_attention(*wide, mask, enable_gqa=True)
        expect_close(name, as_rows(run(), inputs), as_rows(expected, inputs))
    timing = watch.time(run)
    return {**timing.values(), **limits.beside(timing, case.bytes_moved, inputs.operations)}


def run(recorder: Recorder, _: argparse.Namespace) -> None:
    """Every contestant on every case, ours first."""
    limits, watch = measure_limits(), Stopwatch()
    for case in CASES:
        for name in CONTESTANTS:
            recorder.run(f"{case.label} {name}", partial(measure, case, name, watch, limits))


if __name__ == "__main__":
    sys.exit(slice_main(run, case_limit_s=120.0))
