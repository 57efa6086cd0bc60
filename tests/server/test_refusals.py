"""What is wrong is refused with the right status, in OpenAI's form, naming the field."""

from __future__ import annotations

import os
from typing import Any

import httpx
import pytest

from sdengine.cli.main import main
from sdengine.errors import ConfigError
from sdengine.server.settings import ServerSettings, is_loopback
from tests.server.conftest import MODEL, RunningServer, running, tiny_engine

CHAT = "/v1/chat/completions"
USER = [{"role": "user", "content": "Hi"}]
JSON = {"content-type": "application/json"}


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(
    "field,value",
    [
        ("response_format", {"type": "json_object"}),
        ("echo", True),
        ("suffix", "x"),
        ("best_of", 3),
        ("no_such_field", 1),
        ("temperature", "hot"),
        ("n", 1.5),
        ("logit_bias", {"1": "x"}),
        ("stream_options", {"include_usage": True}),
        ("stream_options", {"other": True}),
        ("prompt", 5),
    ],
)
def test_a_wrong_field_is_named(post, field: str, value: object) -> None:
    error = error_of(post(**{"prompt": "x", field: value}), 400)
    assert error["param"].split(".")[0] == field, error
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "field,value",
    [
        ("response_format", {"type": "json_schema", "json_schema": {}}),
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("functions", [{}]),
        ("modalities", ["audio"]),
        ("top_logprobs", 2),
        ("messages", []),
        ("messages", [{"role": "tool", "content": "x"}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url"}]}]),
    ],
)
def test_a_wrong_field_of_a_conversation_is_named(post, field: str, value: object) -> None:
    error = error_of(post(CHAT, **{"messages": USER, field: value}), 400)
    assert error["param"].split(".")[0] == field, error


@pytest.mark.parametrize(
    "field,value",
    [
        ("temperature", -1),
        ("top_p", 0),
        ("n", 0),
        ("max_tokens", 0),
        ("seed", 2**63),
        ("logprobs", 21),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"100000": 1}),
        ("logit_bias", {"1": 1e9}),
        ("stop", ""),
        ("prompt", []),
        ("prompt", [[]]),
        ("prompt", [100_000]),
        ("min_tokens", 99),
    ],
)
def test_a_value_out_of_range_is_explained(post, field: str, value: object) -> None:
    error = error_of(post(**{"prompt": "x", field: value}), 400)
    named = {"prompt": "prompt|token"}.get(field, field)
    assert any(word in error["message"] for word in named.split("|")), error


@pytest.mark.parametrize(
    "path,field,value,message",
    [
        ("/v1/completions", "n", 1.5, "n: expected an integer, got 1.5"),
        ("/v1/completions", "temperature", "hot", "temperature: expected a number, got 'hot'"),
        ("/v1/completions", "stream", 1, "stream: expected true or false, got 1"),
        ("/v1/completions", "model", 7, "model: expected a string, got 7"),
        (CHAT, "messages", [], "messages: expected at least one item, got []"),
        (CHAT, "messages", "Hi", "messages: expected a list, got 'Hi'"),
    ],
)
def test_a_wrong_type_is_told_with_what_came(
    post, path: str, field: str, value: object, message: str
) -> None:
    body = {"messages": USER} if path == CHAT else {"prompt": "x"}
    error = error_of(post(path, **{**body, field: value}), 400)
    assert error["message"] == message and error["param"] == field


def test_half_a_character_is_no_json(post) -> None:
    message = error_of(post(prompt="\ud800"), 400)["message"]
    assert "JSON" in message and "hex escape" in message


def test_values_that_ask_for_nothing_are_accepted(post) -> None:
    neutral = {"response_format": {"type": "text"}, "echo": False, "best_of": 1, "suffix": None}
    assert post(prompt="x", max_tokens=2, user="someone", **neutral).status_code == 200
    neutral = {"tools": [], "tool_choice": "none", "response_format": None}
    assert post(CHAT, messages=USER, max_tokens=2, **neutral).status_code == 200


def test_both_names_of_max_tokens_at_once_are_refused(post) -> None:
    body = {"messages": USER, "max_tokens": 2, "max_completion_tokens": 2}
    assert error_of(post(CHAT, **body), 400)["param"] == "max_tokens"


def test_paths_and_methods(server: RunningServer) -> None:
    assert "nothing at" in error_of(httpx.get(f"{server.url}/v1/nothing"), 404)["message"]
    error_of(httpx.get(f"{server.url}/v1/completions"), 405)
    for path in ("/v1/completions/", f"{CHAT}/", "/health/"):
        error_of(httpx.post(f"{server.url}{path}", json={}), 404)
    error_of(httpx.get(f"{server.url}/v1/models/"), 404)
    error_of(httpx.get(f"{server.url}/health", headers={"host": "evil.example"}), 421)
    assert httpx.get(f"{server.url}/docs").status_code == 404


def test_a_model_without_a_template_says_what_to_use(server: RunningServer) -> None:
    from tests.engine.conftest import text_checkpoint

    with running(tiny_engine_without_template(text_checkpoint())) as handle:
        body = {"model": MODEL, "messages": USER}
        error = error_of(httpx.post(f"{handle.url}{CHAT}", json=body), 400)
        assert "/v1/completions" in error["message"]


