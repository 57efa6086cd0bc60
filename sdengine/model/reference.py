"""The forward pass in plain torch: slow, short, and the oracle of every kernel and engine test.

Rows are query tokens of one sequence. Which row sees which is an explicit mask, so that a tree is
checked with the same code as a chain.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch.nn.functional import linear, silu

from sdengine.model.config import ModelConfig
from sdengine.model.rope import cos_sin_table

__all__ = ["Weights", "load_weights", "reference_logits"]


class Weights(Protocol):
    """Whatever hands out canonical weights by name, such as a Checkpoint."""

    def weight(self, name: str) -> torch.Tensor:
        """Return the weight of that canonical name."""
        ...

    def names(self) -> list[str]:
        """Return all canonical names."""
        ...


def load_weights(source: Weights, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Read all weights into a dict, converted: for models small enough to be tested with."""
    return {name: source.weight(name).to(dtype, copy=True) for name in source.names()}


@torch.no_grad()
def reference_logits(
    weights: Mapping[str, torch.Tensor],
    config: ModelConfig,
    tokens: torch.Tensor,
    positions: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    *,
    model_len: int | None = None,
) -> torch.Tensor:
    """Score every row of one sequence.

    Args:
        weights: canonical name -> tensor, all of one dtype, in which the model computes (norms and
            softmax in fp32).
        config: the model.
        tokens: int64 [N].
        positions: int64 [N]; None for 0 .. N - 1.
        mask: bool [N, N], true where row i sees row j (itself included); None for causal. A
            sliding window hides, on top of it, keys whose position is a window or more behind.
        model_len: model length for the rotation; None for the checkpoint's default.

    Returns:
        [N, V] in the weights' dtype.
    """
    num_rows = tokens.numel()
    positions = torch.arange(num_rows) if positions is None else positions
    if mask is None:
        mask = torch.ones(num_rows, num_rows, dtype=torch.bool).tril()
    length = config.default_context if model_len is None else model_len
    table = cos_sin_table(config.rope, length, int(positions.max()) + 1)[positions]
    hidden = weights["embed"][tokens]  # [N, E]
    for i, window in enumerate(config.layer_windows):
        layer = {k.split(".")[2]: w for k, w in weights.items() if k.startswith(f"layers.{i}.")}
        visible = mask
        if window is not None:
            visible = mask & (positions[None, :] > positions[:, None] - window)
        normed = rms_norm(hidden, layer["attn_norm"], config.rms_norm_eps)
        hidden = hidden + attention(normed, layer, config, table, visible)
        normed = rms_norm(hidden, layer["mlp_norm"], config.rms_norm_eps)
        gate, up = linear(normed, layer["gate_up"], layer.get("gate_up_bias")).chunk(2, dim=-1)
        hidden = hidden + linear(silu(gate) * up, layer["down"], layer.get("down_bias"))
    hidden = rms_norm(hidden, weights["final_norm"], config.rms_norm_eps)
    return linear(hidden, weights["embed" if config.tie_word_embeddings else "lm_head"])


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Return x [..., E] over its root mean square, times weight [E]; the mean in fp32."""
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * scaled.to(x.dtype)


def attention(
    x: torch.Tensor,
    layer: Mapping[str, torch.Tensor],
    config: ModelConfig,
    table: torch.Tensor,
    visible: torch.Tensor,
) -> torch.Tensor:
    """Return the attention block's output.

    Args:
        x: normed hidden states [N, E].
        layer: the layer's weights by their short names.
        config: the model.
        table: cosines and sines of the rows, [N, 2, D_rot / 2].
        visible: bool [N, N].
    """
    heads, kv_heads, head_dim = config.num_heads, config.num_kv_heads, config.head_dim
    qkv = linear(x, layer["qkv"], layer.get("qkv_bias")).view(x.shape[0], -1, head_dim)
    q, k, v = torch.split(qkv, [heads, kv_heads, kv_heads], dim=1)  # [N, heads, D]
    if config.qk_norm:
        q = rms_norm(q, layer["q_norm"], config.rms_norm_eps)
        k = rms_norm(k, layer["k_norm"], config.rms_norm_eps)
    q, k = rotate(q, table), rotate(k, table)
    k, v = (t.repeat_interleave(heads // kv_heads, dim=1) for t in (k, v))
    scores = torch.einsum("ihd,jhd->hij", q, k) * head_dim**-0.5
    scores = scores.masked_fill(~visible, float("-inf"))
    probs = scores.softmax(dim=-1, dtype=torch.float32).to(x.dtype)
    out = torch.einsum("hij,jhd->ihd", probs, v).flatten(1)
    return linear(out, layer["o"], layer.get("o_bias"))


def rotate(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Rotate pairs (i, i + D_rot / 2) of x [N, heads, D]; dimensions past D_rot pass through."""
    half = table.shape[-1]
    cos, sin = table.to(x.dtype)[:, None, 0], table.to(x.dtype)[:, None, 1]  # [N, 1, D_rot / 2]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)
