"""Reads config.json of every supported family into a ModelConfig, or refuses it by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdengine.core.argument import check_bool, check_float, check_int, shown
from sdengine.errors import CheckpointError
from sdengine.model.config import ModelConfig
from sdengine.model.rope_config import MAX_CONTEXT, parse_rope

__all__ = ["ARCHITECTURES", "load_model_config", "parse_model_config", "read_json", "token_ids"]

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Phi3ForCausalLM": "phi3",
}
DTYPES = ("float32", "bfloat16", "float16")

# Far beyond any model; what is larger would be allocated, or counted to, before a tensor is missed.
# The kernels count probabilities in units of 2^-44, whose sums over more tokens overflow.
LIMITS = {
    "num_hidden_layers": 4096,
    "max_position_embeddings": MAX_CONTEXT,
    "vocab_size": 2**19 - 1,
}

# What a missing key means in each family, where it is not the common default.
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2},
    "mistral": {
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "qwen2": {
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "sliding_window": 4096,
    },
    "qwen3": {
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "sliding_window": 4096,
        "head_dim": 128,
    },
    "phi3": {
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 32000,
    },
}
NULL_MEANS_NONE = (
    *("num_key_value_heads", "head_dim"),  # as many as query heads, as wide as they
    *("sliding_window", "bos_token_id", "eos_token_id"),
)

# Options that change the model's function and are not implemented: key -> values that mean off.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "quantization_config": (None, {}),
    "compression_config": (None, {}),
    "num_local_experts": (None, 0),
    "num_experts": (None, 0),
    "n_routed_experts": (None, 0),
    "attn_logit_softcapping": (None, 0, 0.0),
    "final_logit_softcapping": (None, 0, 0.0),
    "logits_scaling": (None, 1, 1.0),
    "logit_scale": (None, 1, 1.0),
    "embedding_multiplier": (None, 1, 1.0),
    "residual_multiplier": (None, 1, 1.0),
    "attention_multiplier": (None,),
    "query_pre_attn_scalar": (None,),
    "no_rope_layers": (None, []),
    "is_encoder_decoder": (None, False),
    "add_cross_attention": (None, False),
    "use_qk_norm": (None, False),
    "vision_config": (None, {}),
    "audio_config": (None, {}),
    "text_config": (None, {}),
    "adapter_path": (None,),
}


def load_model_config(directory: Path) -> ModelConfig:
    """Read and validate `directory`/config.json.

    Raises:
        CheckpointError: the file is missing, is no JSON object, or describes an unsupported model.
    """
    return parse_model_config(read_json(directory / "config.json"))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: the file is missing, unreadable, or no JSON object; the message names it.
    """
    try:
        parsed = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError.from_parts(
            f"a file {path.name} in {path.parent}",
            "none",
            "point to a model directory in Hugging Face format",
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError.from_parts(f"{path} to be readable JSON", str(error)) from None
    if not isinstance(parsed, dict):
        raise CheckpointError.from_parts(f"{path} to hold a JSON object", shown(parsed))
    return parsed


def parse_model_config(config: Mapping[str, Any]) -> ModelConfig:
    """Validate a parsed config.json.

    Raises:
        CheckpointError: the architecture or an option is not supported, or a value is missing or
            out of range; the message names it.
    """
    family = _family(config)
    _refuse_unsupported(config, family)
    values = {**DEFAULTS[family], **{k: v for k, v in config.items() if v is not None}}
    for key in NULL_MEANS_NONE:  # a missing key means the family's default
        if key in config and config[key] is None:
            values.pop(key, None)
    for key in ("bos_token_id", "eos_token_id"):  # of a vocabulary without the family's token
        if key not in config and values.get(key, -1) >= _size(values, "vocab_size"):
            del values[key]
    num_heads = _size(values, "num_attention_heads")
    head_dim = _head_dim(values, num_heads)
    num_layers = _size(values, "num_hidden_layers")
    attention_bias = _flag(values, "attention_bias") if family in ("llama", "qwen3") else False
    return ModelConfig(
        family=family,
        vocab_size=_size(values, "vocab_size"),
        hidden_size=_size(values, "hidden_size"),
        intermediate_size=_size(values, "intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=_num_kv_heads(values, num_heads),
        head_dim=head_dim,
        rms_norm_eps=check_float(
            CheckpointError, "rms_norm_eps in config.json", values.get("rms_norm_eps", 1e-6), 0.0
        ),
        rope=parse_rope(values, family, head_dim, _size(values, "max_position_embeddings")),
        qkv_bias=family == "qwen2" or attention_bias,
        o_bias=attention_bias,
        mlp_bias=_flag(values, "mlp_bias") if family == "llama" else False,
        qk_norm=family == "qwen3",
        tie_word_embeddings=_flag(values, "tie_word_embeddings"),
        layer_windows=_layer_windows(values, family, num_layers),
        dtype=_dtype(values),
        bos_token_id=_first(token_ids(values, "bos_token_id")),
        eos_token_ids=token_ids(values, "eos_token_id"),
    )


def token_ids(config: Mapping[str, Any], key: str) -> tuple[int, ...]:
    """Return the token ids under `key`, which may hold one, a list, or nothing.

    Raises:
        CheckpointError: something else stands there.
    """
    value = config.get(key)
    if value is None:
        return ()
    items = value if isinstance(value, list) else [value]
    return tuple(check_int(CheckpointError, f"{key} of the checkpoint", item, 0) for item in items)


def _family(config: Mapping[str, Any]) -> str:
    architectures = config.get("architectures")
    if not architectures:
        model_type = config.get("model_type")
        if str(model_type) in DEFAULTS:
            return str(model_type)
        architectures = [f"model_type {model_type!r}"]
    name = architectures[0] if isinstance(architectures, list) else architectures
    if not isinstance(architectures, list) or str(name) not in ARCHITECTURES:
        raise CheckpointError.from_parts(
            f"architectures in config.json to be a list of one of {', '.join(ARCHITECTURES)}",
            str(name) if isinstance(architectures, list) else shown(architectures),
            "this model is not supported",
        )
    return ARCHITECTURES[str(name)]


def _refuse_unsupported(config: Mapping[str, Any], family: str) -> None:
    for key, neutral in UNSUPPORTED.items():
        if config.get(key) not in neutral:
            raise CheckpointError.from_parts(
                f"no {key} in config.json", shown(config[key]), "this option is not supported"
            )
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise CheckpointError.from_parts(
            'hidden_act in config.json to be "silu"', shown(activation), "it is not supported"
        )
    for key, families in (("attention_bias", ("llama", "qwen3")), ("mlp_bias", ("llama",))):
        if config.get(key) and family not in families:
            raise CheckpointError.from_parts(
                f"no {key} in config.json of a {family} model", shown(config[key])
            )


def _size(config: Mapping[str, Any], key: str) -> int:
    if key not in config:
        raise CheckpointError.from_parts(f"{key} in config.json", "no such key")
    size = check_int(CheckpointError, f"{key} in config.json", config[key], 1)
    if size > LIMITS.get(key, size):
        raise CheckpointError.from_parts(f"{key} in config.json <= {LIMITS[key]}", str(size))
    return size


def _flag(config: Mapping[str, Any], key: str) -> bool:
    return check_bool(CheckpointError, f"{key} in config.json", config.get(key, False))


def _first(items: tuple[int, ...]) -> int | None:
    return items[0] if items else None


def _head_dim(config: Mapping[str, Any], num_heads: int) -> int:
    if config.get("head_dim") is not None:
        return _size(config, "head_dim")
    hidden = _size(config, "hidden_size")
    if hidden % num_heads:
        raise CheckpointError.from_parts(
            "hidden_size in config.json to be a multiple of num_attention_heads, or head_dim",
            f"{hidden} and {num_heads}, no head_dim",
        )
    return hidden // num_heads


def _num_kv_heads(config: Mapping[str, Any], num_heads: int) -> int:
    if "num_key_value_heads" not in config:
        return num_heads
    num_kv_heads = _size(config, "num_key_value_heads")
    if num_heads % num_kv_heads:
        raise CheckpointError.from_parts(
            "num_key_value_heads in config.json to divide num_attention_heads",
            f"{num_kv_heads} and {num_heads}",
        )
    return num_kv_heads


def _layer_windows(
    config: Mapping[str, Any], family: str, num_layers: int
) -> tuple[int | None, ...]:
    """Which layers see only a window; every family has its own switch for it."""
    if family in ("qwen2", "qwen3"):
        has_window = _flag(config, "use_sliding_window") and "sliding_window" in config
        first = check_int(
            CheckpointError, "max_window_layers", config.get("max_window_layers", 28), 0
        )
    else:
        has_window, first = family != "llama" and "sliding_window" in config, 0
    window = _size(config, "sliding_window") if has_window else None
    windows = tuple(window if i >= first else None for i in range(num_layers))
    layer_types = config.get("layer_types")
    if layer_types is None:
        return windows
    if not isinstance(layer_types, list) or len(layer_types) != num_layers:
        raise CheckpointError.from_parts(
            f"layer_types in config.json to be a list of {num_layers} names", shown(layer_types)
        )
    named = tuple(_layer_window(name, window) for name in layer_types)
    if family not in ("qwen2", "qwen3") and named != windows:
        raise CheckpointError.from_parts(
            f"layer_types of a {family} model to agree with sliding_window = {window}",
            ", ".join(sorted(set(layer_types))),
            "alternating attention is not supported in this family",
        )
    return named


def _layer_window(name: object, window: int | None) -> int | None:
    if name == "full_attention":
        return None
    if name != "sliding_attention" or window is None:
        raise CheckpointError.from_parts(
            'layer_types in config.json to be "full_attention", or "sliding_attention" together '
            "with a sliding_window",
            shown(name),
        )
    return window


def _dtype(config: Mapping[str, Any]) -> str | None:
    given = config.get("dtype", config.get("torch_dtype"))
    if given is None:
        return None
    name = str(given).removeprefix("torch.")
    if name not in DTYPES:
        raise CheckpointError.from_parts(
            f"dtype in config.json to be one of {', '.join(DTYPES)}", name, "convert the checkpoint"
        )
    return name
