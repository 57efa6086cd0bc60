"""Texts that the draft reads again and again, and what the frozen target makes of them, computed
once: its final hidden states, kept in bf16 in a file of the run directory.

A pass of the bundled target costs five times what forward and backward of its draft do, and its
logits are V numbers a token; the states before the head are E, an eighth of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from sdengine.errors import CheckpointError
from sdengine.train.data import Blocks, make_blocks
from sdengine.train.module import LlamaModule

__all__ = ["TaughtTexts"]


class TaughtTexts:
    """Rows of text, seen in a new order in every pass over them.

    The target reads a row when it is first asked for.  A row's states are the same bits whether
    they were just computed or read from the file, so that an interrupted run may go on.

    Args:
        target: frozen; on the device on which it is to run.
        rows: uint16 [num_rows, S + 1].
        bos_id: see `make_blocks`.
        seed: of the orders.
        path: of the states, made if there is none; of this target, these rows. None keeps them
            in memory.
        map_function: `map`, or that of an executor whose threads share the target's work.
    """

    def __init__(
        self,
        target: LlamaModule,
        rows: np.ndarray,
        bos_id: int,
        seed: int,
        path: Path | None = None,
        map_function: Callable[..., Iterable] = map,
    ) -> None:
        self.target, self.rows, self.bos_id, self.seed = target, rows, bos_id, seed
        self._map = map_function
        shape = (len(rows), rows.shape[1] - 1, target.shape.hidden_size)
        self._states = np.zeros(shape, np.uint16) if path is None else _open_states(path, shape)

    def batch(self, first: int, count: int) -> Blocks:
        """Rows number `first`... of the endless sequence of shuffled passes."""
        chosen = np.empty(count, dtype=np.int64)
        for place in range(count):
            which_pass, index = divmod(first + place, len(self.rows))
            order = np.random.default_rng([self.seed, which_pass]).permutation(len(self.rows))
            chosen[place] = order[index]
        return self.take(chosen)

    def take(self, chosen: np.ndarray) -> Blocks:
        """The rows of these indices, int64 [B]."""
        # No state is all zeros after an RMS norm, and a row's last one is written last.
        is_known = self._states[chosen, -1].any(axis=-1)
        unknown = np.unique(chosen[~is_known])
        for index, states in zip(unknown, self._map(self._teach, unknown), strict=True):
            self._states[index] = states
        states = torch.from_numpy(self._states[chosen].view(np.int16)).view(torch.bfloat16)
        return replace(make_blocks(self.rows[chosen], self.bos_id), states=states)

    @torch.no_grad()
    def _teach(self, index: int) -> np.ndarray:
        """The target's final states over a row, bits of bf16 [S, E]."""
        inputs = torch.from_numpy(self.rows[index : index + 1, :-1].astype(np.int64))
        states = self.target.hidden_states(inputs.to(self.target.cos.device))[0]
        return states.to(torch.bfloat16).cpu().view(torch.int16).numpy().view(np.uint16)


def _open_states(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """The states in `path`, changed in place; zeros of `shape` if there is no file.

    Raises:
        CheckpointError: if the file holds anything else.
    """
    if not path.exists():
        return np.lib.format.open_memmap(path, mode="w+", dtype=np.uint16, shape=shape)
    expected = f"states of shape {shape} in {path}"
    try:
        states = np.lib.format.open_memmap(path, mode="r+")
    except (OSError, ValueError) as error:
        what = f"a damaged file ({type(error).__name__})"
        raise CheckpointError.from_parts(expected, what, "remove it") from error
    if states.shape != shape or states.dtype != np.uint16:
        what = f"{states.dtype} of shape {states.shape}"
        raise CheckpointError.from_parts(expected, what, "remove it")
    return states
