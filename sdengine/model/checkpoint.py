"""A Hugging Face checkpoint as named weights, read one at a time from memory-mapped safetensors.

Opening reads and checks every header (names, shapes, dtypes, byte ranges) and no weight.
`Checkpoint.weight` then reads one weight; the caller packs it and drops it, so that at any moment
only the packed weights and one more are in memory.
"""

from __future__ import annotations

import math
import mmap
import os
from pathlib import Path

import torch

from sdengine.core.argument import python_command
from sdengine.errors import CheckpointError
from sdengine.model.config import ModelConfig
from sdengine.model.config_file import load_model_config, read_json
from sdengine.model.safetensors_file import FileIdentity, SafetensorsFile
from sdengine.model.weight_map import is_ignored, weight_sources

__all__ = ["Checkpoint", "open_checkpoint"]

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
OTHER_FORMATS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.h5", "*.msgpack", "*.onnx")
FINITE_CHUNK = 1 << 22
SMALL_BYTES = 1 << 16


class Checkpoint:
    """An opened checkpoint; make one with `open_checkpoint`.

    Attributes:
        path: its directory.
        config: what the model is.
    """

    __slots__ = ("_files", "_handed_out", "_sources", "config", "path")

    def __init__(self, path: Path, config: ModelConfig, files: dict[str, SafetensorsFile]) -> None:
        """Args: directory; config; stored tensor name -> file that holds it. Raises:
        CheckpointError.
        """
        self.path = path
        self.config = config
        self._files = files
        self._sources = weight_sources(config)
        self._handed_out: list[str] = []
        self._check_names()
        self._check_tensors()

    def names(self) -> list[str]:
        """Return the canonical weight names, in the order of the forward pass."""
        return list(self._sources)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a weight without reading it."""
        sources = list(self._sources[name].values())
        return (sum(shape[0] for shape in sources), *sources[0][1:])

    @property
    def dtype_name(self) -> str:
        """Format of the weights as config.json names it; that of the first where it does not."""
        if self.config.dtype is not None:
            return self.config.dtype
        first = next(iter(next(iter(self._sources.values()))))
        return str(self._files[first].dtype(first)).removeprefix("torch.")

    @property
    def file_identities(self) -> tuple[FileIdentity, ...]:
        """Of the files that hold the weights, each once."""
        return tuple(sorted({file.identity for file in self._files.values()}))

    def weight(
        self, name: str, dtype: torch.dtype | None = None, *, check_finite: bool = False
    ) -> torch.Tensor:
        """Read one weight.

        Args:
            name: canonical name, one of `names()`.
            dtype: dtype to convert to; None keeps the stored one.
            check_finite: refuse NaN, infinity, and what `dtype` cannot hold (one pass over the
                weight).

        Returns:
            A contiguous tensor that must not be written: where nothing had to be joined or
            converted it is a view of the mapped file. Its pages are given back at the next call.

        Raises:
            CheckpointError: `check_finite` found such a number; names file and tensor.
        """
        parts = self._stored_parts(name, dtype, check_finite)
        if dtype is None:
            dtype = parts[0].dtype
            for part in parts[1:]:
                dtype = torch.promote_types(dtype, part.dtype)
        if len(parts) == 1:
            return _converted(parts[0], dtype)
        joined = scratch_tensor(self.shape(name), dtype)
        row = 0
        for part in parts:
            joined[row : row + part.shape[0]] = part
            row += part.shape[0]
        return joined

    def parts(
        self, name: str, dtype: torch.dtype, *, check_finite: bool = False
    ) -> list[torch.Tensor]:
        """Read one weight as the tensors that are stacked row-wise to form it (q, k and v of qkv).

        Args:
            name: as `weight`.
            dtype: dtype of the result; what is stored in it already is not copied.
            check_finite: as `weight`.

        Returns:
            One tensor or more, with the limits that `weight` states.

        Raises:
            CheckpointError: as `weight`.
        """
        return [_converted(part, dtype) for part in self._stored_parts(name, dtype, check_finite)]

    def _stored_parts(
        self, name: str, dtype: torch.dtype | None, check_finite: bool
    ) -> list[torch.Tensor]:
        """Map the stored tensors of a weight, after giving back the pages of the last ones."""
        for source in self._handed_out:
            self._files[source].release(source)
        self._handed_out = list(self._sources[name])
        parts = [self._files[source].read(source) for source in self._handed_out]
        if check_finite:
            for source, part in zip(self._handed_out, parts, strict=True):
                self._check_finite(source, part, dtype or part.dtype)
        return parts

    def _check_names(self) -> None:
        wanted = {source for sources in self._sources.values() for source in sources}
        missing = sorted(wanted - self._files.keys())
        unexpected = sorted(
            name for name in self._files.keys() - wanted if not is_ignored(self.config, name)
        )
        if missing:
            raise CheckpointError.from_parts(
                f"tensor {missing[0]} in {self.path}",
                f"no such tensor ({len(missing)} of {len(wanted)} missing)",
                "config.json may describe another model, or a shard is missing",
            )
        if unexpected:
            raise CheckpointError.from_parts(
                f"no tensor {unexpected[0]} in {self._files[unexpected[0]].path}",
                f"{len(unexpected)} tensors that config.json does not explain",
                "the model has a part that is not supported, or config.json is not its own",
            )

    def _check_tensors(self) -> None:
        for sources in self._sources.values():
            for source, shape in sources.items():
                file = self._files[source]
                stored = file.tensors[source]
                if stored.shape != shape:
                    raise CheckpointError.from_parts(
                        f"{file.path}: tensor {source} of shape {list(shape)}, as config.json says",
                        str(list(stored.shape)),
                    )
                file.dtype(source)

    def _check_finite(self, source: str, tensor: torch.Tensor, dtype: torch.dtype) -> None:
        """Refuses what is not finite as it is stored, or would not be in `dtype`."""
        flat = tensor.flatten()
        for start in range(0, flat.numel(), FINITE_CHUNK):
            chunk = flat[start : start + FINITE_CHUNK]
            # A NaN makes both extremes NaN. One core checks 12 GB/s of bfloat16 this way; isfinite
            # on every element checks 0.4.
            if not all(math.isfinite(extreme.to(dtype)) for extreme in torch.aminmax(chunk)):
                index = start + int(torch.isfinite(chunk.to(dtype)).logical_not().nonzero()[0])
                fits = "finite numbers" if dtype == tensor.dtype else f"numbers that fit {dtype}"
                raise CheckpointError.from_parts(
                    f"{self._files[source].path}: {fits} in tensor {source}",
                    f"{float(flat[index])} at element {index} of {math.prod(tensor.shape)}",
                    "pass another dtype"
                    if math.isfinite(flat[index])
                    else "the weights are damaged",
                )


def scratch_tensor(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return an uninitialised tensor on memory of its own, which the system has back when it dies.

    Taken from the heap, short-lived tensors between packed ones that stay leave holes too small for
    the next: loading 8 layers of a 0.14B model peaked at 1.56 of its weights instead of 1.33.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    if num_bytes < SMALL_BYTES:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(mmap.mmap(-1, num_bytes), dtype=dtype).view(shape)


def _converted(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if tensor.dtype == dtype:
        return tensor
    return scratch_tensor(tuple(tensor.shape), dtype).copy_(tensor)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a model directory in Hugging Face format.

    Args:
        path: directory with config.json and model.safetensors, or shards and their index.

    Raises:
        CheckpointError: something is missing, damaged, or not supported; the message names the
            file and the tensor.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise CheckpointError.from_parts(
            f"a model directory at {directory}",
            "a file" if directory.exists() else "nothing there",
            "download the model first and pass the directory that holds its config.json",
        )
    config = load_model_config(directory)
    holders: dict[str, SafetensorsFile] = {}
    for file_name in _file_names(directory):
        file = SafetensorsFile(directory / file_name)
        for name in file.tensors:
            if name in holders:
                raise CheckpointError.from_parts(
                    f"tensor {name} in one file of {directory}",
                    f"{holders[name].path.name} and {file_name}",
                )
            holders[name] = file
    return Checkpoint(directory, config, holders)


def _file_names(directory: Path) -> list[str]:
    if (directory / SINGLE_FILE).exists():
        return [SINGLE_FILE]
    if (directory / INDEX_FILE).exists():
        return _shard_names(directory)
    others = sorted(found.name for pattern in OTHER_FORMATS for found in directory.glob(pattern))
    if others:
        folder = repr(str(directory))
        code = "from transformers import AutoModelForCausalLM as M; "
        code += f"M.from_pretrained({folder}).save_pretrained({folder})"
        raise CheckpointError.from_parts(
            f"{SINGLE_FILE} or {INDEX_FILE} in {directory}",
            ", ".join(others[:3]),
            f"only safetensors are read; convert with: {python_command(code)}",
        )
    raise CheckpointError.from_parts(f"{SINGLE_FILE} or {INDEX_FILE} in {directory}", "neither")


def _shard_names(directory: Path) -> list[str]:
    """Return the shards that the index names, each checked to be there."""
    weight_map = read_json(directory / INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError.from_parts(
            f"weight_map in {directory / INDEX_FILE} to map tensors to files", str(weight_map)[:80]
        )
    for tensor, file_name in weight_map.items():
        if not isinstance(file_name, str) or Path(file_name).name != file_name:
            raise CheckpointError.from_parts(
                f"weight_map of {directory / INDEX_FILE} to name a file beside it for {tensor}",
                repr(file_name)[:80],
            )
        if not os.path.isfile(directory / file_name):  # a name too long is none, and no error
            raise CheckpointError.from_parts(
                f"shard {file_name} in {directory}, for tensor {tensor}",
                "no such file",
                "download the missing shard",
            )
    return sorted(set(weight_map.values()))
