"""A differentiable Llama-architecture model in plain torch, with Hugging Face parameter names.

Promises: `state_dict()` keys equal those of a Hugging Face Llama checkpoint with tied embeddings
(no `lm_head.weight`), and logits equal those of that architecture in fp32.  Knows nothing of
losses, data or optimisers.  RoPE is the rotate-half convention.  It is a trainer's model: the
engine has its own forward; the two meet in the exported checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Drop = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class LlamaShape:
    """The architecture's numbers; field names are those of a Hugging Face `config.json`."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int = 64
    max_position_embeddings: int = 1024
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5

    def num_parameters(self) -> int:
        """Parameters with tied embeddings."""
        attention = self.head_dim * (2 * self.num_attention_heads + 2 * self.num_key_value_heads)
        layer = self.hidden_size * (attention + 3 * self.intermediate_size + 2)
        return self.num_hidden_layers * layer + self.hidden_size * (self.vocab_size + 1)


class RMSNorm(nn.Module):
    """x * rsqrt(mean(x^2) + eps) * weight over the last axis."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


def rope_tables(shape: LlamaShape) -> tuple[Tensor, Tensor]:
    """cos and sin, fp32 [max_position_embeddings, D], halves repeated (rotate-half)."""
    exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.float64) / shape.head_dim
    positions = torch.arange(shape.max_position_embeddings, dtype=torch.float64)
    angles = torch.outer(positions, shape.rope_theta**-exponents).repeat(1, 2)
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply RoPE. x [B, heads, S, D]; cos and sin [S, D]; returns a new tensor like x."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Attention(nn.Module):
    """Causal grouped-query self-attention."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        width, head_dim = shape.hidden_size, shape.head_dim
        self.head_dim = head_dim
        self.group_size = shape.num_attention_heads // shape.num_key_value_heads
        self.q_proj = nn.Linear(width, shape.num_attention_heads * head_dim, bias=False)
        self.k_proj = nn.Linear(width, shape.num_key_value_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(width, shape.num_key_value_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(shape.num_attention_heads * head_dim, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        heads = (batch, length, -1, self.head_dim)
        query = rotate(self.q_proj(x).view(heads).transpose(1, 2), cos, sin)  # [B, H, S, D]
        key = rotate(self.k_proj(x).view(heads).transpose(1, 2), cos, sin)  # [B, H_kv, S, D]
        value = self.v_proj(x).view(heads).transpose(1, 2)
        # Repeating the heads keeps torch on its fused CPU kernel (enable_gqa leaves it).
        key = key.repeat_interleave(self.group_size, dim=1)
        value = value.repeat_interleave(self.group_size, dim=1)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def leave_out_nothing(x: Tensor) -> Tensor:
    """In place of a `Dropout`."""
    return x


class Dropout:
    """Leaves out numbers of what a layer adds to the residual stream, and scales up the rest.

    Its numbers come from a seed of its own, so that a pass can be repeated whichever thread makes
    it. Of one pass: on another device than the CPU they are drawn on the CPU all the same.

    Args:
        rate: share left out, in [0, 1).
        seed: of the numbers.
    """

    def __init__(self, rate: float, seed: int) -> None:
        self._keep = 1.0 - rate
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, x: Tensor) -> Tensor:
        kept = torch.empty(x.shape).bernoulli_(self._keep, generator=self._generator)
        return x * kept.div_(self._keep).to(x.device)


class Block(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.mlp = FeedForward(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, drop: Drop) -> Tensor:
        x = x + drop(self.self_attn(self.input_layernorm(x), cos, sin))
        return x + drop(self.mlp(self.post_attention_layernorm(x)))


class Decoder(nn.Module):
    """Embedding, layers and final norm; exists so that names begin with `model.` as on disk."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.num_hidden_layers))
        self.norm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)


class LlamaModule(nn.Module):
    """Llama with tied embeddings.

    Args:
        shape: the architecture.
        seed: seeds the initialisation; global random state is left alone.

    Attributes:
        layer_dtype: torch.float32, or torch.bfloat16 for matrix products and attention of the
            layers in bf16; residuals, norms and the head stay in fp32, since a logit of 10 that
            is rounded to bf16 is off by up to 0.03.
    """

    def __init__(self, shape: LlamaShape, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        self.layer_dtype = torch.float32
        self.model = Decoder(shape)
        cos, sin = rope_tables(shape)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self._initialise(torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator) -> None:
        """Matrices at 1/sqrt(fan in), embeddings at 0.02, residual outputs at zero."""
        for name, parameter in self.named_parameters():
            if parameter.ndim != 2:
                continue
            std = 0.02 if "embed" in name else 1.0 / math.sqrt(parameter.shape[1])
            parameter.normal_(0.0, std, generator=generator)
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()  # every layer starts as the identity

    def forward(self, token_ids: Tensor, drop: Drop = leave_out_nothing) -> Tensor:
        """Logits of the next token after each position.

        Args:
            token_ids: int64 [B, S].
            drop: applied to what every layer adds, in training.

        Returns:
            fp32 logits [B, S, V].
        """
        return self.head(self.hidden_states(token_ids, drop))

    def hidden_states(self, token_ids: Tensor, drop: Drop = leave_out_nothing) -> Tensor:
        """What the head sees, after the last norm: int64 [B, S] to fp32 [B, S, E]."""
        length = token_ids.shape[1]
        cos, sin = self.cos[:length], self.sin[:length]
        x = self.model.embed_tokens(token_ids)
        is_bf16 = self.layer_dtype == torch.bfloat16
        # No cache of rounded weights: each is used once, and all threads would share the cache.
        with torch.autocast(x.device.type, torch.bfloat16, is_bf16, cache_enabled=False):
            for layer in self.model.layers:
                x = layer(x, cos, sin, drop)
        return self.model.norm(x)

    def head(self, states: Tensor) -> Tensor:
        """Logits fp32 [..., V] of hidden states [..., E]."""
        return F.linear(states, self.model.embed_tokens.weight)
