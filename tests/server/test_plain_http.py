"""Clients that offer HTTP/2, speak HTTP/1.0, ask with HEAD, or send one request behind another."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

import pytest

from tests.server.conftest import MODEL, RunningServer
from tests.server.test_robustness import LONG, held_server  # noqa: F401

SHORT = {"model": MODEL, "prompt": "x", "max_tokens": 4, "seed": 1, "ignore_eos": True}
H2C = "Connection: keep-alive, Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAQ\r\n"
WEBSOCKET = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: eA==\r\n"


def post(headers: str = "", version: str = "1.1", **changes: Any) -> bytes:
    body = json.dumps({**SHORT, **changes}).encode()
    return (
        f"POST /v1/completions HTTP/{version}\r\nHost: 127.0.0.1\r\n{headers}"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def get(path: str, headers: str = "", method: str = "GET", version: str = "1.1") -> bytes:
    return f"{method} {path} HTTP/{version}\r\nHost: 127.0.0.1\r\n{headers}\r\n".encode()


CLOSE = "Connection: close\r\n"
LAST = get("/health", CLOSE)


def answers(server: RunningServer, *parts: bytes) -> bytes:
    """Everything that a server says until it closes."""
    with server.connect() as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(0.05)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def document(answer: bytes) -> dict[str, Any]:
    return json.loads(answer.partition(b"\r\n\r\n")[2])


@pytest.mark.parametrize("offer", [H2C, WEBSOCKET], ids=["h2c", "websocket"])
@pytest.mark.parametrize("size", [1, 7, 10**6])
def test_an_offer_of_another_protocol_is_declined(
    server: RunningServer, offer: str, size: int
) -> None:
    text = post(offer) + get("/v1/models", offer) + post(offer, n=2) + LAST
    parts = [text[i : i + size] for i in range(0, len(text), size)]
    with server.connect() as connection:
        for part in parts:
            connection.sendall(part)
        said = b"".join(iter(lambda: connection.recv(65536), b""))
    assert said.count(b"HTTP/1.1 200 OK") == 4 and b" 101 " not in said
    assert said.count(b'"completion_tokens":4,') == 1 and said.count(b'"completion_tokens":8,') == 1
    server.assert_idle()


def test_an_offer_with_a_body_in_chunks_is_declined(server: RunningServer) -> None:
    head, _, body = post(H2C + CLOSE).partition(b"\r\n\r\n")
    chunked = head.rpartition(b"\r\n")[0] + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
    said = answers(server, chunked, b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
    assert said.startswith(b"HTTP/1.1 200 OK") and b"\r\nconnection: close\r\n" in said


def test_a_tunnel_is_refused(server: RunningServer) -> None:
    for target in (b"example.org:443", b"http://127.0.0.1/"):
        said = answers(server, b"CONNECT " + target + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert said.startswith(b"HTTP/1.1 400 ")


def test_a_client_of_http_1_0_gets_no_chunks(server: RunningServer) -> None:
    said = answers(server, post(version="1.0", stream=True))
    head, _, body = said.partition(b"\r\n\r\n")
    assert b"chunked" not in head.lower() and b"connection: close" in head
    events = body.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: ") for event in events[:-1])
    whole = answers(server, post(version="1.0"))
    assert b"content-length: " in whole and document(whole)["usage"]["completion_tokens"] == 4
    texts = [json.loads(event[6:])["choices"][0]["text"] for event in events[:-2]]
    assert "".join(texts) == document(whole)["choices"][0]["text"]
    server.assert_idle()


@pytest.mark.parametrize(
    "path,status", [("/health", b"200"), ("/", b"200"), ("/v1/models", b"200"), ("/none", b"404")]
)
def test_head_is_get_without_a_body(server: RunningServer, path: str, status: bytes) -> None:
    head = answers(server, get(path, CLOSE, "HEAD"))
    whole = answers(server, get(path, CLOSE))
    assert head.startswith(b"HTTP/1.1 " + status) and head.endswith(b"\r\n\r\n")
    lengths = [said.partition(b"content-length: ")[2].split()[0] for said in (head, whole)]
    assert lengths[0] == lengths[1]


def test_head_of_what_wants_a_body_is_refused(server: RunningServer) -> None:
    said = answers(server, get("/v1/completions", CLOSE, "HEAD"))
    assert said.startswith(b"HTTP/1.1 405 ")


def test_an_encoded_body_is_refused_by_name(server: RunningServer) -> None:
    said = answers(server, post("Content-Encoding: gzip\r\n" + CLOSE))
    assert said.startswith(b"HTTP/1.1 415 ") and "'gzip'" in document(said)["error"]["message"]
    assert b" 200 OK" in answers(server, post("Content-Encoding: identity\r\n" + CLOSE))


def test_requests_of_one_write_are_answered_in_order(server: RunningServer) -> None:
    said = answers(server, post(max_tokens=40) + post(stream=True) + get("/none") + LAST)
    heads = [part.partition(b"\r\n")[0] for part in said.split(b"HTTP/1.1 ")[1:]]
    assert heads == [b"200 OK", b"200 OK", b"404 Not Found", b"200 OK"]
    server.assert_idle()


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_client_that_leaves_behind_two_requests_is_forgotten(
    held_server: Any,  # noqa: F811
    is_streamed: bool,
) -> None:
    connection: socket.socket = held_server.connect()
    connection.sendall(post(**{**LONG, "stream": is_streamed}) * 2)
    while not held_server.engine.status().num_requests:
        time.sleep(0.001)
    connection.close()
    held_server.assert_idle()  # the engine is held: only a cancelled request can go
