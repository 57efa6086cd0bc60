"""Rotation angles: inverse frequencies and cos/sin tables, for every RoPE type the checkpoints use.

An angle here is a function of the position and of the *model length* (the longest sequence an
engine accepts), never of the length that a sequence happens to have. Without that, a key cached
early would have been rotated differently from one cached late, and the same text would depend on
how it was cut into steps. It matters for two types:

- dynamic: within `max_position_embeddings` the frequencies are the plain ones. An engine with a
  longer model length uses, for all positions, the frequencies of a sequence of exactly that length.
- longrope: the short factors when the model length is within the original context, else the long
  factors.

Both equal the reference implementation's forward over a sequence as long as the model length, and
for every shorter one as long as the model length stays within `RopeConfig.default_context`.
"""

from __future__ import annotations

import math

import torch

from sdengine.model.rope_config import RopeConfig

__all__ = ["attention_factor", "cos_sin_table", "inverse_frequencies"]


def cos_sin_table(
    rope: RopeConfig, model_len: int, num_positions: int | None = None
) -> torch.Tensor:
    """Tabulate cosines and sines per position.

    Args:
        rope: RoPE settings of the checkpoint.
        model_len: longest sequence of the engine; decides dynamic and longrope.
        num_positions: rows of the table; None for model_len.

    Returns:
        fp32 [num_positions, 2, D_rot / 2]: cosines, then sines, times the attention factor. Pair i
        of a head is (i, i + D_rot / 2).
    """
    count = model_len if num_positions is None else num_positions
    frequencies = inverse_frequencies(rope, model_len)
    angles = torch.arange(count, dtype=torch.float32)[:, None] * frequencies[None, :]
    return torch.stack([angles.cos(), angles.sin()], dim=1) * attention_factor(rope)


def inverse_frequencies(rope: RopeConfig, model_len: int) -> torch.Tensor:
    """Return the rotation per position of every pair: fp32 [D_rot / 2]."""
    if rope.type == "dynamic":
        return _plain(_dynamic_theta(rope, model_len), rope.dim)
    if rope.type == "longrope":
        is_long = model_len > rope.original_max_position_embeddings
        factors = torch.tensor(rope.long_factor if is_long else rope.short_factor)
        return 1.0 / (factors * rope.theta ** _exponents(rope.dim))
    frequencies = _plain(rope.theta, rope.dim)
    if rope.type == "linear":
        return frequencies / rope.factor
    if rope.type == "llama3":
        return _llama3(rope, frequencies)
    if rope.type == "yarn":
        return _yarn(rope)
    assert rope.type == "default", rope.type
    return frequencies


def attention_factor(rope: RopeConfig) -> float:
    """Return what cosines and sines are multiplied with (1 except for yarn and longrope)."""
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.type == "yarn":
        if rope.mscale and rope.mscale_all_dim:
            return _yarn_scale(rope.factor, rope.mscale) / _yarn_scale(
                rope.factor, rope.mscale_all_dim
            )
        return _yarn_scale(rope.factor, 1.0)
    if rope.type == "longrope" and rope.factor > 1.0:
        return math.sqrt(
            1 + math.log(rope.factor) / math.log(rope.original_max_position_embeddings)
        )
    return 1.0


def _exponents(dim: int) -> torch.Tensor:
    return torch.arange(0, dim, 2, dtype=torch.float32) / dim


def _plain(theta: float, dim: int) -> torch.Tensor:
    return 1.0 / (theta ** _exponents(dim))


def _dynamic_theta(rope: RopeConfig, model_len: int) -> float:
    """NTK-aware base for a sequence of model_len tokens."""
    context = rope.max_position_embeddings
    stretch = rope.factor * max(model_len, context) / context - (rope.factor - 1)
    return rope.theta * math.pow(stretch, rope.dim / (rope.dim - 2))


def _llama3(rope: RopeConfig, frequencies: torch.Tensor) -> torch.Tensor:
    """Keep short wavelengths, stretch long ones, blend between (Llama 3.1 model card)."""
    context, low, high = (
        rope.original_max_position_embeddings,
        rope.low_freq_factor,
        rope.high_freq_factor,
    )
    wavelengths = 2 * math.pi / frequencies
    blend = (context / wavelengths - low) / (high - low)
    blended = (1 - blend) * frequencies / rope.factor + blend * frequencies
    result = torch.where(wavelengths > context / low, frequencies / rope.factor, blended)
    return torch.where(wavelengths < context / high, frequencies, result)


def _yarn(rope: RopeConfig) -> torch.Tensor:
    """Interpolate the dimensions that turn rarely within the original context (YaRN, 2309.00071,
    3.2).
    """

    def dimension_with(rotations: float) -> float:
        periods = rope.original_max_position_embeddings / (rotations * 2 * math.pi)
        return rope.dim * math.log(periods) / (2 * math.log(rope.theta))

    low, high = dimension_with(rope.beta_fast), dimension_with(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(rope.dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    powers = rope.theta ** _exponents(rope.dim)
    kept, stretched = 1.0 / powers, 1.0 / (rope.factor * powers)
    # The same order of operations as the reference implementation: equal to the last bit.
    return stretched * (1 - (1 - ramp)) + kept * (1 - ramp)


def _yarn_scale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0
