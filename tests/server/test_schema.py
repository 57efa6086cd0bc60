"""Generated requests against the server's own OpenAPI description: no answer is a failure of the
server."""

from __future__ import annotations

import pytest

from tests.server.conftest import MODEL, RunningServer

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis needs Python 3.11")

from hypothesis import HealthCheck, given, settings  # noqa: E402

NUM_EXAMPLES = 40


@pytest.fixture
def api(server: RunningServer):
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def test_no_request_breaks_the_server(api, server: RunningServer) -> None:
    statuses: set[tuple[str, int]] = set()
    for operation in [result.ok() for result in api.get_all_operations()]:

        @settings(
            max_examples=NUM_EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def check(case) -> None:
            if isinstance(case.body, dict) and "model" in case.body:
                # The right name and few tokens, so that the rest of the body matters, too.
                case.body = {"max_tokens": 4, **case.body, "model": MODEL}
            response = case.call()
            statuses.add((case.path, response.status_code))
            assert response.status_code < 500, response.text
            if response.status_code >= 400:
                assert set(response.json()["error"]) == {"message", "type", "param", "code"}

        check()
    for path in ("/v1/completions", "/v1/chat/completions"):
        assert {(path, 200), (path, 400)} <= statuses
    server.assert_idle()


def test_the_description_names_what_there_is(api, server: RunningServer) -> None:
    paths = {result.ok().path for result in api.get_all_operations()}
    assert paths >= {"/v1/completions", "/v1/chat/completions", "/v1/models", "/health", "/metrics"}
    assert not any("playground" in path for path in paths)
