"""AsyncEngines over tiny random checkpoints, and engines that a test holds before their
next step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import inf
from time import sleep
from typing import Any

import pytest

from sdengine.core.outputs import RequestOutput
from sdengine.engine import Engine
from tests.engine.conftest import MakeEngine, engines, make_engine

__all__ = ["Turnstile", "engines", "make_engine", "make_turnstile"]


class Turnstile:
    """An engine whose steps do nothing until the test opens it; commands are obeyed all the time.

    Args:
        engine: whose `step` is replaced.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.step: Callable[[], list[RequestOutput]] = engine.step
        self._num_allowed = 0.0
        engine.step = self._held_step  # type: ignore[method-assign]

    def _held_step(self, *limits: float) -> list[RequestOutput]:
        if self._num_allowed > 0:
            self._num_allowed -= 1
            return self.step()
        sleep(0.001)
        return []

    def open(self, num_steps: float = inf) -> None:
        """Lets so many steps through."""
        self._num_allowed = num_steps


@pytest.fixture
def make_turnstile(make_engine: MakeEngine) -> Iterator[Callable[..., Turnstile]]:
    """Builds held engines, and lets them go at the end of the test, however it ends."""
    made: list[Turnstile] = []

    def make(*args: Any, **settings: Any) -> Turnstile:
        made.append(Turnstile(make_engine(*args, **settings)))
        return made[-1]

    yield make
    for turnstile in made:
        turnstile.open()
