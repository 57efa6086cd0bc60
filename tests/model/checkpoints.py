"""Tiny random checkpoints of every family and RoPE type, written by transformers' own model
classes.

    directory = make_checkpoint("qwen3", "yarn")

writes once per process and case, and returns the directory. `CASES` lists every combination that is
tested.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

VOCAB = 199
CONTEXT = 256
ORIGINAL = 48
HEAD_DIM = 16

FAMILIES = {
    "llama": ("LlamaConfig", {}),
    "llama_bias": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "llama_mha": ("LlamaConfig", {"num_key_value_heads": 6}),
    "smollm2": ("LlamaConfig", {"tie_word_embeddings": True, "num_key_value_heads": 3}),
    "llama_head_dim": ("LlamaConfig", {"head_dim": 24}),
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "mistral_window": ("MistralConfig", {"sliding_window": 20, "head_dim": 32}),
    "qwen2": ("Qwen2Config", {"use_sliding_window": False, "tie_word_embeddings": True}),
    "qwen2_window": (
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": 17, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3Config", {"head_dim": 24, "tie_word_embeddings": True}),
    "qwen3_bias": ("Qwen3Config", {"head_dim": 16, "attention_bias": True}),
    "phi3": ("Phi3Config", {"sliding_window": 23}),
    "phi3_partial": ("Phi3Config", {"partial_rotary_factor": 0.5, "tie_word_embeddings": True}),
}

ROPES: dict[str, dict[str, Any] | None] = {
    "default": None,
    "linear": {"rope_type": "linear", "factor": 2.5},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
    },
    "yarn_mscale": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
        "mscale": 0.7,
        "mscale_all_dim": 1.2,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "truncate": False,
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
    },
    "longrope": {"type": "longrope"},
}

CASES = [
    *((family, "default") for family in FAMILIES),
    *(("llama", rope) for rope in ROPES if rope != "default"),
    ("mistral_window", "yarn"),
    ("qwen2", "yarn"),
    ("qwen2", "dynamic"),
    ("qwen3", "yarn_mscale"),
    ("qwen3", "linear"),
    ("smollm2", "llama3"),
    ("phi3", "longrope"),
    ("phi3_partial", "longrope"),
]


@functools.cache
def scratch_dir() -> Path:
    """Return a directory that is removed when the process ends."""
    path = Path(tempfile.mkdtemp(prefix="sdengine-checkpoints-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@functools.cache
def make_checkpoint(
    family: str = "llama",
    rope: str = "default",
    *,
    dtype: str = "float32",
    seed: int = 0,
    max_shard_size: str = "5GB",
    **overrides: Any,
) -> Path:
    """Write a random checkpoint and return its directory.

    Args:
        family: key of FAMILIES.
        rope: key of ROPES.
        dtype: of the stored weights.
        seed: of the weights.
        max_shard_size: as transformers' save_pretrained; "20KB" gives several shards.
        overrides: further keys of the config class; hashable values.
    """
    model = make_model(family, rope, seed=seed, **overrides).to(getattr(torch, dtype))
    name = "-".join([family, rope, dtype, str(seed), max_shard_size, str(len(overrides))])
    directory = Path(tempfile.mkdtemp(prefix=name + "-", dir=scratch_dir()))
    model.save_pretrained(directory, max_shard_size=max_shard_size, safe_serialization=True)
    return directory


def make_model(family: str, rope: str, *, seed: int = 0, **overrides: Any) -> Any:
    """Return a transformers model in fp32 with random weights wide enough to make logits vary."""
    import transformers

    config_name, extra = FAMILIES[family]
    values: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 6 * HEAD_DIM,
        "intermediate_size": 88,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "rope_theta": 10000.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
        "attn_implementation": "eager",
        **extra,
        **overrides,
    }
    scaling = ROPES[rope]
    if rope == "longrope":
        scaling = _longrope(values)
        values["original_max_position_embeddings"] = ORIGINAL
    if scaling is not None:
        values["rope_scaling"] = dict(scaling)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(
        getattr(transformers, config_name)(**values)
    )
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            center = 1.0 if "norm" in name else 0.0
            torch.nn.init.normal_(parameter, center, 0.2)
        else:
            torch.nn.init.normal_(parameter, 0.0, 1.5 / parameter.shape[1] ** 0.5)
    return model.float().eval()


def _longrope(values: dict[str, Any]) -> dict[str, Any]:
    head_dim = values.get("head_dim") or values["hidden_size"] // values["num_attention_heads"]
    count = int(head_dim * values.get("partial_rotary_factor", 1.0)) // 2
    return {
        "type": "longrope",
        "short_factor": [1.0 + 0.05 * i for i in range(count)],
        "long_factor": [1.5 + 0.9 * i for i in range(count)],
    }
