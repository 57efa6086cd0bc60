"""The one interface behind which every engine of the comparison stands.

All of them continue the same batch of prompts greedily by the same number of tokens; the end of the
text is masked, so that every run has the same length and texts can be compared token by token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

__all__ = ["Answer", "Contestant", "LeftOut", "Peer", "Settings", "Task", "left_padded"]


@dataclass(frozen=True, slots=True)
class Settings:
    """What all contestants share.

    Args:
        target: checkpoint directory.
        draft: checkpoint directory of the draft model.
        dtype: float32 or bfloat16, of weights and arithmetic where an engine offers it.
        num_threads: threads of each.
        max_model_len: prompt and answer together, at most.
        draft_lengths: draft tokens a step; engines that cannot adapt it run with each.
        batch_size: prompts of a task, which start together.
        work_dir: where converted checkpoints are kept.
        llama_server: llama.cpp's server; None looks in PATH.
        compiles: whether transformers also runs compiled, which takes minutes to begin.
    """

    target: Path
    draft: Path
    dtype: str
    num_threads: int
    max_model_len: int
    draft_lengths: tuple[int, ...]
    work_dir: Path
    batch_size: int = 1
    llama_server: Path | None = None
    compiles: bool = False


@dataclass(frozen=True, slots=True)
class Task:
    """One batch: the tokens of every prompt, and how many to add to each."""

    prompts: Sequence[Sequence[int]]
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What an engine made of a task.

    Args:
        token_ids: the new tokens of every prompt, in order.
        decode_s: from the moment at which every prompt has its first token to the last commit.
        num_decoded: tokens committed in that time.
    """

    token_ids: tuple[tuple[int, ...], ...]
    decode_s: float
    num_decoded: int

    @property
    def tokens_per_s(self) -> float:
        """Speed of decoding; the prompts' forwards are left out for everybody."""
        return self.num_decoded / self.decode_s


class Contestant(Protocol):
    """One engine in one mode, loaded and ready.

    Attributes:
        name: for the table.
        configuration: everything that was chosen for it, for the report.
    """

    name: str
    configuration: str

    def answer(self, task: Task) -> Answer:
        """Runs one batch."""
        ...

    def close(self) -> None:
        """Gives back memory and processes; no answer afterwards."""
        ...


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A mode that an engine does not have with these settings.

    Args:
        name: as a contestant's.
        reason: for the report.
    """

    name: str
    reason: str


class Peer(Protocol):
    """An engine that may or may not be installed.

    Attributes:
        name: as on the command line.
    """

    name: str

    def why_unavailable(self, settings: Settings) -> str | None:
        """The reason why it cannot run here, or None; loads nothing."""
        ...

    def contestants(self, settings: Settings) -> Iterator[Contestant | LeftOut]:
        """Its modes, loaded one by one.

        Raises:
            SdengineError: a conversion or a start failed; the message says which and why.
        """
        ...


def left_padded(prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and attention mask [B, L] int64; shorter prompts are filled up at their beginning."""
    longest = max(map(len, prompts))
    tokens = np.zeros((len(prompts), longest), dtype=np.int64)
    mask = np.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        start = longest - len(prompt)
        tokens[row, start:], mask[row, start:] = prompt, 1
    return tokens, mask
