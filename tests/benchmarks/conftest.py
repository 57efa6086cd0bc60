"""What the benchmarks' tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.peers.contestant import Settings
from tests.engine.conftest import text_checkpoint
from tests.torch_threads import one_thread as one_thread


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Of a comparison on tiny random checkpoints."""
    return Settings(
        target=Path(text_checkpoint()),
        draft=Path(text_checkpoint(num_layers=2)),
        dtype="float32",
        num_threads=1,
        max_model_len=128,
        draft_lengths=(3,),
        work_dir=tmp_path,
    )
