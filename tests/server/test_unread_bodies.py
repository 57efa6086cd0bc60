"""A request that is refused before its body is read is answered, also behind Connection: close."""

from __future__ import annotations

import gc
import http.client
import json
import time
import weakref
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from sdengine.server import head
from tests.server.conftest import RunningServer, running, tiny_engine
from tests.server.test_plain_http import H2C
from tests.server.test_refusals import slow_request

SIZES = [4_300_000, 20_000_000]
JSON = {"Content-Type": "application/json"}
CLOSE = {"Connection": "close"}


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Busy machines take their time."""
    monkeypatch.setattr(head, "LINGER_S", 20.0)


def refusal(server: RunningServer, body: Any, headers: dict[str, str], method: str = "POST") -> int:
    """The status of an answer to a client that sends everything before it reads."""
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    client.request(method, "/v1/completions", body, {**CLOSE, **headers})
    answer = client.getresponse()
    assert answer.headers["connection"] == "close"
    assert json.loads(answer.read())["error"]["message"]
    client.close()
    return answer.status


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "headers,status",
    [
        (JSON, 413),
        ({"Content-Type": "text/plain"}, 415),
        ({**JSON, "Content-Encoding": "gzip"}, 415),
        ({**JSON, "Host": "evil.example"}, 421),
    ],
)
def test_a_client_that_is_still_sending_is_answered(
    server: RunningServer, size: int, headers: dict[str, str], status: int
) -> None:
    assert refusal(server, b"x" * size, headers) == status
    server.assert_idle()


def test_a_method_without_a_body_may_have_one(server: RunningServer) -> None:
    assert refusal(server, b"x" * SIZES[1], JSON, "DELETE") == 405


def test_a_body_in_chunks_is_no_exception(server: RunningServer) -> None:
    chunks = (b"x" * 100_000 for _ in range(200))
    assert refusal(server, chunks, JSON) == 413


def test_an_offer_of_another_protocol_is_no_exception(server: RunningServer) -> None:
    offer = dict(line.split(": ") for line in H2C.strip().split("\r\n"))
    offer["Connection"] = "close, Upgrade, HTTP2-Settings"
    assert refusal(server, b"x" * SIZES[1], {**JSON, **offer}) == 413


def test_a_wrong_key() -> None:
    with running(tiny_engine(), api_keys=("right",)) as handle:
        assert refusal(handle, b"x" * SIZES[1], JSON) == 401


def test_a_request_too_many() -> None:
    with running(tiny_engine(), max_requests_per_client=1) as handle:
        with slow_request(handle, None):
            assert refusal(handle, b"x" * SIZES[1], JSON) == 429
        handle.assert_idle()


def begin(server: RunningServer, version: str = "1.1") -> Any:
    """A client that has sent the head of a request that is refused, and a part of its body."""
    client = server.connect()
    client.sendall(
        f"POST /v1/completions HTTP/{version}\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        "Content-Length: 1000000000\r\n\r\nxyz".encode()
    )
    return client


def read_all(client: Any) -> bytes:
    return b"".join(iter(lambda: client.recv(65536), b""))


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_who_reads_to_the_end_need_not_wait_for_it(server: RunningServer, version: str) -> None:
    with begin(server, version) as client:
        start = time.monotonic()
        assert read_all(client).startswith(b"HTTP/1.1 415 ")
        assert time.monotonic() - start < head.LINGER_S / 2


def sent_until_closed(client: Any) -> int:
    """Bytes that a client could send before the server closed."""
    part, size, end = b"x" * 100_000, 0, time.monotonic() + 20
    try:
        while time.monotonic() < end:
            size += client.send(part)
    except OSError:
        return size
    raise AssertionError("the server went on reading")


def test_who_goes_on_sending_is_cut_off(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "LINGER_S", 0.3)
    monkeypatch.setattr(head, "MAX_DISCARDED_BYTES", 10**15)
    with begin(server) as client:
        sent_until_closed(client)
    monkeypatch.setattr(head, "LINGER_S", 600.0)
    monkeypatch.setattr(head, "MAX_DISCARDED_BYTES", 5_000_000)
    with begin(server) as client:
        assert sent_until_closed(client) >= 5_000_000


def test_others_are_answered_meanwhile(server: RunningServer) -> None:
    with begin(server):
        assert httpx.get(f"{server.url}/health").status_code == 200


def test_a_server_that_ends_lets_its_answer_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "LINGER_S", 2.0)
    with running(tiny_engine()) as handle, begin(handle) as client:
        time.sleep(0.2)
        handle.server.should_exit = True
        for _ in range(8):
            time.sleep(0.1)
            client.sendall(b"x" * 10_000)  # is answered with a reset by whoever has closed
        assert read_all(client).startswith(b"HTTP/1.1 415 ")


@pytest.fixture
def protocols(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Weak references to the connections of a test, which no collector runs beside."""
    made: list[Any] = []
    begin_connection = head.BoundedHeadProtocol.connection_made

    def noting(self: Any, transport: Any) -> None:
        made.append(weakref.ref(self))
        begin_connection(self, transport)

    monkeypatch.setattr(head.BoundedHeadProtocol, "connection_made", noting)
    gc.disable()
    yield made
    gc.enable()


def test_a_connection_ends_with_its_last_reference(
    server: RunningServer, protocols: list[Any]
) -> None:
    assert httpx.get(f"{server.url}/health").status_code == 200
    for _ in range(200):
        if protocols[0]() is None:
            break
        time.sleep(0.02)
    assert protocols[0]() is None
