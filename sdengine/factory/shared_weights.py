"""Engines of one process that run the same checkpoint read one copy of its weights.

Nobody writes weights once they are loaded, so a second engine of a model costs its caches and
buffers only. They go with the last engine that reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import torch

from sdengine.model.checkpoint import Checkpoint
from sdengine.model.config import ModelConfig
from sdengine.model.safetensors_file import FileIdentity
from sdengine.runner.placement import Placement
from sdengine.runner.weights import ModelWeights, load_weights

__all__ = ["SharedWeights"]


@dataclass(frozen=True, slots=True)
class _Key:
    """All that decides about the bytes of loaded weights and where they lie."""

    files: tuple[FileIdentity, ...]
    config: ModelConfig
    dtype: torch.dtype
    max_model_len: int
    vocab_size: int
    device: torch.device
    is_device: bool


_loaded: WeakValueDictionary[_Key, ModelWeights] = WeakValueDictionary()


@dataclass(frozen=True, slots=True)
class SharedWeights:
    """The weights of one engine: those that another engine has loaded, or read for it.

    Args:
        placement: where the engine runs.
        dtype: of its matrices.
        max_model_len: positions of its RoPE tables.
        vocab_size: tokens of its target, and so of its draft.
        pool: native thread pool that shares the packing, None where nothing is packed.
    """

    placement: Placement
    dtype: torch.dtype
    max_model_len: int
    vocab_size: int
    pool: Any

    def is_loaded(self, checkpoint: Checkpoint) -> bool:
        """Whether they are in memory already."""
        return self._key(checkpoint) in _loaded

    def load(self, checkpoint: Checkpoint) -> ModelWeights:
        """Finds or reads a checkpoint's weights. Two threads that begin at once may both read them;
        one copy stays.

        Raises:
            CheckpointError: as `load_weights`.
        """
        key = self._key(checkpoint)
        found = _loaded.get(key)
        if found is not None:
            return found
        # A layout of its own: what lies side by side is freed together.
        layout = self.placement.layout(self.dtype, self.pool)
        read = load_weights(checkpoint, self.dtype, self.max_model_len, layout, self.vocab_size)
        return _loaded.setdefault(key, read)

    def _key(self, checkpoint: Checkpoint) -> _Key:
        return _Key(
            checkpoint.file_identities,
            checkpoint.config,
            self.dtype,
            self.max_model_len,
            self.vocab_size,
            self.placement.memory.device,
            self.placement.is_device,
        )
