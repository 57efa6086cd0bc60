"""RoPE settings of a checkpoint, from any of the notations that config.json files use.

Understood are `rope_theta` + `rope_scaling` and the newer `rope_parameters` that holds both. Every
key must be known: an option that would change the rotation and is not implemented is refused by
name, never dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdengine.core.argument import check_bool, check_float, check_int, shown
from sdengine.errors import CheckpointError

__all__ = ["MAX_CONTEXT", "ROPE_TYPES", "RopeConfig", "parse_rope"]

ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")

MAX_CONTEXT = 2**24
"""Far beyond any model; what is larger would be allocated before anything is missed."""
SHARED_KEYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
REQUIRED_KEYS: dict[str, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "yarn": {"factor"},
    "llama3": {
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    },
    "longrope": {"short_factor", "long_factor"},
}
OPTIONAL_KEYS: dict[str, set[str]] = {
    "default": set(),
    "linear": set(),
    "dynamic": {"original_max_position_embeddings"},
    "yarn": {
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "original_max_position_embeddings",
        "truncate",
    },
    "llama3": set(),
    "longrope": {"attention_factor", "factor", "original_max_position_embeddings"},
}
# Phi-3 checkpoints of the first weeks name longrope by its earlier names.
LONGROPE_ALIASES = {"su": ("phi3",), "yarn": ("phi3",)}


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Everything that decides the rotation angles.

    Args:
        type: one of ROPE_TYPES.
        theta: base of the frequencies.
        dim: rotated dimensions of a head (D_rot), even; the rest of the head passes through.
        max_position_embeddings: context length of the checkpoint.
        original_max_position_embeddings: context length before it was stretched.
        factor: how far it was stretched; 1 where the type has none.
        attention_factor: multiplies cos and sin; None derives it from the factor (yarn, longrope).
        beta_fast: rotations above which yarn does not interpolate.
        beta_slow: rotations below which yarn interpolates fully.
        mscale: numerator weight of yarn's derived attention factor; None for none.
        mscale_all_dim: denominator weight of yarn's derived attention factor; None for none.
        truncate: whether yarn rounds the borders of its ramp to whole dimensions.
        low_freq_factor: llama3: wavelengths above original / this are stretched fully.
        high_freq_factor: llama3: wavelengths below original / this are kept.
        short_factor: longrope: divisors per frequency within the original context.
        long_factor: longrope: divisors per frequency beyond it.
    """

    type: str
    theta: float
    dim: int
    max_position_embeddings: int
    original_max_position_embeddings: int
    factor: float = 1.0
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()

    @property
    def default_context(self) -> int:
        """Model length to use when the user names none.

        It is the longest at which the frequencies are those of the reference implementation for
        every shorter sequence: dynamic and longrope change theirs beyond the original context.
        """
        if self.type == "dynamic":
            return self.max_position_embeddings
        if self.type == "longrope":
            return min(self.original_max_position_embeddings, self.max_position_embeddings)
        return self.longest_context

    @property
    def longest_context(self) -> int:
        """Longest model length that the checkpoint was made for."""
        stretched = self.max_position_embeddings
        if self.type in ("linear", "dynamic", "yarn"):
            stretched = int(self.original_max_position_embeddings * self.factor)
        return max(self.max_position_embeddings, stretched)


def parse_rope(
    config: Mapping[str, Any], family: str, head_dim: int, max_position_embeddings: int
) -> RopeConfig:
    """Read the RoPE settings of a parsed config.json.

    Args:
        config: the parsed file.
        family: model family, decides the meaning of a few historical names.
        head_dim: D.
        max_position_embeddings: context length of the checkpoint.

    Raises:
        CheckpointError: unknown type or key, a missing key, or a value out of range.
    """
    scaling = _scaling_section(config)
    rope_type = _rope_type(scaling, family)
    _check_keys(rope_type, scaling)
    theta = scaling.get("rope_theta", config.get("rope_theta"))
    fraction = scaling.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    dim = int(head_dim * _number("partial_rotary_factor", 1.0 if fraction is None else fraction))
    least = 4 if rope_type == "dynamic" else 2
    if dim < least or dim % 2 or dim > head_dim:
        raise CheckpointError.from_parts(
            f"config.json to rotate an even number of dimensions, {least} to head_dim = {head_dim}",
            f"{dim} (partial_rotary_factor = {fraction})",
        )
    original = _original_context(config, scaling, family, rope_type, max_position_embeddings)
    values = _values(rope_type, scaling)
    _check_stretch(original, values.get("factor", 1.0))
    if rope_type == "longrope":
        values.update(_longrope_values(scaling, dim))
        # The older notation (original context outside rope_scaling) always means this ratio.
        is_older = family == "phi3" or config.get("original_max_position_embeddings") is not None
        if "factor" not in values or is_older:
            values["factor"] = max_position_embeddings / original
    return RopeConfig(
        type=rope_type,
        theta=_number("rope_theta", 10000.0 if theta is None else theta),
        dim=dim,
        max_position_embeddings=max_position_embeddings,
        original_max_position_embeddings=original,
        **values,
    )


