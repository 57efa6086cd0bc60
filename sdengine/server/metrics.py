"""What Prometheus scrapes at /metrics.

Times are observed where text leaves for a client; everything about steps is summed up by the
engine's thread and only read at a scrape.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from sdengine.async_engine import AsyncEngine, EngineStatus

__all__ = ["Histogram", "Metrics"]

FAST_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
SLOW_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Histogram:
    """Observed times. Belongs to one thread, so it needs no lock: prometheus-client's own took a
    tenth of what an event costs.

    Args:
        name: at /metrics.
        text: its help there.
        buckets: upper bounds, ascending; infinity is added.
    """

    def __init__(self, name: str, text: str, buckets: tuple[float, ...]) -> None:
        self._name = name
        self._text = text
        self._buckets = buckets
        self._counts = [0] * (len(buckets) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Counts a time."""
        self._counts[bisect_left(self._buckets, value)] += 1
        self._sum += value

    def family(self) -> Metric:
        """As Prometheus reads it."""
        bounds = [*map(str, self._buckets), "+Inf"]
        return HistogramMetricFamily(
            self._name,
            self._text,
            buckets=list(zip(bounds, accumulate(self._counts))),
            sum_value=self._sum,
        )


class Metrics(Collector):
    """Counters and histograms of one server; everything here belongs to its event loop.

    Args:
        engine: whose state and steps are reported.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._registry = registry = CollectorRegistry(auto_describe=True)
        self.requests = Counter(
            "sdengine_http_requests", "Answered requests.", ["path", "status"], registry=registry
        )
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self.first_token_seconds = Histogram(
            "sdengine_time_to_first_token_seconds",
            "From a request's body to its first token.",
            SLOW_BUCKETS,
        )
        self.inter_token_seconds = Histogram(
            "sdengine_inter_token_seconds", "Time between two deliveries, per token.", FAST_BUCKETS
        )
        self.request_seconds = Histogram(
            "sdengine_request_seconds", "From a request's body to its last token.", SLOW_BUCKETS
        )
        registry.register(EngineCollector(engine))
        registry.register(self)

    def register(self, collector: Collector) -> None:
        """Adds what somebody else counts."""
        self._registry.register(collector)

    def collect(self) -> Iterator[Metric]:
        """What the event loop counted."""
        for name, text, value in (
            ("prompt_tokens", "Prompt tokens accepted.", self.prompt_tokens),
            ("generated_tokens", "Generated tokens handed to clients.", self.generated_tokens),
        ):
            yield CounterMetricFamily(f"sdengine_{name}", text, value=float(value))
        for histogram in (self.first_token_seconds, self.inter_token_seconds, self.request_seconds):
            yield histogram.family()

    def render(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)


class EngineCollector(Collector):
    """Reads an engine's status at every scrape."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """The engine's metrics."""
        status = self._engine.status()
        yield from _gauges(status)
        yield from _step_counters(status)


def _gauges(status: EngineStatus) -> Iterator[Metric]:
    totals = status.totals
    steps, accepted = totals.num_sequence_steps, sum(totals.accepted_by_depth)
    for name, text, value in (
        ("healthy", "1 while the engine works.", status.failure is None),
        ("requests_unfinished", "Prompts inside the engine.", status.num_requests),
        ("sequences_running", "Sequences that have a slot.", status.num_running),
        ("sequences_waiting", "Sequences in the queue.", status.num_waiting),
        ("kv_blocks", "Blocks of the KV cache.", status.num_blocks),
        ("kv_blocks_free", "Blocks of the KV cache that are free.", status.num_free_blocks),
        (
            "mean_acceptance_length",
            "Tokens per sequence and step since the start, the target's own included.",
            1 + accepted / steps if steps else 0.0,
        ),
    ):
        yield GaugeMetricFamily(f"sdengine_{name}", text, value=float(value))


def _step_counters(status: EngineStatus) -> Iterator[Metric]:
    totals = status.totals
    for name, text, value in (
        ("steps", "Steps of the engine.", totals.num_steps),
        ("sequence_steps", "Steps, counted per decoding sequence.", totals.num_sequence_steps),
        ("draft_tokens", "Draft tokens verified.", totals.num_draft_tokens),
        ("draft_seconds", "Time spent growing trees.", totals.draft_time_s),
        ("verify_seconds", "Time of target forwards and verification.", totals.verify_time_s),
        ("step_seconds", "Time of whole steps.", totals.step_time_s),
    ):
        yield CounterMetricFamily(f"sdengine_{name}", text, value=float(value))
    accepted = CounterMetricFamily(
        "sdengine_accepted_draft_tokens", "Draft tokens accepted, by depth.", labels=["depth"]
    )
    for depth, count in enumerate(totals.accepted_by_depth, start=1):
        accepted.add_metric([str(depth)], count)
    yield accepted
