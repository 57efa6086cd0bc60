"""The one interface behind which every engine of the comparison stands.

All of them continue the same prompt tokens greedily for the same number of tokens; end-of-sequence
is masked, so that every run has the same length and the texts can be compared token by token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

__all__ = ["Answer", "Contestant", "Peer", "Settings", "Task"]


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
    llama_server: Path | None = None
    compiles: bool = False


@dataclass(frozen=True, slots=True)
class Task:
    """One request: prompt tokens, and how many to add."""

    prompt: Sequence[int]
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What an engine made of a task.

    Args:
        token_ids: the new tokens.
        decode_s: from the first commit to the last.
        num_decoded: tokens committed in that time.
    """

    token_ids: tuple[int, ...]
    decode_s: float
    num_decoded: int

    @property
    def tokens_per_s(self) -> float:
        """Speed of decoding; the prompt's forward is left out for everybody."""
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
        """Runs one request."""
        ...

    def close(self) -> None:
        """Gives back memory and processes; no answer afterwards."""
        ...


class Peer(Protocol):
    """An engine that may or may not be installed.

    Attributes:
        name: as on the command line.
    """

    name: str

    def why_unavailable(self, settings: Settings) -> str | None:
        """The reason why it cannot run here, or None; loads nothing."""
        ...

    def contestants(self, settings: Settings) -> Iterator[Contestant]:
        """Its modes, loaded one by one.

        Raises:
            SdengineError: a conversion or a start failed; the message says which and why.
        """
        ...
