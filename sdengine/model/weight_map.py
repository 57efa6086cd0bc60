"""Which stored tensors make up each canonical weight, family by family.

A canonical weight is the row-wise concatenation of its sources: q, k, v for `qkv`, gate, up for
`gate_up`. Phi-3 stores both already fused, in the same order.
"""

from __future__ import annotations

import re

from sdengine.model.config import ModelConfig

__all__ = ["is_ignored", "weight_sources"]

# Tables that old checkpoints carry and that follow from the config.
IGNORED = re.compile(r"(model\.layers\.\d+\.self_attn|model)\.rotary_emb\.\w+")

SEPARATE = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
}
FUSED = {"qkv": ("self_attn.qkv_proj",), "gate_up": ("mlp.gate_up_proj",)}
SINGLE = {
    "attn_norm": ("input_layernorm",),
    "q_norm": ("self_attn.q_norm",),
    "k_norm": ("self_attn.k_norm",),
    "o": ("self_attn.o_proj",),
    "mlp_norm": ("post_attention_layernorm",),
    "down": ("mlp.down_proj",),
}
TOP = {"embed": "model.embed_tokens", "final_norm": "model.norm", "lm_head": "lm_head"}


def weight_sources(config: ModelConfig) -> dict[str, dict[str, tuple[int, ...]]]:
    """Return canonical name -> {stored tensor name: shape it must have}, in concatenation order."""
    return {
        name: dict(
            zip(_stored_names(config, name), _source_shapes(config, name, shape), strict=True)
        )
        for name, shape in config.weight_shapes().items()
    }


def is_ignored(config: ModelConfig, name: str) -> bool:
    """Whether a stored tensor that no weight uses may be there."""
    is_tied_head = config.tie_word_embeddings and name == "lm_head.weight"
    return is_tied_head or IGNORED.fullmatch(name) is not None


def _stored_names(config: ModelConfig, name: str) -> list[str]:
    if name in TOP:
        return [f"{TOP[name]}.weight"]
    _, layer, part = name.split(".")
    kind = "bias" if part.endswith("_bias") else "weight"
    modules = {**SINGLE, **(FUSED if config.family == "phi3" else SEPARATE)}
    return [
        f"model.layers.{layer}.{module}.{kind}" for module in modules[part.removesuffix("_bias")]
    ]


def _source_shapes(config: ModelConfig, name: str, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    part = name.rsplit(".", 1)[-1].removesuffix("_bias")
    if config.family == "phi3" or part not in SEPARATE:
        return [shape]
    if part == "gate_up":
        rows = [config.intermediate_size] * 2
    else:
        kv_rows = config.num_kv_heads * config.head_dim
        rows = [config.num_heads * config.head_dim, kv_rows, kv_rows]
    return [(count, *shape[1:]) for count in rows]
