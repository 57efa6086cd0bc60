"""What Prometheus sees of requests and steps."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from sdengine.core.config import SpeculationConfig
from tests.server.conftest import MODEL, RunningServer, running, tiny_engine

TREES = SpeculationConfig(max_nodes=6, max_depth=3, adaptive=False)
BODY = {"model": MODEL, "prompt": "def f(x):", "max_tokens": 30, "temperature": 0.5, "seed": 3}


def scrape(server: RunningServer) -> dict[tuple[str, ...], float]:
    """Value by name and label values."""
    response = httpx.get(f"{server.url}/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def test_requests_tokens_and_times_are_counted() -> None:
    with running(tiny_engine(speculation=TREES)) as server:
        url = f"{server.url}/v1/completions"
        used = httpx.post(url, json={**BODY, "n": 2}).json()["usage"]
        httpx.post(url, json={**BODY, "n": 0})
        httpx.get(f"{server.url}/no/such/path")
        seen = scrape(server)
    assert seen["sdengine_http_requests_total", "/v1/completions", "200"] == 1
    assert seen["sdengine_http_requests_total", "/v1/completions", "400"] == 1
    assert seen["sdengine_http_requests_total", "other", "404"] == 1
    assert seen[("sdengine_prompt_tokens_total",)] == used["prompt_tokens"]
    assert seen[("sdengine_generated_tokens_total",)] == used["completion_tokens"] == 60
    assert seen[("sdengine_time_to_first_token_seconds_count",)] == 2
    assert seen[("sdengine_request_seconds_count",)] == 1
    assert seen[("sdengine_request_seconds_sum",)] > 0


def test_times_between_deliveries_are_counted() -> None:
    """On a busy machine all of a text may come in one delivery."""
    with running(tiny_engine(speculation=TREES)) as server:
        for _ in range(20):
            httpx.post(f"{server.url}/v1/completions", json={**BODY, "max_tokens": 120})
            count = scrape(server)[("sdengine_inter_token_seconds_count",)]
            if count > 0:
                break
    assert count > 0


def test_steps_and_trees_are_counted() -> None:
    with running(tiny_engine(speculation=TREES)) as server:
        httpx.post(f"{server.url}/v1/completions", json={**BODY, "max_tokens": 120})
        seen = scrape(server)
    steps = seen[("sdengine_sequence_steps_total",)]
    by_depth = [seen.get(("sdengine_accepted_draft_tokens_total", str(d)), 0) for d in (1, 2, 3)]
    assert steps == seen[("sdengine_steps_total",)] < 120
    assert by_depth == sorted(by_depth, reverse=True) and by_depth[0] > 0
    assert steps + sum(by_depth) >= 120
    assert seen[("sdengine_mean_acceptance_length",)] == 1 + sum(by_depth) / steps
    assert seen[("sdengine_draft_tokens_total",)] >= sum(by_depth)
    assert 0 < seen[("sdengine_draft_seconds_total",)] < seen[("sdengine_step_seconds_total",)]
    assert seen[("sdengine_kv_blocks",)] == seen[("sdengine_kv_blocks_free",)] > 0
    assert seen[("sdengine_sequences_running",)] == seen[("sdengine_sequences_waiting",)] == 0
    assert seen[("sdengine_healthy",)] == 1


def test_a_prompt_that_the_engine_refuses_is_not_counted() -> None:
    with running(tiny_engine()) as server:
        answer = httpx.post(f"{server.url}/v1/completions", json={**BODY, "prompt": [10**6]})
        seen = scrape(server)
    assert answer.status_code == 400
    assert seen[("sdengine_prompt_tokens_total",)] == 0


def test_the_page_s_tokens_are_counted() -> None:
    with running(tiny_engine()) as server:
        page = {"prompt": "def f(x):", "max_tokens": 7}
        answer = httpx.post(f"{server.url}/playground/generate", json=page)
        refused = httpx.post(f"{server.url}/playground/generate", json={**page, "temperature": -1})
        seen = scrape(server)
        num_prompt_tokens = len(server.engine.engine.tokenizer.encode("def f(x):"))
    assert (answer.status_code, refused.status_code) == (200, 400)
    assert seen[("sdengine_generated_tokens_total",)] == 7
    assert seen[("sdengine_prompt_tokens_total",)] == num_prompt_tokens


def test_the_documentation_lists_every_metric() -> None:
    text = (Path(__file__).parents[2] / "docs/server.md").read_text(encoding="utf-8")
    section = text.partition("## Metrics")[2].partition("\n## ")[0]
    with running(tiny_engine(speculation=TREES)) as server:
        httpx.post(f"{server.url}/v1/completions", json={**BODY, "max_tokens": 120})
        names = {name for name, *_ in scrape(server) if not name.endswith("_created")}
    names = {re.sub("_(bucket|count|sum)$", "", name) for name in names}
    names.add("sdengine_connections_refused_total")  # none was
    assert names == set(re.findall(r"`(sdengine_\w+)", section))
