"""The device kernels draw from the target's law: the CPU's G-tests, run on the device, and what the
CPU's negative controls catch is caught here too."""

from __future__ import annotations

import pytest

from tests.exactness import kernel_walks
from tests.exactness import test_kernel_law as law
from tests.exactness.kernel_walks import Mistakes, random_table_world
from tests.gpu.on_device import needs_a_device, run_on_device

pytestmark = needs_a_device
WALKS = 100_000


@pytest.fixture(autouse=True)
def _on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_walks, "run_op", run_on_device)
    monkeypatch.setattr(law, "run_op", run_on_device)


@pytest.mark.parametrize("vocab,budget,seed", [(3, 3, 1), (4, 4, 3)])
def test_rejection_walks_follow_the_target(vocab: int, budget: int, seed: int) -> None:
    assert law.rejection_p(random_table_world(seed, vocab), budget, WALKS) > law.ALPHA


def test_a_mistake_around_the_kernels_is_noticed() -> None:
    world = random_table_world(2, 3)
    assert law.rejection_p(world, 3, WALKS, Mistakes(chooses_tokens=True)) < law.ALPHA


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_sampled_tokens_follow_the_softmax(temperature: float) -> None:
    law.test_sampled_tokens_follow_the_softmax(temperature)


def test_positions_and_seeds_are_independent() -> None:
    law.test_positions_and_seeds_are_independent()


@pytest.mark.parametrize("candidates", [3, 6])
def test_fresh_candidates_are_drawn_without_replacement(candidates: int) -> None:
    law.test_fresh_candidates_are_drawn_without_replacement(candidates)
