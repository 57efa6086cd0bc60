"""Simulated controllers count in plain steps of a small model."""

from __future__ import annotations

import pytest

from sdengine.controllers import turns


@pytest.fixture(autouse=True)
def _a_unit_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain step takes one unit, and is so short that nothing is known of it before it was
    seen."""
    monkeypatch.setattr(turns, "LONG_STEP_S", 2.0)