def _scaling_section(config: Mapping[str, Any]) -> Mapping[str, Any]:
    both = (config.get("rope_parameters"), config.get("rope_scaling"))
    given = [section for section in both if section not in (None, {})]
    if not given:
        return {}
    for other in given:
        if not isinstance(other, Mapping):
            raise CheckpointError.from_parts(
                "rope_scaling in config.json to be an object", shown(other)
            )
    section: Mapping[str, Any] = given[0]
    if _stretch(section) != _stretch(given[-1]):
        raise CheckpointError.from_parts(
            "rope_parameters and rope_scaling in config.json to say the same",
            f"{shown(section)} and {shown(given[-1])}",
            "keep the one that is meant",
        )
    if any(isinstance(value, Mapping) for value in section.values()):
        raise CheckpointError.from_parts(
            "one set of rope_parameters for all layers in config.json",
            f"one per layer type ({', '.join(section)})",
            "such models are not supported",
        )
    return section


def _stretch(section: Mapping[str, Any]) -> dict[str, Any]:
    """What a section says beside what may stand outside it, its type under one name."""
    rest = {k: v for k, v in section.items() if k not in SHARED_KEYS and v is not None}
    return {**rest, "rope_type": section.get("rope_type", section.get("type", "default"))}


def _rope_type(scaling: Mapping[str, Any], family: str) -> str:
    names = [scaling[key] for key in ("rope_type", "type") if scaling.get(key) is not None]
    if not names and not set(scaling) - SHARED_KEYS:
        return "default"
    types = [_one_name(name, family) for name in names]
    if not types or types[0] not in ROPE_TYPES:
        raise CheckpointError.from_parts(
            f"rope_type in config.json to be one of {', '.join(ROPE_TYPES)}",
            shown(names[0] if names else None),
        )
    if types[0] != types[-1]:
        raise CheckpointError.from_parts(
            "type and rope_type in rope_scaling of config.json to be the same",
            f"{shown(names[1])} and {shown(names[0])}",
            "keep the one that is meant",
        )
    return types[0]


def _one_name(name: object, family: str) -> str:
    return "longrope" if family in LONGROPE_ALIASES.get(str(name), ()) else str(name)


def _check_keys(rope_type: str, scaling: Mapping[str, Any]) -> None:
    given = {key for key, value in scaling.items() if value is not None}
    missing = REQUIRED_KEYS[rope_type] - given
    unknown = given - REQUIRED_KEYS[rope_type] - OPTIONAL_KEYS[rope_type] - SHARED_KEYS
    # Written by tools that stretch a context, and not read by any model of these families.
    unknown -= {"finetuned", "max_position_embeddings"}
    if missing or unknown:
        got = f"{', '.join(sorted(missing))} missing" if missing else ", ".join(sorted(unknown))
        allowed = sorted(REQUIRED_KEYS[rope_type] | OPTIONAL_KEYS[rope_type] | SHARED_KEYS)
        raise CheckpointError.from_parts(
            f'rope_scaling of type "{rope_type}" in config.json with keys among '
            + ", ".join(allowed),
            got,
        )


def _values(rope_type: str, scaling: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scalar options of the type that the file gives."""
    values: dict[str, Any] = {}
    for key in REQUIRED_KEYS[rope_type] | OPTIONAL_KEYS[rope_type]:
        value = scaling.get(key)
        if value is None or key.endswith(
            ("_max_position_embeddings", "short_factor", "long_factor")
        ):
            continue
        if key == "truncate":
            values[key] = check_bool(CheckpointError, "truncate in rope_scaling", value)
        else:
            values[key] = _number(key, value)
    if rope_type == "yarn" and not values.get("mscale"):
        values.pop("mscale", None)
    if rope_type == "llama3" and values["high_freq_factor"] <= values["low_freq_factor"]:
        raise CheckpointError.from_parts(
            "high_freq_factor > low_freq_factor in rope_scaling of config.json",
            f"{values['high_freq_factor']} and {values['low_freq_factor']}",
        )
    return values


def _check_stretch(original: int, factor: float) -> None:
    """A context is stretched to no more than max_position_embeddings may be."""
    if original * factor > MAX_CONTEXT:
        raise CheckpointError.from_parts(
            f"factor in rope_scaling of config.json to stretch {original} tokens to at most "
            f"{MAX_CONTEXT}",
            f"{factor:g}",
        )


def _longrope_values(scaling: Mapping[str, Any], dim: int) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key in ("short_factor", "long_factor"):
        factors = scaling[key]
        if not isinstance(factors, (list, tuple)) or len(factors) != dim // 2:
            raise CheckpointError.from_parts(
                f"{key} in rope_scaling of config.json to be a list of {dim // 2} numbers",
                f"{len(factors)} numbers" if isinstance(factors, list) else shown(factors),
            )
        values[key] = tuple(_number(f"{key}[{i}]", item) for i, item in enumerate(factors))
    return values


def _original_context(
    config: Mapping[str, Any],
    scaling: Mapping[str, Any],
    family: str,
    rope_type: str,
    max_position_embeddings: int,
) -> int:
    original = scaling.get("original_max_position_embeddings")
    if original is None and rope_type == "longrope":
        original = config.get("original_max_position_embeddings")
        if original is None and family == "phi3":
            original = 4096
    if original is None or rope_type in ("default", "linear", "dynamic"):
        return max_position_embeddings
    return check_int(CheckpointError, "original_max_position_embeddings", original, 2)


def _number(key: str, value: object) -> float:
    return check_float(
        CheckpointError, f"{key} in config.json", value, 0.0, low_is_open=key != "mscale"
    )