def tiny_engine_without_template(path: str) -> Any:
    from sdengine.engine import Engine
    from tests.engine.conftest import tiny

    return Engine(path, **tiny({}))


def test_limits() -> None:
    limits = {"max_prompt_tokens": 10, "max_output_tokens": 5, "max_completions": 3}
    with running(tiny_engine(), max_body_bytes=300, **limits) as handle:

        def post(**body: Any) -> httpx.Response:
            return httpx.post(f"{handle.url}/v1/completions", json={"model": MODEL, **body})

        assert post(prompt="x", max_tokens=5).status_code == 200
        assert post(prompt="x", ignore_eos=True).json()["usage"]["completion_tokens"] == 5
        assert error_of(post(prompt="x", max_tokens=6), 400)["param"] == "max_tokens"
        body = {"model": MODEL, "messages": USER, "max_completion_tokens": 6}
        error = error_of(httpx.post(f"{handle.url}{CHAT}", json=body), 400)
        assert error["param"] == "max_completion_tokens" and error["param"] in error["message"]
        assert error_of(post(prompt="x", n=4, max_tokens=5), 400)["param"] == "n"
        long = error_of(post(prompt=[5] * 11, max_tokens=5), 400)
        assert (long["param"], long["code"]) == ("prompt", "context_length_exceeded")
        assert "300 bytes" in error_of(post(prompt="x" * 400), 413)["message"]
        chunks = iter([b'{"prompt": "', b"x" * 400, b'"}'])
        chunked = httpx.post(f"{handle.url}/v1/completions", content=chunks, headers=JSON)
        error_of(chunked, 413)


def test_a_full_server_says_when_to_come_back() -> None:
    body = {"model": MODEL, "prompt": "x", "max_tokens": 200, "ignore_eos": True}
    with running(tiny_engine(), max_requests=1, max_requests_per_client=2) as handle:
        url = f"{handle.url}/v1/completions"
        with slow_request(handle, body), httpx.Client() as client:
            full = client.post(url, json=body)
            assert error_of(full, 503)["code"] == "overloaded" and full.headers["retry-after"]
            with slow_request(handle, None):
                crowded = client.post(url, json=body)
                error = error_of(crowded, 429)
                assert error["code"] == "rate_limit_exceeded" and crowded.headers["retry-after"]
        handle.assert_idle()


class slow_request:
    """A request that stays: its engine is held, or (without a body) its body never ends."""

    def __init__(self, handle: RunningServer, body: dict[str, Any] | None) -> None:
        self._handle = handle
        self._body = body

    def __enter__(self) -> None:
        import json

        text = b"{" if self._body is None else json.dumps(self._body).encode()
        size = len(text) + (self._body is None)
        engine = self._handle.engine.engine
        if self._body is not None:
            self._step = engine.step
            engine.step = lambda *_: []  # type: ignore[method-assign]
        self._socket = self._handle.connect()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {size}\r\n"
        self._socket.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + text)
        while self._body is not None and not self._handle.engine.status().num_requests:
            pass
        if self._body is None:
            import time

            time.sleep(0.3)

    def __exit__(self, *exception: object) -> None:
        self._socket.close()
        if self._body is not None:
            self._handle.engine.engine.step = self._step  # type: ignore[method-assign]


