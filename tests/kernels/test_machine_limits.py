"""Machine limits: what the probes of barriers say, for one thread and for two."""

from __future__ import annotations

from dataclasses import astuple

from sdengine.kernels.machine_limits import LimitProbe
from sdengine.kernels.programs.program import make_pool

SMALL = 64 << 20  # bytes


def test_a_barrier_takes_no_time_alone_and_some_with_company() -> None:
    alone = min(LimitProbe(make_pool(1), SMALL).barrier_ns(5))
    together = LimitProbe(make_pool(2), SMALL).barrier_ns(5)
    assert len(together) == 5
    # Two cores need some 30 ns at least to hear of each other.
    assert 0 < alone < min(together)


def test_all_limits_are_there() -> None:
    found = LimitProbe(make_pool(1), SMALL).limits(1)
    assert found.num_threads == 1
    assert all(value > 0 for value in astuple(found))
