"""From trained modules to checkpoints in the Hugging Face Llama layout, and the papers with them.

Promises: `config.json`, bf16 `model.safetensors`, tokenizer and generation config load in
`transformers` and in the engine; `MANIFEST.json` names the hash of every file beside it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from sdengine.errors import CheckpointError
from sdengine.train.module import LlamaModule, LlamaShape
from sdengine.train.tokenizer import BOS, EOS, PAD, save_tokenizer

WEIGHTS_FILE = "model.safetensors"
MODEL_NAMES = ("target", "draft")


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def export_checkpoint(module: LlamaModule, tokenizer: Tokenizer, directory: Path) -> None:
    """Write one model. `directory` is created; files of the same names are replaced."""
    directory.mkdir(parents=True, exist_ok=True)
    special = {
        "bos_token_id": tokenizer.token_to_id(BOS),
        "eos_token_id": tokenizer.token_to_id(EOS),
        "pad_token_id": tokenizer.token_to_id(PAD),
    }
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **asdict(module.shape),
        "rope_scaling": None,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        **special,
    }
    _write_json(directory / "config.json", config)
    # Two of three completions parse so and repeat 14% of their 4-grams, 10% are repeated in the
    # library's own code; less of a tail or a penalty is more of both (`benchmarks.completions`).
    sampling = {
        "do_sample": True,
        "temperature": 0.8,
        "min_p": 0.08,
        "repetition_penalty": 1.2,
    }
    _write_json(directory / "generation_config.json", {**special, **sampling})
    tensors = {
        name: tensor.detach().cpu().to(torch.bfloat16).contiguous()
        for name, tensor in module.state_dict().items()
    }
    weights = directory / WEIGHTS_FILE
    save_file(tensors, str(weights), metadata={"format": "pt"})
    weights.chmod(0o644)  # the library writes it for its owner alone
    save_tokenizer(tokenizer, directory, module.shape.max_position_embeddings)


def load_exported(directory: Path, device: str = "cpu") -> LlamaModule:
    """The exported weights, widened to fp32, in a trainable module.

    Raises:
        CheckpointError: if the directory is not one of `export_checkpoint`.
    """
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        tensors = load_file(str(directory / WEIGHTS_FILE))
    except FileNotFoundError as error:
        raise CheckpointError.from_parts(
            f"an exported model in {directory}", f"no {Path(error.filename or '').name}"
        ) from error
    shape = LlamaShape(**{name: config[name] for name in LlamaShape.__dataclass_fields__})
    module = LlamaModule(shape)
    module.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return module.to(device)


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_manifest(directory: Path, content: dict) -> None:
    """Write `MANIFEST.json`: `content` plus size and SHA-256 of every other file below."""
    files = {
        path.relative_to(directory).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": sha256_of(path),
        }
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != "MANIFEST.json"
    }
    _write_json(directory / "MANIFEST.json", {**content, "files": files})