def test_a_request_that_takes_too_long_is_answered() -> None:
    body = {"model": MODEL, "prompt": "x", "max_tokens": 200, "ignore_eos": True}
    engine = tiny_engine()
    step, engine.step = engine.step, lambda *_: []  # type: ignore[method-assign]
    with running(engine, request_timeout_s=0.2, body_timeout_s=0.2) as handle:
        url = f"{handle.url}/v1/completions"
        assert error_of(httpx.post(url, json=body), 504)["code"] == "timeout"
        assert error_of(httpx.post(url, json={**body, "stream": True}), 504)["code"] == "timeout"
        with handle.connect() as half:
            head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n"
            half.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n{")
            assert half.recv(4096).startswith(b"HTTP/1.1 408")
        engine.step = step  # type: ignore[method-assign]


def test_a_stream_that_has_begun_ends_with_its_error() -> None:
    body = {"model": MODEL, "prompt": "x", "max_tokens": 200, "ignore_eos": True, "stream": True}
    engine = tiny_engine()
    step, steps = engine.step, iter(range(3))
    engine.step = lambda *_: [] if next(steps, None) is None else step()  # type: ignore[method-assign]
    with running(engine, request_timeout_s=1.0) as handle:
        url = f"{handle.url}/v1/completions"
        with httpx.stream("POST", url, json=body) as response:
            assert response.status_code == 200
            *texts, last = [line for line in response.iter_lines() if line.startswith("data:")]
        assert texts
        assert '"code":"timeout"' in last
        engine.step = step  # type: ignore[method-assign]


def test_a_failed_engine_is_told_by_health_and_requests() -> None:
    engine = tiny_engine()

    def failing(*_: object) -> list:
        raise OSError("out of order")

    engine.step = failing  # type: ignore[method-assign]
    with running(engine) as handle:
        body = {"model": MODEL, "prompt": "x"}
        url = f"{handle.url}/v1/completions"
        for _ in range(2):
            error = error_of(httpx.post(url, json=body), 500)
            assert error["code"] == "engine_failed"
        health = httpx.get(f"{handle.url}/health")
        assert health.status_code == 503
        assert health.json() == {"status": "failed", "reason": "OSError"}
        assert "sdengine_healthy 0.0" in httpx.get(f"{handle.url}/metrics").text
        engine.abort_request("async-0")


def test_keys() -> None:
    with running(tiny_engine(), api_keys=("right", "also-right")) as handle:
        body = {"model": MODEL, "prompt": "x", "max_tokens": 1}

        def post(value: str | None) -> httpx.Response:
            headers = {} if value is None else {"authorization": value}
            return httpx.post(f"{handle.url}/v1/completions", json=body, headers=headers)

        for value in (None, "Bearer wrong", "Bearer right-", "right", "Bearer", "Basic right"):
            response = post(value)
            assert error_of(response, 401)["code"] == "invalid_api_key"
            assert response.headers["www-authenticate"] == "Bearer"
        for value in ("Bearer right", "bearer also-right"):
            assert post(value).status_code == 200
        for path in ("/v1/models", "/metrics", "/playground/about", "/openapi.json"):
            error_of(httpx.get(f"{handle.url}{path}"), 401)
        for path in ("/", "/health", "/page.js"):
            assert httpx.get(f"{handle.url}{path}").status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_a_public_address_needs_a_key(host: str) -> None:
    with pytest.raises(ConfigError, match="API key"):
        ServerSettings(model_name="m", host=host)
    assert ServerSettings(model_name="m", host=host, api_keys=("k",)).host == host
    assert ServerSettings(model_name="m", host=host, allow_public=True).host == host


def test_loopback_addresses() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]")))
    assert not any(map(is_loopback, ("127.0.0.1.evil.example", "10.0.0.1", "", "localhost.x")))


@pytest.mark.parametrize(
    "changes",
    [
        {"port": 70_000},
        {"max_requests": 0},
        {"request_timeout_s": 0},
        {"api_keys": (" k",)},
        {"model_name": ""},
    ],
)
def test_settings_are_checked(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        ServerSettings(**{"model_name": "m", **changes})


@pytest.mark.parametrize(
    "argv,word",
    [
        (["--host", "0.0.0.0"], "API key"),
        (["--api-key-file", os.devnull], "empty file"),
        (["--api-key-file", "no/such/file"], "readable file"),
        (["--max-num-seqs", "0"], "max_num_seqs"),
        (["--model", "no/such/model"], "neither"),
        (["--port", "many"], "integer"),
    ],
)
def test_the_command_refuses_before_it_loads(argv: list[str], word: str, capsys) -> None:
    assert main(["serve", *argv]) == 2
    err = capsys.readouterr().err
    assert err.startswith("sdengine: ") and err.count("\n") == 1 and word in err


def test_a_taken_port_is_refused(server: RunningServer, capsys) -> None:
    assert main(["serve", "--port", str(server.port)]) == 2
    assert "free address" in capsys.readouterr().err


def test_missing_libraries_are_named(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("sdengine.cli.serve.find_spec", lambda name: None)
    assert main(["serve"]) == 2
    err = capsys.readouterr().err
    assert "fastapi" in err and "sdengine[server]" in err


@pytest.mark.parametrize("part", [[], [{"type": "text", "text": "x"}] * 9])
def test_conversations_of_too_many_texts_are_refused_by_their_number(post, part) -> None:
    """One by one they would take the event loop seconds; here the first of them is wrong."""
    num = 90_000 // (1 + len(part))
    messages = [{"role": "nobody"}, *[{"role": "user", "content": part or "x"}] * num]
    error = error_of(post(CHAT, messages=messages), 400)
    assert error["param"] == "messages" and error["message"].count("expected") == 1
    assert f"at most 4096 messages and text parts together, got {90_001}" in error["message"]
    usual = [{"role": "user", "content": [{"type": "text", "text": ""}]}] * 2048
    assert post(CHAT, messages=[*usual], max_tokens=1).status_code == 400  # too long for the model
    assert error_of(post(CHAT, messages=usual), 400)["code"] == "context_length_exceeded"


def test_a_path_that_is_not_there_is_said_before_the_content_type(server) -> None:
    for path, status in (("/nope", 404), ("/v1/models", 405), ("/v1/completions", 415)):
        error_of(httpx.post(f"{server.url}{path}", content="{}"), status)


def test_a_model_without_a_tokenizer_is_not_served() -> None:
    from sdengine.errors import ConfigError
    from tests.model.checkpoints import make_checkpoint

    with (
        pytest.raises(ConfigError, match=r"a model with tokenizer\.json in "),
        running(tiny_engine_without_template(str(make_checkpoint()))),
    ):
        pass
