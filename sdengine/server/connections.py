"""How many connections a server holds at once, and who has to go when they are too many.

A connection costs a file descriptor and memory, whether or not it ever asks for anything. Beyond
the limit a newcomer takes the place of the connection that has waited longest without a request
under way (clients expect that of a kept connection, and ask again on a new one). Where all of them
are at work or have only just come, the newcomer is refused; what is under way goes on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from time import monotonic

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sdengine.errors import ConfigError

__all__ = ["Connections", "reserve_descriptors"]

LEAST_WAIT_S = 1.0
"""A connection that has waited for less is left alone: its request may be on the way."""
MAX_REFUSED = 64
"""Most refused connections that are being told so; further ones are closed without a word."""
OWN_DESCRIPTORS = 128
"""File descriptors for everything else: the model's files, threads, libraries."""


class Connections(Collector):
    """The open connections of one server; belongs to its event loop.

    Args:
        limit: most of them, those that are being refused not counted.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: set[HttpToolsProtocol] = set()
        self._waiting: dict[HttpToolsProtocol, float] = {}  # since when; the longest comes first
        self._refused: set[HttpToolsProtocol] = set()
        self._unsent: dict[HttpToolsProtocol, int] = {}
        self._num_displaced = 0
        self._num_refused: Counter[int] = Counter()

    def admit(self, connection: HttpToolsProtocol) -> bool:
        """Takes a new connection in, which waits for its first request, if need be in the place of
        another; False: it is to be refused."""
        if len(self._open) >= self._limit and not self._displace():
            return False
        self._open.add(connection)
        self.wait(connection)
        return True

    def may_explain(self, connection: HttpToolsProtocol) -> bool:
        """Whether a connection that was not admitted may stay until it has been told so."""
        self.count_refusal(503)
        if len(self._refused) >= MAX_REFUSED:
            return False
        self._refused.add(connection)
        return True

    def wait(self, connection: HttpToolsProtocol) -> None:
        """Notes that a connection has no request under way."""
        if connection in self._open:
            self._waiting[connection] = monotonic()

    def work(self, connection: HttpToolsProtocol) -> None:
        """Notes that a request has come."""
        self._waiting.pop(connection, None)

    def forget(self, connection: HttpToolsProtocol) -> None:
        """Notes that a connection has ended."""
        for known in (self._open, self._refused):
            known.discard(connection)
        for about in (self._waiting, self._unsent):
            about.pop(connection, None)

    def count_refusal(self, status: int) -> None:
        """Counts a connection that is closed with an error before its request was whole."""
        self._num_refused[status] += 1

    def drop_stuck(self) -> None:
        """Drops connections that are to be closed and whose clients have taken nothing of what is
        still to be sent since the last call: to wait for them would take for ever."""
        closing = [c for c in self._open if c.transport.is_closing()]
        for connection in closing:
            size = connection.transport.get_write_buffer_size()
            if size == self._unsent.get(connection):
                connection.transport.abort()
            self._unsent[connection] = size

    def collect(self) -> Iterator[Metric]:
        """As Prometheus reads it."""
        yield GaugeMetricFamily("sdengine_connections", "Open.", value=float(len(self._open)))
        yield CounterMetricFamily(
            "sdengine_connections_displaced",
            "Waiting connections that were closed to make room.",
            value=float(self._num_displaced),
        )
        refused = CounterMetricFamily(
            "sdengine_connections_refused",
            "Connections that were closed with an error before a request was whole.",
            labels=["status"],
        )
        for status, count in sorted(self._num_refused.items()):
            refused.add_metric([str(status)], count)
        yield refused

    def _displace(self) -> bool:
        """Closes the connection that has waited longest, if it is long enough."""
        longest = next(iter(self._waiting), None)
        if longest is None or monotonic() - self._waiting[longest] < LEAST_WAIT_S:
            return False
        longest.transport.abort()  # its last answer may still be unread, for ever
        self.forget(longest)
        self._num_displaced += 1
        return True


def reserve_descriptors(max_connections: int) -> None:
    """Raises this process's limit of open files where it leaves no room for the connections.

    Args:
        max_connections: the limit of `Connections`.

    Raises:
        ConfigError: the system does not allow so many.
    """
    if find_spec("resource") is None:  # no such limits on this system
        return
    import resource

    other = MAX_REFUSED + OWN_DESCRIPTORS
    needed = max_connections + other
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ConfigError.from_parts(
            f"max_connections of at most {max(hard - other, 1)}, because this process may open "
            f"{hard} files",
            str(max_connections),
            "raise `ulimit -Hn` or lower --max-connections",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
