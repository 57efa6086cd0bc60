"""What a model is: one validated description for every family.

The families differ in a handful of switches (biases, norms on queries and keys, windows, tied
embeddings, fused storage); beyond `config_file`, which reads them from config.json, nothing asks
for a family again, except the checkpoint reader for the names of the stored tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

from sdengine.model.rope_config import RopeConfig

__all__ = ["ModelConfig"]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One decoder-only transformer of the Llama kind.

    Args:
        family: "llama", "mistral", "qwen2", "qwen3" or "phi3"; names the stored tensors, nothing
            else.
        vocab_size: V, rows of the embedding, padding included.
        hidden_size: E.
        intermediate_size: F.
        num_layers: L.
        num_heads: H, query heads.
        num_kv_heads: H_kv, divides H.
        head_dim: D; H * D need not be E.
        rms_norm_eps: added to the mean square in every norm.
        rope: rotation; `rope.dim` is D_rot <= D.
        qkv_bias: whether the query, key and value projections have a bias.
        o_bias: whether the attention's output projection has one.
        mlp_bias: whether gate, up and down have one.
        qk_norm: whether every query and key head passes an RMS norm of its own before the rotation.
        tie_word_embeddings: whether the output projection is the embedding.
        layer_windows: per layer the sliding window in tokens, the token itself included, or None.
        dtype: of the stored weights as the file names it: "float32", "bfloat16" or "float16"; None
            where it does not.
        bos_token_id: beginning-of-sequence token, None for none.
        eos_token_ids: end-of-sequence tokens, possibly none.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: RopeConfig
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tie_word_embeddings: bool
    layer_windows: tuple[int | None, ...]
    dtype: str | None
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]

    @property
    def qkv_rows(self) -> int:
        """Rows of the fused projection: (H + 2 H_kv) D."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def default_context(self) -> int:
        """Model length to use when the user names none."""
        return self.rope.default_context

    @property
    def longest_context(self) -> int:
        """Longest model length that the checkpoint was made for."""
        return self.rope.longest_context

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return canonical weight name -> shape, in the order of the forward pass."""
        hidden, ffn, heads = (
            self.hidden_size,
            self.intermediate_size,
            self.num_heads * self.head_dim,
        )
        shapes: dict[str, tuple[int, ...]] = {"embed": (self.vocab_size, hidden)}
        layer: dict[str, tuple[int, ...]] = {
            "attn_norm": (hidden,),
            "qkv": (self.qkv_rows, hidden),
            **({"qkv_bias": (self.qkv_rows,)} if self.qkv_bias else {}),
            **({"q_norm": (self.head_dim,), "k_norm": (self.head_dim,)} if self.qk_norm else {}),
            "o": (hidden, heads),
            **({"o_bias": (hidden,)} if self.o_bias else {}),
            "mlp_norm": (hidden,),
            "gate_up": (2 * ffn, hidden),
            **({"gate_up_bias": (2 * ffn,)} if self.mlp_bias else {}),
            "down": (hidden, ffn),
            **({"down_bias": (hidden,)} if self.mlp_bias else {}),
        }
        for i in range(self.num_layers):
            shapes.update({f"layers.{i}.{name}": shape for name, shape in layer.items()})
        shapes["final_norm"] = (hidden,)
        if not self.tie_word_embeddings:
            shapes["lm_head"] = (self.vocab_size, hidden)
        return shapes
