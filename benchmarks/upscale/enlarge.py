"""From a checkpoint directory to a larger one: papers, shards, index; complete or not there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.shapes import Shape
from benchmarks.upscale.placement import place
from benchmarks.upscale.residual import ResidualEmbedding, surplus_weight
from benchmarks.upscale.safetensors_writer import write_safetensors
from benchmarks.upscale.weights import LargeModel
from sdengine.core.config import DTYPES
from sdengine.errors import ConfigError
from sdengine.model.checkpoint import INDEX_FILE, Checkpoint, open_checkpoint
from sdengine.model.config_file import read_json

__all__ = ["enlarge"]

STORED_DTYPES = tuple(name for name in DTYPES if name != "auto")
PAPERS = ("*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")
NOT_COPIED = ("config.json", INDEX_FILE)
SPARE_BYTES = 256 << 20  # of the disk, to stay free


def enlarge(
    source: Path,
    target: Path,
    shape: Shape,
    *,
    seed: int = 0,
    dtype: str = "bfloat16",
    is_rotated: bool = True,
    device: str = "cpu",
    on_shard: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Writes an enlarged checkpoint; memory holds a block of rows at a time.

    The embedding and the output projection of the result are untied, also where the small model's
    are tied: only one of the two can take up the last norm's weights.

    Args:
        source: the small model's directory.
        target: the large one's, created; must not exist.
        shape: sizes of the large model.
        seed: of the rotation and of all random weights; the same seed gives the same files.
        dtype: of the stored weights.
        is_rotated: whether the stream is turned, so that the small model's matrices become dense.
        device: torch device that computes the weights; random ones differ between kinds of device.
        on_shard: called with files written and files in all.

    Raises:
        CheckpointError: the source is damaged, or no plain Llama.
        ConfigError: the shape cannot hold it, the directory exists, or the disk is too small.
    """
    checkpoint = open_checkpoint(source)
    stored = _checked_dtype(dtype)
    placement = place(checkpoint.config, shape)
    if target.exists():
        raise ConfigError.from_parts(f"a new directory at {target}", "one that exists")
    _check_disk(target, shape.num_parameters * stored.itemsize)
    residual = ResidualEmbedding.make(
        checkpoint.config.hidden_size,
        shape.hidden_size,
        checkpoint.config.rms_norm_eps,
        has_constant=placement.surplus_vocab > 0,
        is_rotated=is_rotated,
        seed=seed,
        device=device,
    )
    model = LargeModel(checkpoint, shape, placement, residual, surplus_weight(stored), seed)
    staged = target.with_name(f"{target.name}.{os.getpid()}.partial")
    staged.mkdir(parents=True)
    try:
        _copy_papers(source, staged)
        _write_config(checkpoint, staged, shape, residual.eps, dtype)
        _write_shards(model, staged, stored, on_shard)
        staged.rename(target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _checked_dtype(name: str) -> torch.dtype:
    if name not in STORED_DTYPES:
        raise ConfigError.from_parts(f"dtype among {', '.join(STORED_DTYPES)}", repr(name))
    stored: torch.dtype = getattr(torch, name)
    return stored


def _check_disk(target: Path, num_bytes: int) -> None:
    parent = next(folder for folder in target.absolute().parents if folder.exists())
    free = shutil.disk_usage(parent).free
    if free < num_bytes + SPARE_BYTES:
        raise ConfigError.from_parts(
            f"{(num_bytes + SPARE_BYTES) / 1e9:.1f} GB free in {parent}",
            f"{free / 1e9:.1f} GB",
            "choose another directory or a smaller shape",
        )


def _copy_papers(source: Path, target: Path) -> None:
    """Tokenizer, generation config, chat template."""
    for pattern in PAPERS:
        for file in sorted(source.glob(pattern)):
            if file.name not in NOT_COPIED:
                shutil.copyfile(file, target / file.name)


def _write_config(
    checkpoint: Checkpoint, target: Path, shape: Shape, eps: float, dtype: str
) -> None:
    """The small model's config.json with the large sizes; context and rotation stay."""
    config = read_json(checkpoint.path / "config.json")
    config.pop("dtype", None)
    sizes = {"rms_norm_eps": eps, "tie_word_embeddings": False, "torch_dtype": dtype}
    text = json.dumps({**config, **asdict(shape), **sizes}, indent=2)
    (target / "config.json").write_text(text + "\n", encoding="utf-8")


def _write_shards(
    model: LargeModel,
    target: Path,
    dtype: torch.dtype,
    on_shard: Callable[[int, int], None],
) -> None:
    weight_map: dict[str, str] = {}
    total = model.shape.num_hidden_layers + 2
    for number, tensors in enumerate(model.shards(), 1):
        name = f"model-{number:05}-of-{total:05}.safetensors"
        write_safetensors(target / name, tensors, dtype)
        weight_map.update({tensor.name: name for tensor in tensors})
        on_shard(number, total)
    num_bytes = model.shape.num_parameters * dtype.itemsize
    index = {"metadata": {"total_size": num_bytes}, "weight_map": weight_map}
    (target / INDEX_FILE).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
