"""What a kernel is timed beside, by name: what a user of torch would write, or the op's reference.

`torch` exists where plain torch does the same work in a few calls; elsewhere only `reference` does,
which is written to be right and not to be fast: its times say little, so it must be asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from sdengine.kernels.spec import Op

__all__ = ["BASELINES", "baseline"]

BASELINES = ("torch", "reference", "none")
Args = dict[str, Any]


def baseline(name: str, op: Op, args: Args) -> Callable[[], object] | None:
    """The function to time; None where there is none of that name for the op."""
    if name == "reference":
        return lambda: op.reference(**args)
    make = _TORCH.get(op.name)
    return None if name == "none" or make is None else make(args)


def _linear(args: Args) -> Callable[[], object]:
    """F.linear in the weight's dtype on the plain matrix, and the SiLU gate where the case has
    one."""
    dense = args["weight"].unpack()
    x = args["x"].to(dense.dtype)
    if args["activation"] is None:
        return lambda: F.linear(x, dense)

    def gated() -> torch.Tensor:
        gate, up = F.linear(x, dense).chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    return gated


def _embed(args: Args) -> Callable[[], object]:
    tokens, weight = args["tokens"].long(), args["weight"]
    return lambda: F.embedding(tokens, weight).float()


def _rms_norm(args: Args) -> Callable[[], object]:
    x, weight, eps = args["x"], args["weight"], args["eps"]
    return lambda: F.rms_norm(x, weight.shape, weight, eps)


def _rope_kv_append(args: Args) -> Callable[[], object]:
    """Rotation of q and k by halves, then a scatter of k and v by block and slot."""
    heads, kv_heads, dim = (args[k] for k in ("num_heads", "num_kv_heads", "head_dim"))
    qkv, cache = args["qkv"].view(-1, heads + 2 * kv_heads, dim), args["kv_cache"]
    cos, sin = args["cos_sin"][args["positions"].long()][:, None].unbind(2)
    slots, size = args["slots"].long(), cache.shape[3]
    block, slot = slots // size, slots % size

    def rotate_and_scatter() -> torch.Tensor:
        first, second = qkv[:, : heads + kv_heads].chunk(2, dim=-1)
        rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
        cache[block, 0, :, slot] = rotated[:, heads:].to(cache.dtype)
        cache[block, 1, :, slot] = qkv[:, heads + kv_heads :].to(cache.dtype)
        return rotated[:, :heads]

    return rotate_and_scatter


def _silu_and_mul(args: Args) -> Callable[[], object]:
    gate, up = args["x"].chunk(2, dim=-1)
    return lambda: F.silu(gate) * up


def _tree_attention(args: Args) -> Callable[[], object]:
    """Scaled dot-product attention over keys and values that were gathered before, chain rows:
    torch gets them side by side, and a mask."""
    heads, kv_heads, dim = (args[k] for k in ("num_heads", "num_kv_heads", "head_dim"))
    cache = args["kv_cache"][args["block_tables"][0].long()]
    visible = args["batch"].visible_lens
    context, rows = int(visible.max()), len(visible)
    flat = cache.transpose(0, 1).transpose(1, 2).reshape(2, kv_heads, -1, dim)[:, :, :context]
    k, v = (t.repeat_interleave(heads // kv_heads, dim=0)[None].contiguous() for t in flat)
    q = args["qkv"][:, : heads * dim].view(rows, heads, dim).transpose(0, 1)[None].to(k.dtype)
    mask = (torch.arange(context, device=q.device) < visible.view(-1, 1))[None, None]
    return lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _sample(args: Args) -> Callable[[], object]:
    """Temperature, softmax and one draw a row; torch's own filters would cost more."""
    logits, temperature = args["logits"], args["sampling"].temperature
    return lambda: torch.multinomial((logits / temperature).softmax(-1), 1)


def _draft_topk(args: Args) -> Callable[[], object]:
    """Softmax and top-k with fresh Gumbel noise."""
    logits, count = args["logits"], args["out_tokens"].shape[1]

    def draw() -> object:
        noisy = logits - torch.empty_like(logits).exponential_().log_()
        return noisy.softmax(-1).topk(count)

    return draw


def _kv_compact(args: Args) -> Callable[[], object]:
    """Gather and scatter of whole entries by flat index."""
    cache, tables = args["kv_cache"], args["block_tables"].long()
    size = cache.shape[4]
    count = partial(torch.arange, device=cache.device)
    source, start = args["moves"].source.long(), args["moves"].dst_start.long()
    target = start[:, None] + count(source.shape[1])
    rows = count(len(tables))[:, None]
    from_block, from_slot = tables[rows, source // size], source % size
    to_block, to_slot = tables[rows, target // size], target % size

    def move() -> None:
        cache[:, to_block, :, :, to_slot] = cache[:, from_block, :, :, from_slot]

    return move


_TORCH: dict[str, Callable[[Args], Callable[[], object]]] = {
    "linear": _linear,
    "embed": _embed,
    "rms_norm": _rms_norm,
    "rope_kv_append": _rope_kv_append,
    "silu_and_mul": _silu_and_mul,
    "tree_attention": _tree_attention,
    "sample": _sample,
    "draft_topk": _draft_topk,
    "kv_compact": _kv_compact,
}
