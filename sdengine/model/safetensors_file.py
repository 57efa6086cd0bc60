"""One safetensors file, memory-mapped: header checked in full when it is opened, tensors read one
at a time.

The format is a little-endian uint64 n, n bytes of JSON header, then the tensors' bytes. Everything
the header claims is checked against the file's size before a byte of data is touched, so that a
truncated or damaged file is refused with the name of the tensor it would have broken.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch

from sdengine.errors import CheckpointError

__all__ = ["FileIdentity", "SafetensorsFile", "StoredTensor"]

FileIdentity: TypeAlias = tuple[str, int, int, int, int, int]
"""Path, device, inode, bytes, times of the last change of content and of anything: files of one
identity have one content."""

FLOAT_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000
MAX_DIMENSIONS = 64  # of a tensor of torch
WAY_OUT = "download or save the file again"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies: dtype name of the file, shape, and byte range in the file."""

    dtype_name: str
    shape: tuple[int, ...]
    start: int
    end: int


class SafetensorsFile:
    """A memory-mapped safetensors file.

    Args:
        path: the file.

    Raises:
        CheckpointError: it is missing, truncated, or its header is damaged.

    Attributes:
        path: as given.
        identity: what another opening of the same content has in common with this.
        tensors: stored name -> where it lies.
    """

    __slots__ = ("_map", "identity", "path", "tensors")

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                stat = os.fstat(file.fileno())
                size = stat.st_size
                if size < LENGTH_BYTES + 2:
                    raise self._error("at least 10 bytes", f"{size} bytes")
                # Private, so that a stray write can never reach the file.
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except OSError as error:
            raise CheckpointError.from_parts(
                f"{path} to be readable", error.strerror or str(error)
            ) from None
        self.identity = _identity(path, stat)
        self.tensors = self._read_header(size)

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor.

        Raises:
            CheckpointError: it is none of the supported float types.
        """
        dtype_name = self.tensors[name].dtype_name
        dtype = FLOAT_DTYPES.get(dtype_name)
        if dtype is None:
            unsupported = "" if dtype_name == "F64" else "quantised checkpoints are not supported; "
            raise self._error(
                f"tensor {name} to be one of {', '.join(FLOAT_DTYPES)}",
                dtype_name,
                f"{unsupported}save it in one of these",
            )
        return dtype

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor as a view of the mapped file: nothing is copied, it must not be written.

        Raises:
            CheckpointError: its dtype is no supported float type.
        """
        stored, dtype = self.tensors[name], self.dtype(name)
        count = math.prod(stored.shape)
        if count == 0:
            return torch.empty(stored.shape, dtype=dtype)
        if stored.start % dtype.itemsize:
            raw = torch.frombuffer(
                self._map, dtype=torch.uint8, count=stored.end - stored.start, offset=stored.start
            )
            return raw.clone().view(dtype).view(stored.shape)
        flat = torch.frombuffer(self._map, dtype=dtype, count=count, offset=stored.start)
        return flat.view(stored.shape)

    def release(self, name: str) -> None:
        """Give the memory of a tensor's pages back; a view that is still used reads them again."""
        if not hasattr(self._map, "madvise"):
            return
        stored = self.tensors[name]
        start = stored.start - stored.start % mmap.PAGESIZE
        if stored.end > start:
            self._map.madvise(mmap.MADV_DONTNEED, start, stored.end - start)

    def _error(self, expected: str, got: str, way_out: str = WAY_OUT) -> CheckpointError:
        return CheckpointError.from_parts(f"{self.path}: {expected}", got, way_out)

    def _read_header(self, size: int) -> dict[str, StoredTensor]:
        length = int.from_bytes(self._map[:LENGTH_BYTES], "little")
        if length > min(MAX_HEADER_BYTES, size - LENGTH_BYTES):
            raise self._error(
                f"a header of at most {min(MAX_HEADER_BYTES, size - LENGTH_BYTES)} bytes",
                f"a header length of {length}",
                "the file is truncated or no safetensors file; " + WAY_OUT,
            )
        try:
            text = self._map[LENGTH_BYTES : LENGTH_BYTES + length].decode("utf-8")
            header = json.loads(text, object_pairs_hook=_without_duplicates)
        except (ValueError, RecursionError) as error:
            raise self._error("a JSON header", str(error)) from None
        if not isinstance(header, dict):
            raise self._error("a JSON object as header", type(header).__name__)
        header.pop("__metadata__", None)
        data_start = LENGTH_BYTES + length
        tensors = {name: self._entry(name, item, data_start) for name, item in header.items()}
        self._check_ranges(tensors, data_start, size)
        return tensors

    def _entry(self, name: str, item: Any, data_start: int) -> StoredTensor:
        """Check one header entry by itself."""
        try:
            dtype_name, shape = item["dtype"], item["shape"]
            begin, end = item["data_offsets"]
            is_sound = (
                isinstance(dtype_name, str)
                and isinstance(shape, list)
                and len(shape) <= MAX_DIMENSIONS
                and all(type(number) is int and number >= 0 for number in (*shape, begin, end))
                and begin <= end
            )
        except (KeyError, TypeError, ValueError):
            is_sound = False
        if not is_sound:
            raise self._error(f"tensor {name} with dtype, shape and data_offsets", str(item)[:80])
        dtype = FLOAT_DTYPES.get(dtype_name)
        num_bytes = None if dtype is None else math.prod(shape) * dtype.itemsize
        if num_bytes is not None and num_bytes != end - begin:
            raise self._error(
                f"tensor {name} of shape {shape} and dtype {dtype_name} to take {num_bytes} bytes",
                f"{end - begin} bytes",
            )
        return StoredTensor(dtype_name, tuple(shape), data_start + begin, data_start + end)

    def _check_ranges(self, tensors: dict[str, StoredTensor], data_start: int, size: int) -> None:
        """Check that the tensors fill the file exactly: no gap, no overlap, nothing beyond its
        end.
        """
        position = data_start
        for name, stored in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
            if stored.end > size:
                raise self._error(
                    f"{stored.end} bytes, for tensor {name}",
                    f"{size} bytes",
                    "the file is truncated; " + WAY_OUT,
                )
            if stored.start != position:
                raise self._error(
                    f"tensor {name} to begin at byte {position}", f"byte {stored.start}"
                )
            position = stored.end
        if position != size:
            raise self._error(f"{position} bytes, as its header says", f"{size} bytes")


def _identity(path: Path, stat: os.stat_result) -> FileIdentity:
    times = (stat.st_mtime_ns, stat.st_ctime_ns)
    return (os.path.realpath(path), stat.st_dev, stat.st_ino, stat.st_size, *times)


def _without_duplicates(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"key {key!r} stands twice")
        result[key] = value
    return result
