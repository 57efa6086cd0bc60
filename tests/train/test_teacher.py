"""The target reads each text once, whoever asks and however often, and a file stands for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sdengine.errors import CheckpointError
from sdengine.train.teacher import TaughtTexts
from tests.train.conftest import VOCAB_SIZE

BOS = 0
ROWS = np.random.default_rng(0).integers(3, VOCAB_SIZE, size=(5, 33)).astype(np.uint16)


class CountingTarget:
    """A target that notes what it reads."""

    def __init__(self, target) -> None:
        self.shape, self.cos, self.inner = target.shape, target.cos, target
        self.read: list[list[int]] = []

    def hidden_states(self, inputs):
        self.read += inputs.tolist()
        return self.inner.hidden_states(inputs)


def test_states_are_the_targets_in_bf16(tiny_pair):
    target, _ = tiny_pair
    batch = TaughtTexts(target, ROWS, BOS, seed=1).take(np.array([3, 0, 3]))
    assert batch.inputs.tolist() == ROWS[[3, 0, 3], :-1].tolist()
    assert batch.labels.tolist() == ROWS[[3, 0, 3], 1:].tolist()
    with torch.no_grad():
        states = [target.hidden_states(row[None]).to(torch.bfloat16) for row in batch.inputs]
    assert torch.equal(batch.states, torch.cat(states))


def test_a_row_is_read_once_and_then_from_the_file(tiny_pair, tmp_path):
    target = CountingTarget(tiny_pair[0])
    texts = TaughtTexts(target, ROWS, BOS, 1, tmp_path / "states.npy")
    first = texts.batch(0, 3), texts.batch(3, 7)  # two passes
    assert sorted(target.read) == sorted(ROWS[:, :-1].tolist())
    again = TaughtTexts(target, ROWS, BOS, 1, tmp_path / "states.npy")
    for batch, begin in zip(first, (0, 3), strict=True):
        repeated = again.batch(begin, len(batch.inputs))
        assert torch.equal(batch.inputs, repeated.inputs)
        assert torch.equal(batch.states, repeated.states)
    assert len(target.read) == len(ROWS)


def test_every_pass_has_every_row_in_an_order_of_its_own(tiny_pair):
    texts = TaughtTexts(tiny_pair[0], ROWS, BOS, seed=1)
    passes = [texts.batch(5 * number, 5).inputs.tolist() for number in range(4)]
    assert all(sorted(rows) == sorted(ROWS[:, :-1].tolist()) for rows in passes)
    assert len({str(rows) for rows in passes}) > 1


def test_what_a_cut_file_lacks_is_read_again(tiny_pair, tmp_path):
    target, path = CountingTarget(tiny_pair[0]), tmp_path / "states.npy"
    every = np.arange(len(ROWS))
    whole = TaughtTexts(target, ROWS, BOS, 1, path).take(every).states
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    target.read.clear()
    assert torch.equal(TaughtTexts(target, ROWS, BOS, 1, path).take(every).states, whole)
    assert 0 < len(target.read) < len(ROWS)


@pytest.mark.parametrize("damage", ["junk", "other"])
def test_a_file_of_anything_else_is_refused(tiny_pair, tmp_path, damage):
    path = tmp_path / "states.npy"
    TaughtTexts(tiny_pair[0], ROWS, BOS, 1, path).batch(0, 5)
    if damage == "junk":
        path.write_bytes(b"junk")
    rows = ROWS if damage == "junk" else ROWS[:, :-1]
    with pytest.raises(CheckpointError, match=r"states of shape .*states\.npy.*; remove it"):
        TaughtTexts(tiny_pair[0], rows, BOS, 1, path)
